"""Which parameters of a model are several matrices, or one of more than two dimensions, and what each matrix trains with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spectral_mup.config.optimizer_spec import Algorithm
from spectral_mup.scaling.inspect import is_conv1d, named_parameters, owners
from spectral_mup.theory.growth import Growth, GrowthError

Split = int | Sequence[int]


def acts_on_matrices(algorithm: Algorithm) -> bool:
    """Return whether its class is one of ours that act on matrices, whatever parameters hold them (optim/matrices.py)."""
    return bool(algorithm.attribute("matrices_only"))


def stacked_parameters(model: nn.Module) -> dict[str, bool]:
    """Return {name of a parameter of more than two dimensions that is matrices: whether these are stacked, in its last two}.

    A convolution is one matrix (out, rest), and any other parameter a stack (experts, out, in). Transposed convolutions and
    those in groups are left out: no matrix (out, rest) is the map.
    """
    held, found = owners(model), {}
    for name, p in named_parameters(model).items():
        module = held[id(p)][0]
        if p.ndim > 2 and not isinstance(module, _ConvNd):
            found[name] = True
        elif p.ndim > 2 and not isinstance(module, _ConvTransposeNd) and module.groups == 1:
            found[name] = False
    return found


@dataclass(frozen=True)
class Parts:
    """The matrices of one parameter along its output dimension.

    Attributes:
        split: Number of parts or their sizes, as optimizers take it.
        dim: The output dimension of a matrix, -2 or -1.
        growths: Of the parts, in their order.
    """

    split: Split
    dim: int
    growths: tuple[Growth, ...]


def find_parts(
    model: nn.Module,
    growths: Mapping[str, Growth],
    trained: Sequence[str],
    split: Mapping[str, Split],
    heads: Mapping[str, int],
) -> dict[str, Parts]:
    """Return {parameter name: Parts} of those among `trained`, all of optimizers on matrices, that `split` or `heads` name.

    Raises GrowthError on a pattern that names none of them, and where parts do not fit.
    """
    asked: dict[str, dict[str, Any]] = {"split": dict(split), "heads": dict(heads)}
    for argument, patterns in asked.items():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in trained):
                raise GrowthError(
                    f"{pattern}: no parameter of this name is trained by an optimizer that acts on matrices; check {argument}="
                )
    held, found = owners(model), {}
    for name in trained:
        told = [
            (argument, wanted)
            for argument, patterns in asked.items()
            for pattern, wanted in patterns.items()
            if fnmatchcase(name, pattern)
        ]
        if len(told) > 1:
            raise GrowthError(f"{name}: named more than once in split= and heads=; leave one of them")
        if told:
            p, growth = named_parameters(model)[name], growths[name]
            found[name] = _parts(name, *told[0], growth, _output_dim(p.shape, growth, held[id(p)][0]))
    return found


def _output_dim(shape: Sequence[int], growth: Growth, module: Any) -> int:
    """Return which of the last two dimensions of a parameter is fan_out."""
    fan_out, fan_in = growth.shape
    if len(shape) > 2 and isinstance(module, _ConvNd):
        return -2
    if tuple(shape[-2:]) == (fan_out, fan_in) and fan_out != fan_in:
        return -2
    stored_in_out = is_conv1d(module) or getattr(module, "is_transposed", False) is True
    return -1 if stored_in_out or fan_out != fan_in else -2


def _parts(name: str, argument: str, wanted: Any, growth: Growth, dim: int) -> Parts:
    (rows, _), (base_rows, _) = growth.shape, growth.base_shape
    if argument == "heads":
        if not isinstance(wanted, int) or wanted < 1 or rows % wanted or base_rows % wanted:
            raise GrowthError(
                f"{name}: heads={wanted!r}: {wanted} features per head do not divide its {rows} rows and the "
                f"base's {base_rows}; if heads grow with the width, give their number as split="
            )
        count = rows // wanted
        return Parts(count, dim, (_part(growth, wanted, wanted),) * count)
    if isinstance(wanted, int):
        if wanted < 1 or rows % wanted or base_rows % wanted:
            raise GrowthError(
                f"{name}: split={wanted!r} does not divide its {rows} rows and the base's {base_rows}; check split="
            )
        return Parts(wanted, dim, (_part(growth, rows // wanted, base_rows // wanted),) * wanted)
    sizes = tuple(wanted) if isinstance(wanted, Sequence) and all(isinstance(s, int) and s > 0 for s in wanted) else ()
    if sum(sizes) != rows:
        raise GrowthError(f"{name}: split={wanted!r} does not add up to its {rows} rows; check split=")
    return Parts(sizes, dim, tuple(_part(growth, size, base_rows * size / rows) for size in sizes))


def _part(growth: Growth, rows: int, base_rows: float) -> Growth:
    return replace(growth, shape=(rows, growth.shape[1]), base_shape=(base_rows, growth.base_shape[1]))  # type: ignore[arg-type]
