"""Draw the weights of a model: one draw for sweeps, derive, check_features and a user's own models."""

from collections.abc import Mapping

import torch
from torch import nn

from spectral_mup.optim.stacks import shard_like
from spectral_mup.scaling.base_std import base_init_std
from spectral_mup.scaling.groups import check_shapes
from spectral_mup.scaling.inspect import is_vector, owners
from spectral_mup.scaling.scale import ModelScaling
from spectral_mup.util.seeds import seed_of


@torch.no_grad()
def init_(
    model: nn.Module,
    scaling: ModelScaling,
    *,
    std: float | Mapping[str, float | None] | None = None,
    biases: bool = True,
    seed: int | None = None,
) -> None:
    """Re-initialise every weight from a zero-mean normal with std base_std · Scaling.init_std.

    Idempotent for a given seed. Gains, constants, frozen parameters and what the base starts at values that are no independent
    sample of mean zero stay as built; a padding_idx row is 0. A draw depends on the seed, the tensor's name and shape alone, so
    it is the same on every device, in whatever order and however the tensor is sharded.

    Args:
        model: The module that was scaled.
        scaling: What `scale` returned.
        std: Of the base model's weights: a number, or {kind: number, or None for fan_in^-1/2}; by default as measured in
            `base`, or on the meta device config.initializer_range, or fan_in^-1/2 (1 for embeddings).
        biases: Biases that torch drew at ±fan_in^-1/2 start at every width with the base's std (arXiv 2203.03466, Table 3);
            False: as built.
        seed: Default: that of torch.manual_seed.

    Raises:
        ValueError: The model is on the meta device, or not the one that was scaled, or a tensor to draw is complex.
    """
    parameters = check_shapes(model, scaling)
    if any(p.is_meta for p in parameters.values()):
        raise ValueError("model: is on the meta device, so it has no values; call model.to_empty(device='cpu') before init_")
    seed, held = torch.initial_seed() if seed is None else seed, owners(model)
    for name, p in parameters.items():
        base = _base_std(scaling, name, std)
        if base is None or not p.requires_grad or (is_vector(p.shape, scaling.growths[name]) and not biases):
            continue
        if p.is_complex():
            raise ValueError(f"{name}: is complex, but init_ draws real numbers; make its real and imaginary part parameters")
        generator = torch.Generator().manual_seed(seed_of(seed, name))
        draw = torch.randn(p.shape, generator=generator).mul_(base * scaling[name].init_std)
        for module in held[id(p)]:
            if getattr(module, "padding_idx", None) is not None:
                draw[module.padding_idx] = 0.0
        p.copy_(shard_like(draw.to(p.device, p.dtype), p))


def _base_std(scaling: ModelScaling, name: str, std: float | Mapping[str, float | None] | None) -> float | None:
    """Return the init std of the tensor in the base model; None: it stays as built."""
    measured = scaling.base_std[name]
    if std is None or measured is None or is_vector(scaling.shapes[name], scaling.growths[name]):
        return measured
    return base_init_std(scaling.growths[name], std) if isinstance(std, Mapping) else std
