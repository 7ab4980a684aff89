"""How each tensor of a model grew against the same tensor of a base model.

A rule sees nothing of a model but this: the kind of a tensor, and by which factor its fan_out and fan_in grew.
Models are compared by shape alone, so the base may live on the meta device and cost no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("embedding", "matrix", "readout", "vector", "fixed")


class GrowthError(ValueError):
    """A tensor that cannot be classified; the message names it and what to do."""


@dataclass(frozen=True)
class Growth:
    """Growth of one tensor: kind, (fan_out, fan_in) here and in the base model, inside a residual block or not.

    embedding  one-hot (or other non-growing) input: only fan_out grows; tables of shape (entries, width) count as (width, 1)
    matrix     both grow, or any growing matrix inside a residual block
    readout    only fan_in grows
    vector     bias or gain of length n, an (n, 1) matrix
    fixed      nothing grows
    """

    kind: str
    shape: tuple[int, int]
    base_shape: tuple[int, int]
    in_block: bool = False

    @property
    def m_out(self) -> float:
        return self.shape[0] / self.base_shape[0]

    @property
    def m_in(self) -> float:
        return self.shape[1] / self.base_shape[1]

    def ratios(self) -> dict[str, float]:
        """The quantities a size law or a published table may take powers of (theory of the Muon scales: arXiv 2502.16982)."""
        (out, fan_in), (base_out, base_in) = self.shape, self.base_shape
        return {
            "m_out": self.m_out,
            "m_in": self.m_in,
            "m_max": max(out, fan_in) / max(base_out, base_in),
            "m_aspect": max(1.0, out / fan_in) / max(1.0, base_out / base_in),
        }


def measure_growth(model: Any, base: Any, wider: Any | None = None, residual_blocks: Sequence[str] = ()) -> dict[str, Growth]:
    """{parameter name: Growth} of `model` against `base`, two instances of one architecture at equal depth.

    wider            a third instance that tells which dimensions *can* grow; without it `model` itself is asked, and at base
                     width every tensor is then `fixed`
    residual_blocks  name prefixes of the modules whose output is added to a residual stream

    A tied tensor appears once, under its first name; it is an embedding if any of its owners is one.
    Raises GrowthError on a tensor that has no counterpart or whose way of growing no kind describes.
    """
    import torch

    tables = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters(recurse=False)}
    shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in (base, wider if wider is not None else model)]
    growths = {}
    for name, p in model.named_parameters():
        if any(name not in known for known in shapes):
            raise GrowthError(f"{name}: the base model has no such parameter; build it at the same depth and options")
        small, large = (known[name] for known in shapes)
        in_block = any(name.startswith(prefix) for prefix in residual_blocks)
        growths[name] = _classify(name, tuple(p.shape), small, large, id(p) in tables, in_block)
    return growths


def _classify(
    name: str, shape: tuple[int, ...], base: tuple[int, ...], wider: tuple[int, ...], is_table: bool, in_block: bool
) -> Growth:
    if not len(shape) == len(base) == len(wider):
        raise GrowthError(f"{name}: {len(shape)} dimensions here, {len(base)} in the base model")
    grows = tuple(w != b for w, b in zip(wider, base, strict=True))
    stray = [i for i, g in enumerate(grows) if not g and shape[i] != base[i]]
    if stray:
        raise GrowthError(
            f"{name}: shape {shape} against {base} in the base model, but dimension {stray[0]} does not grow with width; "
            "build model and base with the same vocabulary, context and options"
        )
    if is_table:
        if grows[0]:
            raise GrowthError(f"{name}: the number of embedding entries grows with width ({base[0]} to {wider[0]})")
        return Growth("embedding" if grows[1] else "fixed", (shape[1], 1), (base[1], 1), in_block)
    if len(shape) <= 1:
        n, n_base = (shape[0], base[0]) if shape else (1, 1)
        return Growth("vector" if any(grows) else "fixed", (n, 1), (n_base, 1), in_block)
    if len(shape) == 2:
        kind = {(True, True): "matrix", (True, False): "embedding", (False, True): "readout"}.get((grows[0], grows[1]), "fixed")
        if in_block and kind != "fixed":
            kind = "matrix"
        return Growth(kind, (shape[0], shape[1]), (base[0], base[1]), in_block)
    raise GrowthError(
        f"{name}: no kind describes a tensor of {len(shape)} dimensions {shape}; "
        "only vectors, matrices and embedding tables are understood: reshape it or leave it out of the model"
    )


def monomial(exponents: Mapping[str, float], ratios: Mapping[str, float]) -> float:
    """Product of ratios[name] ** exponent: the one form in which size laws, ε laws and published tables are written."""
    value = 1.0
    for name, exponent in exponents.items():
        if name not in ratios:
            raise GrowthError(f"unknown quantity '{name}' in a rule or size law; known: {', '.join(sorted(ratios))}")
        value *= ratios[name] ** exponent
    return value
