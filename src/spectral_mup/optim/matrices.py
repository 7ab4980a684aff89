"""Parameters that are several matrices, or one of more than two dimensions: fused projections, heads, experts, convolutions.

Keys of a group that say what its parameters are:
    stacked: Of more than two dimensions. True: its last two are the matrix, those before count matrices, as experts (E, out,
        in); False: one matrix (out, rest), as the weight of a convolution.
    split: Number of equal parts, or their sizes, along the output dimension: consecutive rows that are a matrix of their own,
        as query, key and value of one projection, or heads.
    split_dim: The output dimension of a matrix: -2, or -1 where it is stored (in, out).
    split_lr: Lr of every part in units of the group's, where they differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MatrixView:
    """How parameters of one shape are read as matrices: `take` returns them, `put` is its inverse.

    Attributes:
        sizes: Of the parts along `dim`; empty where it is not split.
        lrs: Of the parts, by which `put` multiplies; empty: 1.
    """

    shape: tuple[int, ...]
    stacked: bool = False
    sizes: tuple[int, ...] = ()
    dim: int = -2
    lrs: tuple[float, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the parameter is one matrix already."""
        return len(self.shape) == 2 and len(self.sizes) < 2

    def take(self, stack: Tensor) -> dict[str, Tensor]:
        """Return {suffix of the state's names: matrices (N, out, in)} of a stack (n, *shape): one entry per size of parts.

        N = n · parts of this size · stacked matrices, in this order.
        """
        if self.plain:
            return {"": stack}
        matrices = self._matrices(stack)
        parts = matrices.split(self.sizes, self.dim) if self.sizes else (matrices,)
        by_size: dict[int, list[Tensor]] = {}
        for part in parts:
            by_size.setdefault(part.size(self.dim), []).append(part)
        suffix = (lambda size: f".{size}") if len(by_size) > 1 else (lambda size: "")
        joined = {size: same[0].unsqueeze(1) if len(same) == 1 else torch.stack(same, 1) for size, same in by_size.items()}
        return {suffix(size): t.flatten(0, 2) for size, t in joined.items()}

    def put(self, matrices: Mapping[str, Tensor], n: int) -> Tensor:
        """Return the stack (n, *shape) of matrices as `take` returns them, parts times their lr."""
        if self.plain:
            return matrices[""]
        sizes = self.sizes or (0,)
        by_size = {}
        for suffix, t in matrices.items():
            same = sizes.count(int(suffix[1:])) if suffix else len(sizes)
            by_size[suffix] = iter(t.unflatten(0, (n, same, -1)).unbind(1))
        parts = [next(by_size[f".{size}" if len(by_size) > 1 else ""]) for size in sizes]
        if self.lrs:
            parts = [part * lr for part, lr in zip(parts, self.lrs, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)).reshape(n, *self.shape)

    def _matrices(self, stack: Tensor) -> Tensor:
        """Return the unsplit matrices (n, stacked matrices, out, in)."""
        if self.stacked:
            return stack.flatten(1, -3)
        return stack.flatten(2).unsqueeze(1)


def matrix_view(shape: Sequence[int], group: Mapping[str, Any]) -> MatrixView:
    """Return the view that a group wants. Raises ValueError, whose message says what to change, on a shape that has none."""
    stacked, split, dim = group.get("stacked"), group.get("split"), group.get("split_dim", -2)
    if len(shape) < 2:
        raise ValueError("give vectors and other tensors to AdamW")
    if len(shape) > 2 and not isinstance(stacked, bool):
        raise ValueError(
            "set in its group stacked=True if its last two dimensions are matrices (experts), stacked=False if it is one "
            "matrix (out, rest) (a convolution), or give it to AdamW"
        )
    if dim not in (-2, -1) or dim == -1 and len(shape) > 2 and not stacked:
        raise ValueError(f"split_dim is -2, or -1 where matrices are stored (in, out), not {dim}")
    view = MatrixView(tuple(shape), bool(stacked) and len(shape) > 2, dim=dim)
    return view if split is None else MatrixView(view.shape, view.stacked, *_split(view, split, group.get("split_lr")))


def _split(view: MatrixView, split: Any, lrs: Any) -> tuple[tuple[int, ...], int, tuple[float, ...]]:
    """Return the sizes of the parts, their dimension and their lrs."""
    rows = view.shape[view.dim] if view.stacked or len(view.shape) == 2 else view.shape[0]
    if isinstance(split, int):
        sizes = (rows // split,) * split if split > 0 and rows % split == 0 else ()
    else:
        sizes = tuple(split) if isinstance(split, Sequence) and all(isinstance(s, int) and s > 0 for s in split) else ()
    if sum(sizes) != rows or not sizes:
        raise ValueError(
            f"its {rows} rows are not split={split!r}; give a number that divides them, or sizes that add up to them"
        )
    lrs = () if lrs is None else tuple(lrs)
    if lrs and len(lrs) != len(sizes):
        raise ValueError(f"split_lr has {len(lrs)} numbers for {len(sizes)} parts; give one for each")
    return sizes, view.dim, lrs
