"""Blocks that the model families share.

Shapes in names: B batch, T time, D width, H query heads, G key and value heads, E head size, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spectral_mup.models.configs import FamilyConfig
from spectral_mup.theory.rules import Multipliers

LARGE_LOGITS = 2**27  # entries of half a gigabyte in float32; a loss with more of them makes its logits in chunks
FLASH_HEAD_SIZE = 256  # up to which CUDA's flash attention takes a head


def linear(fan_in: int, fan_out: int, bias: bool) -> nn.Linear:
    """Make an nn.Linear with its bias at zero; a rule initialises the weight."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class CausalSelfAttention(nn.Module):
    """Multi-head attention with softmax(scaling · q·kᵀ); q, k, v and out each have a weight of their own, as rules see them.

    With fewer key and value heads than query heads, each serves heads/kv_heads query heads (arXiv 2305.13245). A rotation
    turns queries and keys by their position (see `rotation`). `head_dim` is what rules count a head by: features per head.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: float, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        self.head_dim, self.scaling = head_dim, head_dim**-0.5
        kv_width = max(1, width * kv_heads // heads)  # 1 only where a base model is no more than a reference (base width 1)
        self.query, self.key = linear(width, width, bias), linear(width, kv_width, bias)
        self.value, self.out = linear(width, kv_width, bias), linear(width, width, bias)

    def forward(self, x_BTD: Tensor, rotation_TE: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q_BHTE = self.query(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BGTE = self.key(x_BTD).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v_BGTE = self.value(x_BTD).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        if rotation_TE is not None:
            q_BHTE, k_BGTE = rotate(q_BHTE, rotation_TE), rotate(k_BGTE, rotation_TE)
        dropout, grouped = self.dropout if self.training else 0.0, self.kv_heads < self.heads
        if grouped and not groups_heads(q_BHTE.device.type, q_BHTE.dtype, q_BHTE.size(-1)):
            k_BGTE, v_BGTE = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k_BGTE, v_BGTE))
            grouped = False
        y_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BGTE, v_BGTE, dropout_p=dropout, is_causal=True, scale=self.scaling, enable_gqa=grouped
        )
        return F.dropout(self.out(y_BHTE.transpose(1, 2).flatten(-2)), self.dropout, self.training)


def groups_heads(device_type: str, dtype: torch.dtype, head_size: int) -> bool:
    """Return whether attention can let query heads share keys and values without a T × T matrix in memory.

    On CUDA flash attention alone can, in half precision and to a head size of 256. Elsewhere there the memory-efficient kernel
    must do, which needs a copy of the keys and values for every query head.
    """
    return device_type != "cuda" or (dtype in (torch.bfloat16, torch.float16) and head_size <= FLASH_HEAD_SIZE)


def rotation(time: int, head_size: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin (T, E) of rotary positions (arXiv 2104.09864): angle t · base^(−2i/E) for features i and i + E/2."""
    frequency_E = base ** (-torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size)
    angle_TE = torch.outer(torch.arange(time, device=device, dtype=torch.float32), frequency_E).repeat(1, 2)
    return angle_TE.cos(), angle_TE.sin()


def rotate(x_BHTE: Tensor, rotation_TE: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of features (i, i + E/2) by the angle of its position, in the dtype of x."""
    cos_TE, sin_TE = rotation_TE
    first, second = x_BHTE.chunk(2, dim=-1)
    return (x_BHTE * cos_TE + torch.cat([-second, first], dim=-1) * sin_TE).to(x_BHTE.dtype)


class GeluMLP(nn.Module):
    """D → hidden → D with an exact GELU between."""

    def __init__(self, width: int, hidden: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up, self.down = linear(width, hidden, bias), linear(hidden, width, bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(self.down(F.gelu(self.up(x_BTD))), self.dropout, self.training)


class SwigluMLP(nn.Module):
    """down(silu(gate(x)) ⊙ up(x)), D → hidden → D (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate, self.up = linear(width, hidden, bias), linear(width, hidden, bias)
        self.down = linear(hidden, width, bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD)), self.dropout, self.training)


class Block(nn.Module):
    """x + a·attention(norm(x)), then x + a·mlp(norm(x)), a the branch multiplier; `norm` makes a norm, `mlp` an MLP."""

    def __init__(self, config: FamilyConfig, width: int, kv_heads: int, bias: bool, norm: Callable, mlp: Callable) -> None:
        super().__init__()
        heads, self.branch = config.head_count(width), 1.0
        self.norm_attention = norm()
        self.attention = CausalSelfAttention(width, heads, kv_heads, config.head_dim(width), bias, config.dropout)
        self.norm_mlp = norm()
        self.mlp = mlp(width, config.mlp_width(width), bias, config.dropout)

    def forward(self, x_BTD: Tensor, rotation_TE: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x_BTD = x_BTD + self.branch * self.attention(self.norm_attention(x_BTD), rotation_TE)
        return x_BTD + self.branch * self.mlp(self.norm_mlp(x_BTD))


def chunked_cross_entropy(logits: Callable[[Tensor], Tensor], h_ND: Tensor, y_N: Tensor, chunks: int) -> Tensor:
    """Average the cross entropy over N tokens whose logits are in memory for a chunk of them at a time.

    The backward pass makes them again, which costs a third more in the readout. Without autocast's cache each chunk casts the
    readout's weight by itself, so that its gradient is summed over chunks in float32.
    """

    def total(h_ND: Tensor, y_N: Tensor) -> Tensor:
        return F.cross_entropy(logits(h_ND).float(), y_N, reduction="sum")

    device_type = h_ND.device.type
    with torch.autocast(device_type, enabled=torch.is_autocast_enabled(device_type), cache_enabled=False):
        parts = zip(h_ND.chunk(chunks), y_N.chunk(chunks), strict=True)
        totals = [checkpoint(total, h, y, use_reentrant=False, preserve_rng_state=False) for h, y in parts]
    return torch.stack(totals).sum() / len(y_N)  # type: ignore[arg-type]


class LanguageModel(nn.Module):
    """Model of token ids (B, T) to logits (B, T, V), or with targets to the mean cross entropy in nats per token.

    The logits multiplier acts in `logits`, so training and inference cannot differ.
    """

    multipliers: Multipliers
    context: int
    blocks: nn.ModuleList
    readout: nn.Linear

    def set_multipliers(self, multipliers: Multipliers) -> None:
        """Set the numbers of the forward pass, whatever they were before."""
        self.multipliers = multipliers
        for block in self.blocks:
            block.branch, block.attention.scaling = multipliers.branch, multipliers.attention  # type: ignore[union-attr]

    def checkpoint_blocks(self, random: bool) -> None:
        """Let each block make its activations again in the backward pass instead of keeping them, for the same numbers.

        `random`: blocks draw random numbers (dropout), which must then be drawn again.
        """
        for block in self.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=random)

    def features(self, x_BT: Tensor) -> Tensor:
        """Return the final hidden state (B, T, D), normalised."""
        raise NotImplementedError(f"{type(self).__name__}.features")

    def logits(self, h_BTD: Tensor) -> Tensor:
        """Return the readout times its multiplier (B, T, V)."""
        return self.multipliers.logits * self.readout(h_BTD)

    def forward(self, x_BT: Tensor, y_BT: Tensor | None = None) -> Tensor:
        h_BTD = self.features(x_BT)
        if y_BT is None:
            return self.logits(h_BTD)
        chunks = math.ceil(y_BT.numel() * self.readout.out_features / LARGE_LOGITS)
        if chunks > 1:
            return chunked_cross_entropy(self.logits, h_BTD.flatten(0, 1), y_BT.flatten(), chunks)
        return F.cross_entropy(self.logits(h_BTD).flatten(0, 1).float(), y_BT.flatten())

    @torch.no_grad()
    def generate(self, x_BT: Tensor, tokens: int, generator: torch.Generator | None = None) -> Tensor:
        """Continue x by sampling `tokens` tokens at temperature 1, with the same logits as in training."""
        for _ in range(tokens):
            p_BV = self(x_BT[:, -self.context :])[:, -1].float().softmax(-1)
            x_BT = torch.cat([x_BT, torch.multinomial(p_BV, 1, generator=generator)], dim=1)
        return x_BT
