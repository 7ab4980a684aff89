"""The feature check on your own models: train some steps at several widths, and see whether features move equally far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from spectral_mup.analysis.feature_check import FeatureCheck
from spectral_mup.analysis.feature_check import check_features as check_norms
from spectral_mup.config.optimizer_spec import OptimizerSpec, resolve_optimizer, resolve_rule
from spectral_mup.scaling.forward_multipliers import set_multipliers_
from spectral_mup.scaling.groups import make_optimizers
from spectral_mup.scaling.init import init_
from spectral_mup.scaling.scale import choose_rule, scale
from spectral_mup.theory.rules import Rule
from spectral_mup.training.probe import Probe
from spectral_mup.training.trainer import Batch, SampledLoss, Trainer, own_loss
from spectral_mup.util.text import html_table, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PASSED, CHECK_FAILED = 0, 5  # exit codes, as those of analyze.py --check


@dataclass(frozen=True, eq=False, repr=False)
class FeatureVerdict:
    """Slopes of every module's features against width under a rule and under a control that should fail. Prints as a table.

    Attributes:
        rule: Name of the rule.
        check: Slopes and verdicts under the rule.
        control: Name of the control; None: without one.
        control_check: Slopes and verdicts under the control.
        control_failed: The control failed or diverged: without that the check was too weak to tell.
    """

    rule: str
    check: FeatureCheck
    control: str | None
    control_check: FeatureCheck | None
    control_failed: bool

    @property
    def passed(self) -> bool:
        """Whether every module is within its limit, and none undecided."""
        return self.check.passed is True

    @property
    def exit_code(self) -> int:
        """0 if it passed and the control did not, else 5."""
        return PASSED if self.passed and (self.control is None or self.control_failed) else CHECK_FAILED

    @property
    def text(self) -> str:
        """One line per module: slope of log2 RMS of its features' change on log2 width, its 95 % interval, verdict, control."""
        return "\n".join([*table(self._cells), *self._notes])

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._cells, self._notes)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per module: name, kind, slope, lo, hi, limit, verdict, and with a control its slope and verdict."""
        columns = ["name", "kind", "slope", "lo", "hi", "limit", "verdict"]
        frame = pd.DataFrame(_judged(self.check), columns=columns)
        if self.control_check is None:
            return frame
        control = pd.DataFrame(_judged(self.control_check), columns=["name", "slope", "verdict"])
        return frame.merge(control, on="name", how="left", suffixes=("", "_of_control"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the features under the rule into `ax` and return it: see `plot_features`."""
        return plot_features(self, ax)

    @property
    def _cells(self) -> list[list[str]]:
        control = {} if self.control_check is None else {r["name"]: r for r in _judged(self.control_check)}
        cells = [["features of", "kind", self.rule, "[95 %]", "limit", "verdict", *([self.control] if self.control else [])]]
        for r in _judged(self.check):
            cell = [r["name"], r["kind"], f"{r['slope']:+.2f}", f"[{r['lo']:+.2f}, {r['hi']:+.2f}]", f"±{r['limit']:.2f}"]
            other = control.get(r["name"])
            cells.append([*cell, r["verdict"], *([f"{other['slope']:+.2f}" if other else "–"] if self.control else [])])
        return cells

    @property
    def _notes(self) -> list[str]:
        failed = "failed, as it should" if self.control_failed else "did not fail: a larger lr or wider models would tell more"
        return [f"{self.rule}: {self.check.summary}", *([f"control {self.control}: {failed}"] if self.control else [])]


def _judged(check: FeatureCheck) -> list[dict[str, Any]]:
    return [r for r in check.table.to_dict("records") if r["judged"] and r["quantity"] == "feature"]


def plot_features(check: FeatureVerdict | FeatureCheck, ax: Axes | None = None) -> Axes:
    """Draw the change of features against width, one line per module, relative to the smallest width.

    The legend has the slopes; the band is that of hidden modules that pass, dotted that of embedding and readout.

    Args:
        check: What `check_features` returned; of its control, `check.control_check`.
        ax: Axes to draw into; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: `check` is anything else.
    """
    from spectral_mup.analysis.figures.feature_norms import draw_features  # matplotlib: only where something is drawn
    from spectral_mup.analysis.figures.style import new_axes

    of_rule = check.check if isinstance(check, FeatureVerdict) else check
    if not isinstance(of_rule, FeatureCheck):
        raise ValueError(f"check: a {type(check).__name__}; give what check_features returned")
    ax = new_axes() if ax is None else ax
    draw_features(ax, of_rule)
    return ax


def check_features(
    build: Callable[[int], nn.Module],
    widths: Sequence[int],
    optimizer: str | OptimizerSpec = "adamw",
    *,
    lr: float,
    batch: Callable[[int, int], Batch],
    loss: Callable[[Any, Any], Tensor] = own_loss,
    sampled_loss: SampledLoss | None = None,
    rule: str | Rule = "auto",
    residual_blocks: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    linear_out_in: Sequence[str] = (),
    linear_in_out: Sequence[str] = (),
    steps: int = 10,
    seeds: Sequence[int] = (0, 1),
    control: str | None = "standard",
) -> FeatureVerdict:
    """Train `build(width)` for some steps under the rule and the control, and fit each module's features against width.

    Features are measured as RMS of the change of a module's output since init (coordinate check, arXiv 2203.03466); limits
    and intervals as in analysis/feature_check.py. A passed check does not prove that the lr transfers.

    Args:
        build: Width to a fresh model.
        widths: Two or more; the smallest is the base.
        optimizer: As for `scale`.
        lr: Of the base, rather larger than one trains with: small steps show nothing.
        batch: (seed, step) to a dict or tuple for the model: training sees the steps from 0, the features are of `steps`.
        loss: (model, batch) to a scalar; default: what transformers' models put out.
        sampled_loss: For optimizers that use sampled labels (Sophia), see Trainer.
        rule: As for `scale`, as are the next four.
        residual_blocks: Prefixes of blocks.
        embeddings: Bare parameters that are looked up or added.
        linear_out_in: Bare parameters stored (out, in).
        linear_in_out: Bare parameters stored (in, out).
        steps: Length of every training.
        seeds: One training per width and seed.
        control: A rule that should fail; None: without one.

    Returns:
        The verdict on every module, under the rule and the control.

    Raises:
        ValueError: There are fewer than two widths, or lr is not above 0; or as for `scale`.
    """
    if not lr > 0:
        raise ValueError(f"lr={lr!r}: give a number above 0")
    if len(set(widths)) < 2:
        raise ValueError(f"widths={list(widths)}: a slope needs two widths or more, as in widths=[64, 128, 256]")
    spec, sizes = resolve_optimizer(optimizer), sorted(set(widths))

    def train(rule: Rule, width: int, seed: int) -> tuple[list[dict[str, Any]], bool]:
        """Return the feature rows of one training, and whether its loss stopped being finite."""
        torch.manual_seed(seed)
        model = build(width)
        scaling = scale(
            model,
            base,
            optimizer=spec,
            rule=rule,
            residual_blocks=residual_blocks,
            embeddings=embeddings,
            linear_out_in=linear_out_in,
            linear_in_out=linear_in_out,
            wider=wider,
        )
        set_multipliers_(model, scaling)
        init_(model, scaling, seed=seed)
        optimizers = make_optimizers(model, scaling, lr=lr)
        trainer = Trainer(model, optimizers, lambda step: [batch(seed, step)], loss, sampled_loss=sampled_loss)
        fixed, rows = batch(seed, steps), []
        probe = Probe(model, lambda: loss(model, fixed), scaling)
        while trainer.step_number < steps:
            if not bool(trainer.step().isfinite()):
                return rows, True
            if trainer.step_number in (1, steps):
                key = {"width": width, "seed": seed, "log2_lr": math.log2(lr)}
                rows += [key | row for row in probe.feature_rows(trainer.step_number)]
        return rows, False

    def check(rule: Rule) -> tuple[FeatureCheck, bool]:
        runs = [train(rule, width, seed) for width in sizes for seed in seeds]
        rows = pd.DataFrame([row for of_run, _ in runs for row in of_run])
        return check_norms(rows, math.log2(lr), sizes=sizes), any(diverged for _, diverged in runs)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])
        base, wider = build(sizes[0]), build(sizes[-1])
        chosen = choose_rule(rule, base)
        of_rule, diverged = check(chosen)
        if diverged:
            of_rule = replace(of_rule, passed=None, summary="not decided: a loss stopped being finite; give a smaller lr")
        if control is None:
            return FeatureVerdict(chosen.name, of_rule, None, None, False)
        of_control, diverged = check(resolve_rule(control))
    return FeatureVerdict(chosen.name, of_rule, control, of_control, diverged or bool(of_control.failed))
