"""Llama2: the block of arXiv 2307.09288 (RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from spectral_mup.models.configs import Llama2Config
from spectral_mup.models.layers import Block, LanguageModel, SwigluMLP, rotation
from spectral_mup.theory.rules import Multipliers

NORM_EPS = 1e-5  # the published models'


class Llama2(LanguageModel):
    """Llama2's decoder; `tied` shares the token table with the readout. A rule initialises the weights."""

    def __init__(self, config: Llama2Config, vocab_size: int, width: int, depth: int) -> None:
        super().__init__()
        self.context, self.dropout = config.context, config.dropout
        self.head_size, self.rope_base = width // config.head_count(width), config.rope_base
        self.multipliers = Multipliers(attention=config.head_dim(width) ** -0.5)
        self.token = nn.Embedding(vocab_size, width)
        norm, kv_heads = partial(nn.RMSNorm, width, eps=NORM_EPS), config.kv_head_count(width)
        self.blocks = nn.ModuleList(Block(config, width, kv_heads, False, norm, SwigluMLP) for _ in range(depth))
        self.norm = norm()
        self.readout = nn.Linear(width, vocab_size, bias=False)
        if config.tied:
            self.readout.weight = self.token.weight

    def features(self, x_BT: Tensor) -> Tensor:
        """Return the final hidden state (B, T, D), normalised."""
        h_BTD = F.dropout(self.multipliers.embedding * self.token(x_BT), self.dropout, self.training)
        rotation_TE = rotation(x_BT.size(1), self.head_size, self.rope_base, x_BT.device)
        for block in self.blocks:
            h_BTD = block(h_BTD, rotation_TE)
        return self.norm(h_BTD)
