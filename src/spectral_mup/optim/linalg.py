"""Linear algebra over stacks of matrices (..., fan_out, fan_in)."""

import torch
from torch import Tensor

# Quintic of Keller Jordan's Muon: steep at 0, so that five steps bring singular values of a normalised matrix near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

# Side up to which eigenvectors of matrices on a GPU are taken by the CPU. An estimate, not measured: in float64 a GPU takes a
# batch one matrix after the other, each in many small kernels, some milliseconds whatever its size, as LAPACK does at 256.
CPU_EIGH_SIDE = 256


def newton_schulz(matrix: Tensor, steps: int = 5, eps: float = 1e-7, dtype: torch.dtype | None = None) -> Tensor:
    """Approximate the polar factor of each matrix: X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, from X = M/(‖M‖_F + eps).

    Shapes (..., out, in) to (..., out, in), computed and returned in `dtype` (default: that of the input).
    After five steps singular values lie in about 0.7 … 1.2 (github.com/KellerJordan/Muon).
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.to(dtype or matrix.dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + eps)
    flat = x.reshape(-1, *x.shape[-2:])
    # A CPU multiplies one matrix up to a fifth sooner than a batch of one.
    flat, addmm = (flat[0], torch.addmm) if len(flat) == 1 else (flat, torch.baddbmm)
    for _ in range(steps):
        gram = flat @ flat.mT
        flat = addmm(flat, addmm(gram, gram, gram, beta=b, alpha=c), flat, beta=a)
    return (flat.mT.contiguous() if tall else flat).reshape(matrix.shape)


def spectral_norm(matrix: Tensor, steps: int = 12) -> Tensor:
    """Estimate ‖M‖₂ of each matrix by power iteration on the smaller Gram side, shape (..., out, in) to (...).

    The start is the row of largest norm, never orthogonal to the top singular vector in practice. A vector is its own norm.
    The error is one-sided (never above the true norm) and mostly below 1 % for updates in training. Not always: in Adam's first
    step all rows have one norm, and that taken may be nearly orthogonal to the top singular vector, which once left 10 %.
    """
    if matrix.size(-1) == 1 or matrix.size(-2) == 1:
        return matrix.flatten(-2).norm(dim=-1)
    m = matrix if matrix.size(-2) >= matrix.size(-1) else matrix.mT
    rows = m.norm(dim=-1)
    v = m.gather(-2, rows.argmax(-1)[..., None, None].expand(*m.shape[:-2], 1, m.size(-1))).mT
    tiny = torch.finfo(m.dtype).tiny
    for _ in range(steps):
        v = m.mT @ (m @ v)
        v = v / v.norm(dim=-2, keepdim=True).clamp_min(tiny)
    return (m @ v).norm(dim=(-2, -1))


def spectral_norms(matrices: list[Tensor]) -> list[float]:
    """Estimate ‖M‖₂ of each of many matrices (fan_out, fan_in), those of equal shape in one power iteration."""
    norms = [0.0] * len(matrices)
    for shape in {m.shape for m in matrices}:
        same_shape = [i for i, m in enumerate(matrices) if m.shape == shape]
        for i, norm in zip(same_shape, spectral_norm(torch.stack([matrices[i] for i in same_shape])).tolist(), strict=True):
            norms[i] = norm
    return norms


def eigh_device(side: int, device: torch.device) -> torch.device:
    """Choose where eigenvectors of matrices on `device` are computed: there, or on the CPU up to a side of CPU_EIGH_SIDE."""
    return torch.device("cpu") if side <= CPU_EIGH_SIDE else device


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (..., n), ascending, and eigenvectors (..., n, n) of symmetric matrices, in float64.

    Both are NaN for a matrix that is not finite: LAPACK raises on it, but a diverged run is a result and no error.
    """
    finite = matrix.isfinite().all(-1).all(-1)
    masked = torch.where(finite[..., None, None], matrix.double(), 0.0)
    solved = torch.linalg.eigh(masked.to(eigh_device(matrix.size(-1), matrix.device)))
    values, vectors = (t.to(matrix.device) for t in solved)
    return torch.where(finite[..., None], values, torch.nan), torch.where(finite[..., None, None], vectors, torch.nan)


def damped_power(matrix: Tensor, exponent: float, damping: float) -> Tensor:
    """Return (M + damping·λ_max·I)^exponent of symmetric positive semidefinite M (..., n, n), by eigh in float64; 0 for M = 0.

    Damping is relative to each matrix's largest eigenvalue: at 1e-10 the rounding of float32 statistics comes through, so 1e-6.
    """
    values, vectors = eigh(matrix)
    largest = values[..., -1:]
    powers = torch.where(largest == 0, 0.0, (values.clamp_min(0.0) + damping * largest) ** exponent)
    return ((vectors * powers[..., None, :]) @ vectors.mT).to(matrix.dtype)
