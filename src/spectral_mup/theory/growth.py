"""How each tensor of a model grew against the same tensor of a base model.

A rule sees nothing of a model but this: the kind of a tensor, and by which factor its fan_out and fan_in grew.
Models are compared by shape alone, so the base may live on the meta device and cost no memory.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS: tuple[str, ...] = ("hidden", "embedding", "readout", "vector")  # of tensors that grow; any other is `fixed`


class GrowthError(ValueError):
    """A tensor that cannot be classified; the message names it and what to do."""


@dataclass(frozen=True)
class Growth:
    """Growth of one tensor: kind, (fan_out, fan_in) here and in the base model, inside a residual block or not.

    embedding  one-hot (or other non-growing) input: only fan_out grows; tables of shape (entries, width) count as (width, 1)
    hidden     both grow, or any growing matrix inside a residual block
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

    @property
    def trained_as(self) -> str:
        """The kind whose optimizer and decay it takes: its own, but a tensor that does not grow is trained as a vector."""
        return "vector" if self.kind == "fixed" else self.kind

    def ratios(self) -> dict[str, float]:
        """The quantities a size law or a published table may take powers of (theory of the Muon scales: arXiv 2502.16982)."""
        (out, fan_in), (base_out, base_in) = self.shape, self.base_shape
        return {
            "m_out": self.m_out,
            "m_in": self.m_in,
            "m_max": max(out, fan_in) / max(base_out, base_in),
            "m_aspect": max(1.0, out / fan_in) / max(1.0, base_out / base_in),
        }


class ParameterInfo(NamedTuple):
    """What growth needs of a tensor: its shape, what it is, and its (fan_out, fan_in).

    map      a linear map, or a stack of them
    table    rows that are looked up or added; shape is (entries, width), fans (width, 1)
    vector   gains or biases, whatever their shape; fans (n, 1)
    unknown  a tensor whose shape does not say, fans None: an error if a side of it grows
    """

    shape: tuple[int, ...]
    role: str
    fans: tuple[int, int] | None


def measure_growth(
    model: Mapping[str, ParameterInfo],
    base: Mapping[str, ParameterInfo],
    wider: Mapping[str, ParameterInfo],
    residual_blocks: Sequence[str] = (),
) -> dict[str, Growth]:
    """{parameter name: Growth} of a model against its base, two instances of one architecture.

    wider            an instance that tells which dimensions *can* grow; if it is the model, all is `fixed` at the base width
    residual_blocks  name prefixes of the modules whose output is added to a residual stream; at another depth than the
                     base's, a block that the base lacks is compared with its block 0

    A tied tensor appears once, under its first name; it is an embedding if any of its owners is one.
    Raises GrowthError on a tensor that has no counterpart or whose way of growing no kind describes.
    """
    growths = {}
    for name, info in model.items():
        there, grown = (known.get(name) or known.get(in_first_block(name, residual_blocks)) for known in (base, wider))
        if there is None or grown is None:
            raise GrowthError(
                f"{name}: the base model has no such parameter; build it with the same options, and at the same depth unless "
                "residual_blocks names the blocks, as in residual_blocks=('layers.',)"
            )
        growths[name] = _classify(name, info, there, grown, name.startswith(tuple(residual_blocks)))
    return growths


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Number of blocks of a prefix, as in layers.0., layers.1.: distinct indices after it."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})


def in_first_block(name: str, residual_blocks: Sequence[str]) -> str:
    """The same tensor's name in block 0; a name outside all blocks as it is."""
    for prefix in residual_blocks:
        name = re.sub(f"^{re.escape(prefix)}" + r"\d+\.", f"{prefix}0.", name)
    return name


def _classify(name: str, info: ParameterInfo, base: ParameterInfo, wider: ParameterInfo, in_block: bool) -> Growth:
    shape = info.shape
    if not len(shape) == len(base.shape) == len(wider.shape):
        raise GrowthError(f"{name}: {len(shape)} dimensions here, {len(base.shape)} in the base model")
    grows = tuple(w != b for w, b in zip(wider.shape, base.shape, strict=True))
    stray = [i for i, g in enumerate(grows) if not g and shape[i] != base.shape[i]]
    if stray:
        raise GrowthError(
            f"{name}: shape {shape} against {base.shape} in the base model, but dimension {stray[0]} does not grow with width; "
            "build model and base with the same vocabulary, context and options"
        )
    if info.role == "table" and grows[0]:
        raise GrowthError(f"{name}: the number of embedding entries grows with width ({base.shape[0]} to {wider.shape[0]})")
    if info.fans is None or base.fans is None or wider.fans is None:
        if not any(grows):
            return Growth("fixed", (math.prod(shape), 1), (math.prod(base.shape), 1), in_block)
        raise GrowthError(_ambiguous(name, shape))
    if info.role in ("table", "vector"):
        kind = {"table": "embedding", "vector": "vector"}[info.role]
        return Growth(kind if any(grows) else "fixed", info.fans, base.fans, in_block)
    grows_out, grows_in = (w != b for w, b in zip(wider.fans, base.fans, strict=True))
    kind = {(True, True): "hidden", (True, False): "embedding", (False, True): "readout"}.get((grows_out, grows_in), "fixed")
    return Growth("hidden" if in_block and kind != "fixed" else kind, info.fans, base.fans, in_block)


def _ambiguous(name: str, shape: tuple[int, ...]) -> str:
    """What to say of a bare tensor whose shape does not tell what it is."""
    stack = "" if len(shape) == 2 else " in its last two dimensions, one matrix for each of the others"
    return (
        f"{name}: a bare parameter of shape {shape} that grows may be a table or a linear map; name it in "
        f"embeddings=('{name}',) if it is added or looked up, or where it multiplies in linear_out_in=('{name}',) or "
        f"linear_in_out=('{name}',), stored (out, in) or (in, out){stack}"
    )


def monomial(exponents: Mapping[str, float], ratios: Mapping[str, float]) -> float:
    """Product of ratios[name] ** exponent: the one form in which size laws, ε laws and published tables are written."""
    value = 1.0
    for name, exponent in exponents.items():
        if name not in ratios:
            raise GrowthError(f"unknown quantity '{name}' in a rule or size law; known: {', '.join(sorted(ratios))}")
        value *= ratios[name] ** exponent
    return value
