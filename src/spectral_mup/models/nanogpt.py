"""NanoGPT: the pre-LN GPT-2 block of github.com/karpathy/nanoGPT, with the forward multipliers of a rule."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_mup.models.configs import NanoGPTConfig
from spectral_mup.models.layers import Block, GeluMLP, LanguageModel
from spectral_mup.theory.rules import Multipliers


class NanoGPT(LanguageModel):
    """Learned positions, GELU MLP, pre-LN; `tied` shares the token table with the readout. A rule initialises the weights."""

    def __init__(self, config: NanoGPTConfig, vocab_size: int, width: int, depth: int) -> None:
        super().__init__()
        self.context, self.dropout = config.context, config.dropout
        self.multipliers = Multipliers(attention=config.head_dim(width) ** -0.5)
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(config.context, width)
        norm, heads = partial(nn.LayerNorm, width, bias=config.bias), config.head_count(width)
        self.blocks = nn.ModuleList(Block(config, width, heads, config.bias, norm, GeluMLP) for _ in range(depth))
        self.norm = norm()
        self.readout = nn.Linear(width, vocab_size, bias=False)
        if config.tied:
            self.readout.weight = self.token.weight

    def features(self, x_BT: Tensor) -> Tensor:
        """Return the final hidden state (B, T, D), normalised."""
        positions = torch.arange(x_BT.size(1), device=x_BT.device)
        h_BTD = self.multipliers.embedding * (self.token(x_BT) + self.position(positions))
        h_BTD = F.dropout(h_BTD, self.dropout, self.training)
        for block in self.blocks:
            h_BTD = block(h_BTD)
        return self.norm(h_BTD)
