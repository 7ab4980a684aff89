"""NanoGPT: the pre-LN GPT-2 block of github.com/karpathy/nanoGPT, with the forward multipliers of a rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_mup.models.configs import NanoGPTConfig
from spectral_mup.models.layers import CausalSelfAttention, GeluMLP, LanguageModel
from spectral_mup.theory.rules import Multipliers


class Block(nn.Module):
    """x + a·attention(LN(x)), then x + a·mlp(LN(x)), a the branch multiplier."""

    def __init__(self, config: NanoGPTConfig, width: int) -> None:
        super().__init__()
        heads, self.branch = config.head_count(width), 1.0
        self.norm_attention = nn.LayerNorm(width, bias=config.bias)
        self.attention = CausalSelfAttention(width, heads, heads, config.head_dim(width), config.bias, config.dropout)
        self.norm_mlp = nn.LayerNorm(width, bias=config.bias)
        self.mlp = GeluMLP(width, config.mlp_width(width), config.bias, config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.branch * self.attention(self.norm_attention(x_BTD))
        return x_BTD + self.branch * self.mlp(self.norm_mlp(x_BTD))


class NanoGPT(LanguageModel):
    """Token ids (B, T) to logits (B, T, V), or with targets to the mean cross entropy in nats per token.

    Learned positions, GELU MLP, pre-LN; `tied` shares the token table with the readout. A rule initialises the
    weights.
    """

    def __init__(self, config: NanoGPTConfig, vocab_size: int, width: int, depth: int) -> None:
        super().__init__()
        self.context, self.dropout = config.context, config.dropout
        self.multipliers = Multipliers(attention=config.head_dim(width) ** -0.5)
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(config.context, width)
        self.blocks = nn.ModuleList(Block(config, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=config.bias)
        self.readout = nn.Linear(width, vocab_size, bias=False)
        if config.tied:
            self.readout.weight = self.token.weight

    def features(self, x_BT: Tensor) -> Tensor:
        """Final hidden state (B, T, D), normalised."""
        h_BTD = self.embed(x_BT)
        for block in self.blocks:
            h_BTD = block(h_BTD)
        return self.norm(h_BTD)

    def embed(self, x_BT: Tensor) -> Tensor:
        """Sum of token and position embeddings (B, T, D)."""
        positions = torch.arange(x_BT.size(1), device=x_BT.device)
        h_BTD = self.multipliers.embedding * (self.token(x_BT) + self.position(positions))
        return F.dropout(h_BTD, self.dropout, self.training)
