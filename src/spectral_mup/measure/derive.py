"""The size law of any optimizer, measured on a family of the package or on your own models, in the form `scale` takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from spectral_mup import data
from spectral_mup.config.optimizer_spec import Algorithm, OptimizerSpec, resolve_rule
from spectral_mup.measure.directions import DeriveError, LadderModel, measure_directions
from spectral_mup.measure.size_law_fit import SizeLaw, size_laws
from spectral_mup.runs.run_config import RunConfig
from spectral_mup.scaling.forward_multipliers import set_multipliers_
from spectral_mup.scaling.groups import make_optimizers
from spectral_mup.scaling.init import init_
from spectral_mup.scaling.run_scaling import scale_on_meta
from spectral_mup.scaling.scale import scale
from spectral_mup.theory.growth import KINDS
from spectral_mup.training.text import logits_loss, sampled_text_loss, text_batches, text_loss
from spectral_mup.training.trainer import Batch, SampledLoss, Trainer, own_loss


@dataclass(frozen=True)
class Derived(OptimizerSpec):
    """An optimizer by what was measured of it: `scale`, `make_optimizers` and `check_features` take it as they take a name."""

    measured: SizeLaw = field(kw_only=True, repr=False)

    @property
    def text(self) -> str:
        """Slope and interval of each kind of tensor, the law nearest to them, what was rejected, and whether it can be told."""
        from spectral_mup.measure.size_law_report import format_size_laws

        return format_size_laws([self.measured])

    def __str__(self) -> str:
        return self.text


def derive(
    optimizer: Callable[..., torch.optim.Optimizer],
    build: Callable[[int], nn.Module],
    widths: Sequence[int],
    *,
    batch: Callable[[int, int], Batch],
    loss: Callable[[Any, Any], Tensor] = own_loss,
    sampled_loss: SampledLoss | None = None,
    residual_blocks: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    steps: int = 12,
    seeds: Sequence[int] = (0, 1),
    update: float = 0.05,
) -> Derived:
    """Measure how the spectral norm of an optimizer's direction grows with width, without knowing the optimizer.

    Every update is rescaled to what the spectral condition asks (arXiv 2310.17813, directions.py), so no lr need be known.
    Slopes are of the steps from 8 on. One run with a larger init separates laws that agree under the ladder's; where several
    fit all the same, all are named (`measured.also`). ε is not measured: give `eps` to param_groups where it is not tiny.

    Args:
        optimizer: Its class, or any function of (groups, lr=...), as functools.partial(torch.optim.SGD, momentum=0.9).
        build: Width to a fresh model.
        widths: Three or more, better four; the smallest is the base.
        batch: (seed, step) to a dict or tuple for the model.
        loss: (model, batch) to a scalar; default: what transformers' models put out.
        sampled_loss: For optimizers that use sampled labels (Sophia), see Trainer.
        residual_blocks: As for `scale`.
        embeddings: As for `scale`.
        steps: Length of every training.
        seeds: One training per width and seed.
        update: Size of every step, as a share of the weight's norm in the base.

    Returns:
        The optimizer as `scale`, `make_optimizers` and `check_features` take it; printing it shows what was measured.

    Raises:
        DeriveError: `optimizer` cannot be called, its step fails, or nothing can be learned from the ladder.
        ValueError: Sampled labels are needed and `sampled_loss` is missing; or as for `scale`.
    """
    if not callable(optimizer):
        given = repr(optimizer).replace("\n", " ")
        raise DeriveError(f"optimizer={given}: give its class, or any function of (groups, lr=...), as torch.optim.AdamW")
    name = getattr(optimizer, "__name__", getattr(getattr(optimizer, "func", None), "__name__", type(optimizer).__name__))
    unknown = OptimizerSpec(name, dict.fromkeys(KINDS, Algorithm(name, optimizer)))

    def ladder_model(width: int) -> LadderModel:
        scaling = scale(
            build(width), base, optimizer=unknown, rule="spectral", residual_blocks=residual_blocks,
            embeddings=embeddings, wider=wider,
        )  # fmt: skip

        def trainer(seed: int, loss_scale: float) -> Trainer:
            torch.manual_seed(seed)
            model = build(width)
            set_multipliers_(model, scaling)
            init_(model, scaling, seed=seed)
            optimizers = make_optimizers(model, scaling, lr=1.0)
            batches, scaled = (lambda step: [batch(seed, step)]), _times(loss_scale, loss, sampled_loss)
            return Trainer(model, optimizers, batches, scaled[0], sampled_loss=scaled[1])

        return LadderModel(width, scaling, trainer)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])
        base, wider = build(min(widths)), build(max(widths))
        ladder = [ladder_model(width) for width in sorted(widths)]
        (found,) = size_laws(measure_directions(ladder, seeds=seeds, steps=steps, update=update))
    by_kind = {kind: Algorithm(name, optimizer, found.exponents.get(kind, found.exponents["hidden"])) for kind in KINDS}
    return Derived(name, by_kind, measured=found)


def measure_family(
    run: RunConfig,
    corpus: data.Corpus,
    *,
    widths: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    update: float,
    on_run: Callable[[int, int, float], None] = lambda done, total, seconds: None,
) -> list[dict[str, Any]]:
    """Return rows of measure_directions for the optimizer of a run config, on its family and text; the first width is the base.

    The hidden side of the MLP stays as wide as in the base model: so some hidden matrices grow in both dims, some in one.
    """
    by_kind = {kind: replace(a, update_norm={}, lr=1.0, lr_shape={}) for kind, a in run.optimizer.by_kind.items()}
    family = run.model.model_copy(update={"mlp_hidden": run.model.mlp_width(widths[0]), "mlp_ratio": None})
    loss = text_loss if family.ours else logits_loss
    blind = replace(
        run,
        model=family,
        base_width=widths[0],
        base_depth=run.depth,
        optimizer=OptimizerSpec(run.optimizer.name, by_kind),
        rule=resolve_rule("spectral"),  # whose init and forward pass the ladder has
    )

    def ladder_model(width: int) -> LadderModel:
        scaling = scale_on_meta(replace(blind, width=width), corpus.vocab_size)

        def trainer(seed: int, loss_scale: float) -> Trainer:
            torch.manual_seed(seed)
            model = family.build(corpus.vocab_size, width, run.depth)
            set_multipliers_(model, scaling)
            init_(model, scaling, seed=seed)
            batches = text_batches(corpus.train, seed, batch_size, family.context, range(1), 1, torch.device("cpu"))
            scaled = _times(loss_scale, loss, sampled_text_loss)
            return Trainer(model, make_optimizers(model, scaling, lr=1.0), batches, scaled[0], sampled_loss=scaled[1])

        return LadderModel(width, scaling, trainer)

    ladder = [ladder_model(width) for width in widths]
    return measure_directions(ladder, seeds=seeds, steps=steps, update=update, on_run=on_run)


def _times(
    factor: float, loss: Callable[[Any, Any], Tensor], sampled_loss: SampledLoss | None
) -> tuple[Callable[[Any, Any], Tensor], SampledLoss | None]:
    """Multiply both losses by a factor."""

    def scaled(model: Any, batch: Batch) -> tuple[Tensor, int]:
        assert sampled_loss is not None
        value, labels = sampled_loss(model, batch)
        return factor * value, labels

    return lambda model, batch: factor * loss(model, batch), None if sampled_loss is None else scaled
