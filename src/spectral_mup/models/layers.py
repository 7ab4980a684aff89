"""Blocks that the model families share. Shapes in names: B batch, T time, D width, H heads, E head size, V vocabulary."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def linear(fan_in: int, fan_out: int, bias: bool) -> nn.Linear:
    """nn.Linear with its bias at zero; the weight is for theory.apply.init_ to set."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class CausalSelfAttention(nn.Module):
    """Multi-head attention with softmax(scale · q·kᵀ), q, k and v each a matrix (D, D) of its own, as rules see them."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float, scale: float) -> None:
        super().__init__()
        self.heads, self.dropout, self.scale = heads, dropout, scale
        self.query = linear(width, width, bias)
        self.key = linear(width, width, bias)
        self.value = linear(width, width, bias)
        self.out = linear(width, width, bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        def split(y_BTD: Tensor) -> Tensor:
            return y_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q_BHTE, k_BHTE, v_BHTE = split(self.query(x_BTD)), split(self.key(x_BTD)), split(self.value(x_BTD))
        dropout = self.dropout if self.training else 0.0
        y_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, dropout_p=dropout, is_causal=True, scale=self.scale)
        return F.dropout(self.out(y_BHTE.transpose(1, 2).flatten(-2)), self.dropout, self.training)


class GeluMLP(nn.Module):
    """D → ratio·D → D with an exact GELU between."""

    def __init__(self, width: int, hidden: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = linear(width, hidden, bias)
        self.down = linear(hidden, width, bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(self.down(F.gelu(self.up(x_BTD))), self.dropout, self.training)
