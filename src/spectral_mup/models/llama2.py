"""Llama2: the block of arXiv 2307.09288 (RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from spectral_mup.models.configs import Llama2Config
from spectral_mup.models.layers import CausalSelfAttention, LanguageModel, SwigluMLP, rotation
from spectral_mup.theory.rules import Multipliers

NORM_EPS = 1e-5  # the published models'


class Block(nn.Module):
    """x + a·attention(RMSNorm(x)), then x + a·mlp(RMSNorm(x)), a the branch multiplier."""

    def __init__(self, config: Llama2Config, width: int) -> None:
        super().__init__()
        heads, kv_heads, self.branch = config.head_count(width), config.kv_head_count(width), 1.0
        self.norm_attention = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = CausalSelfAttention(width, heads, kv_heads, config.head_dim(width), False, config.dropout)
        self.norm_mlp = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = SwigluMLP(width, config.mlp_width(width), False, config.dropout)

    def forward(self, x_BTD: Tensor, rotation_TE: tuple[Tensor, Tensor]) -> Tensor:
        x_BTD = x_BTD + self.branch * self.attention(self.norm_attention(x_BTD), rotation_TE)
        return x_BTD + self.branch * self.mlp(self.norm_mlp(x_BTD))


class Llama2(LanguageModel):
    """Token ids (B, T) to logits (B, T, V), or with targets to the mean cross entropy in nats per token.

    `tied` shares the token table with the readout. A rule initialises the weights.
    """

    def __init__(self, config: Llama2Config, vocab_size: int, width: int, depth: int) -> None:
        super().__init__()
        self.context, self.dropout = config.context, config.dropout
        self.head_size, self.rope_base = width // config.head_count(width), config.rope_base
        self.multipliers = Multipliers(attention=config.head_dim(width) ** -0.5)
        self.token = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(config, width) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.readout = nn.Linear(width, vocab_size, bias=False)
        if config.tied:
            self.readout.weight = self.token.weight

    def features(self, x_BT: Tensor) -> Tensor:
        """Final hidden state (B, T, D), normalised."""
        h_BTD = F.dropout(self.multipliers.embedding * self.token(x_BT), self.dropout, self.training)
        rotation_TE = rotation(x_BT.size(1), self.head_size, self.rope_base, x_BT.device)
        for block in self.blocks:
            h_BTD = block(h_BTD, rotation_TE)
        return self.norm(h_BTD)
