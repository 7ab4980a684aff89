"""NanoGPT: the pre-LN GPT-2 block of github.com/karpathy/nanoGPT, with the forward multipliers of a rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_mup.models.layers import CausalSelfAttention, GeluMLP, LanguageModel
from spectral_mup.theory.rules import Multipliers


class Block(nn.Module):
    """x + a·attention(LN(x)), then x + a·mlp(LN(x)), a the branch multiplier."""

    def __init__(self, width: int, heads: int, head_dim: float, hidden: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.branch = 1.0
        self.norm_attention = nn.LayerNorm(width, bias=bias)
        self.attention = CausalSelfAttention(width, heads, heads, head_dim, bias, dropout)
        self.norm_mlp = nn.LayerNorm(width, bias=bias)
        self.mlp = GeluMLP(width, hidden, bias, dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.branch * self.attention(self.norm_attention(x_BTD))
        return x_BTD + self.branch * self.mlp(self.norm_mlp(x_BTD))


class NanoGPT(LanguageModel):
    """Token ids (B, T) to logits (B, T, V), or with targets to the mean cross entropy in nats per token.

    Learned positions, GELU MLP, pre-LN; `tied` shares the token table with the readout. A rule initialises the
    weights.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context: int,
        width: int,
        depth: int,
        heads: int,
        head_dim: float,
        hidden: int,
        bias: bool,
        tied: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.multipliers, self.dropout, self.context = Multipliers(attention=head_dim**-0.5), dropout, context
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, head_dim, hidden, bias, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=bias)
        self.readout = nn.Linear(width, vocab_size, bias=False)
        if tied:
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
