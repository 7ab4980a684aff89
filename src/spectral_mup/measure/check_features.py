"""The feature check on models of one's own: train some steps at several widths, and see whether features move alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
from spectral_mup.util.text import table

PASSED, CHECK_FAILED = 0, 5  # exit codes, as those of analyze.py --check


@dataclass(frozen=True, eq=False)
class FeatureVerdict:
    """Slopes of every module's features against width under a rule and under a control that should fail.

    passed          all modules within their limit; neither undecided nor failed
    control_failed  the control failed or diverged: without that the check was too weak to tell
    """

    rule: str
    check: FeatureCheck
    control: str | None
    control_check: FeatureCheck | None
    control_failed: bool

    @property
    def passed(self) -> bool:
        return self.check.passed is True

    @property
    def exit_code(self) -> int:
        """0 if it passed and the control did not, else 5."""
        return PASSED if self.passed and (self.control is None or self.control_failed) else CHECK_FAILED

    @property
    def text(self) -> str:
        """A line a module: slope of log2 RMS of its features' change on log2 width, its 95 % interval, verdict, control."""
        control = {} if self.control_check is None else {r["name"]: r for r in _judged(self.control_check)}
        cells = [["features of", "kind", self.rule, "[95 %]", "limit", "verdict", *([self.control] if self.control else [])]]
        for r in _judged(self.check):
            cell = [r["name"], r["kind"], f"{r['slope']:+.2f}", f"[{r['lo']:+.2f}, {r['hi']:+.2f}]", f"±{r['limit']:.2f}"]
            other = control.get(r["name"])
            cells.append([*cell, r["verdict"], *([f"{other['slope']:+.2f}" if other else "–"] if self.control else [])])
        lines = table(cells)
        lines += [f"{self.rule}: {self.check.summary}"]
        if self.control:
            said = (
                "failed, as it should" if self.control_failed else "did not fail: a larger lr or wider models would tell more"
            )
            lines += [f"control {self.control}: {said}"]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text


def _judged(check: FeatureCheck) -> list[dict[str, Any]]:
    return [r for r in check.table.to_dict("records") if r["judged"] and r["quantity"] == "feature"]


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

    build         a fresh model of a width; the first of `widths` is the base
    lr            of the base, rather larger than one trains with: small steps show nothing
    batch         (seed, step) to a dict or tuple for the model: training sees the steps from 0, the features are of `steps`
    loss          (model, batch) to a scalar; default: what transformers' models put out
    sampled_loss  for optimizers that use sampled labels (Sophia), see Trainer

    Features are measured as RMS of the change of a module's output since init (coordinate check, arXiv 2203.03466); limits
    and intervals as in analysis/feature_check.py. A passed check does not prove that the lr transfers.
    """
    if len(set(widths)) < 2:
        raise ValueError(f"widths={list(widths)}: a slope needs two widths or more, as in widths=[64, 128, 256]")
    spec, sizes = resolve_optimizer(optimizer), sorted(set(widths))

    def train(rule: Rule, width: int, seed: int) -> tuple[list[dict[str, Any]], bool]:
        """Feature rows of one training, and whether its loss stopped being finite."""
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
        of_rule, _ = check(chosen)
        if control is None:
            return FeatureVerdict(chosen.name, of_rule, None, None, False)
        of_control, diverged = check(resolve_rule(control))
    return FeatureVerdict(chosen.name, of_rule, control, of_control, diverged or bool(of_control.failed))
