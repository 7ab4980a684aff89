"""How each tensor of a model grew against the same tensor of a base model.

A rule sees nothing of a model but this: the kind of a tensor, and by which factor its fan_out and fan_in grew.
Models are compared by shape alone, so the base may live on the meta device and cost no memory.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SAME_KIND = 0.3  # octaves by which a side of a block may differ from its multiple of the width, as FFNs are rounded
KINDS: tuple[str, ...] = ("hidden", "embedding", "readout", "vector")  # of tensors that grow; any other is `fixed`


class GrowthError(ValueError):
    """A tensor that cannot be classified; the message names it and what to do."""


@dataclass(frozen=True)
class Growth:
    """Growth of one tensor: kind, (fan_out, fan_in) here and in the base model, inside a residual block or not.

    Kinds:
        embedding: One-hot (or other non-growing) input, so only fan_out grows; tables (entries, width) count as (width, 1).
        hidden: Both grow, or any growing matrix inside a residual block.
        readout: Only fan_in grows.
        vector: Bias or gain of length n, an (n, 1) matrix.
        fixed: Nothing grows.
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
        """Return the quantities that a size law or a table may take powers of (theory of the Muon scales: arXiv 2502.16982)."""
        (out, fan_in), (base_out, base_in) = self.shape, self.base_shape
        return {
            "m_out": self.m_out,
            "m_in": self.m_in,
            "m_max": max(out, fan_in) / max(base_out, base_in),
            "m_aspect": max(1.0, out / fan_in) / max(1.0, base_out / base_in),
        }


class ParameterInfo(NamedTuple):
    """What growth needs of a tensor: its shape, what it is, and its (fan_out, fan_in).

    Roles:
        map: A linear map, or a stack of them.
        table: Rows that are looked up or added; shape is (entries, width), fans (width, 1).
        vector: Gains or biases, whatever their shape; fans (n, 1).
        unknown: A tensor whose shape does not say, fans None; an error if a side of it grows.
    """

    shape: tuple[int, ...]
    role: str
    fans: tuple[int, int] | None


Block = dict[str, ParameterInfo]  # of a residual block, by the rest of the names


def measure_growth(
    model: Mapping[str, ParameterInfo],
    base: Mapping[str, ParameterInfo],
    wider: Mapping[str, ParameterInfo],
    residual_blocks: Sequence[str] = (),
) -> dict[str, Growth]:
    """Return {parameter name: Growth} of a model against its base, two instances of one architecture.

    A tied tensor appears once, under its first name; it is an embedding if any of its owners is one.

    Args:
        model: Its tensors by name.
        base: Those of the base.
        wider: Those of an instance that shows which dimensions *can* grow; if it is the model, all is `fixed` at the base
            width.
        residual_blocks: Name prefixes of the modules whose output is added to a residual stream; at another depth than the
            base's, a block is compared with one of its kind (match_blocks).

    Raises:
        GrowthError: A tensor has no counterpart, or no kind describes how it grows.
    """
    in_base, in_wider = (match_blocks(model, other, residual_blocks) for other in (base, wider))
    growths = {}
    for name, info in model.items():
        there, grown = base.get(counterpart(name, in_base)), wider.get(counterpart(name, in_wider))
        if there is None or grown is None:
            raise GrowthError(
                f"{name}: the base model has no such parameter; build it with the same options, and at the same depth unless "
                "residual_blocks names the blocks, as in residual_blocks=('layers.',)"
            )
        growths[name] = _classify(name, info, there, grown, name.startswith(tuple(residual_blocks)))
    return growths


def match_blocks(
    model: Mapping[str, ParameterInfo], base: Mapping[str, ParameterInfo], residual_blocks: Sequence[str]
) -> dict[str, str]:
    """Return {block of the model: a block of its kind in the base}, as in {"layers.3": "layers.1"}.

    At equal depth the block of the same number. Otherwise blocks are of one kind if their tensors have the same names and
    grew in the same way: each side as some side outside the blocks did, or not at all, by one ratio in all blocks, up to a
    rounding by SAME_KIND octaves. Where all blocks of the model have the same shapes, names are enough. Raises GrowthError on
    a kind that the base lacks.
    """
    both = [name for name in model if name in base and not name.startswith(tuple(residual_blocks))]
    ratios = {0.0} | {x for name in both for x in _octaves(model[name], base[name])}
    mates: dict[str, str] = {}
    for prefix in residual_blocks:
        here, there = _blocks(model, prefix), _blocks(base, prefix)
        if here.keys() == there.keys():
            mates |= {name: name for name in here}
            continue
        pairs = {name: [other for other in there if there[other].keys() == here[name].keys()] for name in here}
        for name in [name for name in here if not pairs[name]]:
            raise GrowthError(_no_such_block(name, f"one with {_unlike(here[name], there)}"))
        grown = None
        if len({frozenset((name, info.shape) for name, info in block.items()) for block in here.values()}) > 1:
            grown = _grown(here, there, pairs, ratios)
        for name, others in pairs.items():
            apart = {other: _apart(here[name], there[other], grown) for other in others}
            mate = min(others, key=lambda other: (apart[other][0], other != name))
            if apart[mate][0] > SAME_KIND:
                tensor = apart[mate][1]
                shapes = f"{here[name][tensor].shape}, the nearest there {there[mate][tensor].shape}"
                raise GrowthError(_no_such_block(name, f"{tensor} is {shapes}"))
            mates[name] = mate
    return mates


def _grown(
    here: Mapping[str, Block], there: Mapping[str, Block], pairs: Mapping[str, Sequence[str]], ratios: Iterable[float]
) -> dict[str, list[float]]:
    """Return {tensor of a block: octaves that each side grew}, those of `ratios` that fit the most blocks."""
    seen: dict[str, list[list[list[float]]]] = {}  # per tensor, a list a block of octaves against each block that it may match
    for name, others in pairs.items():
        for tensor, info in here[name].items():
            seen.setdefault(tensor, []).append([_octaves(info, there[other][tensor]) for other in others])
    return {
        tensor: [
            min(sorted(ratios), key=lambda r, i=i: sum(min(abs(x[i] - r) for x in block) for block in blocks))
            for i in range(min(len(x) for block in blocks for x in block))
        ]
        for tensor, blocks in seen.items()
    }


def counterpart(name: str, mates: Mapping[str, str]) -> str:
    """Return a tensor's or module's name in the base, by what match_blocks found."""
    for block, mate in mates.items():
        if name.startswith(f"{block}."):
            return mate + name.removeprefix(block)
    return name


def _blocks(names: Mapping[str, ParameterInfo], prefix: str) -> dict[str, Block]:
    """Group parameters into {block: {the rest of a parameter's name: its info}}."""
    blocks: dict[str, Block] = {}
    for name, info in names.items():
        if match := re.match(rf"({re.escape(prefix)}\d+)\.(.*)", name):
            blocks.setdefault(match[1], {})[match[2]] = info
    return blocks


def _octaves(info: ParameterInfo, base: ParameterInfo) -> list[float]:
    """Return by how many octaves each side grew."""
    return [math.log2(n / m) for n, m in zip(info.shape, base.shape, strict=False) if n and m]


def _apart(block: Block, other: Block, grown: Mapping[str, Sequence[float]] | None) -> tuple[float, str]:
    """Return the most octaves by which a side grew otherwise than `grown` says, and the tensor whose side that is."""
    if grown is None:
        return 0.0, ""
    return max(
        (abs(x - r), name)
        for name, info in block.items()
        for x, r in zip(_octaves(info, other[name]), grown[name], strict=False)
    )


def _unlike(block: Block, others: Mapping[str, Block]) -> str:
    """Name a parameter of a block that the block most like it lacks, or that it lacks itself."""
    best = min(others.values(), key=lambda other: len(block.keys() ^ other.keys()), default={})
    mine, theirs = sorted(block.keys() - best.keys()), sorted(best.keys() - block.keys())
    return mine[0] if mine else f"no {theirs[0]}"


def _no_such_block(name: str, kind: str) -> str:
    return f"{name}: the base model has no block of its kind ({kind}); build the base so deep that it has one of each kind"


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Count the blocks of a prefix, as in layers.0., layers.1.: distinct indices after it."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})


def in_first_block(name: str, residual_blocks: Sequence[str]) -> str:
    """Return the same tensor's name in block 0; a name outside all blocks unchanged."""
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
    """Return what to say of a bare tensor whose shape leaves open what it is."""
    stack = "" if len(shape) == 2 else " in its last two dimensions, one matrix for each of the others"
    return (
        f"{name}: a bare parameter of shape {shape} that grows may be a table or a linear map; name it in "
        f"embeddings=('{name}',) if it is added or looked up, or where it multiplies in linear_out_in=('{name}',) or "
        f"linear_in_out=('{name}',), stored (out, in) or (in, out){stack}"
    )


def monomial(exponents: Mapping[str, float], ratios: Mapping[str, float]) -> float:
    """Return the product of ratios[name] ** exponent, the one form of size laws, ε laws and published tables."""
    value = 1.0
    for name, exponent in exponents.items():
        if name not in ratios:
            raise GrowthError(f"unknown quantity '{name}' in a rule or size law; known: {', '.join(sorted(ratios))}")
        value *= ratios[name] ** exponent
    return value
