"""What analyze.py does: gather the runs of a sweep and judge them. Imports pandas only when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_mup.cli.main import CHECK_FAILED, OK, command
from spectral_mup.cluster.progress import pluralize
from spectral_mup.config.compose import ConfigError, load_config
from spectral_mup.runs.sweep import open_sweep, result_reader


def analyze(argv: list[str], check: bool) -> int:
    """Gather, judge, draw; with `check`, CHECK_FAILED unless every rule but the controls transfers and no feature fails.

    Where width and depth vary, each is judged at the other's base: width into the sweep's folder, depth into depth/ below it.
    """
    config = load_config(argv)
    sweep = open_sweep(config)
    runs = Path(config.paths.runs)
    plan = sweep.plan(result_reader(runs))

    from spectral_mup.analysis.collect import collect
    from spectral_mup.analysis.report import along, format_verdicts, report, report_joint
    from spectral_mup.runs.provenance import commit

    s = config.sweep
    sizes, base = {"width": s.width, "depth": s.depth}, {"width": s.base_width, "depth": s.base_depth}
    base = {axis: size if size in sizes[axis] else min(sizes[axis]) for axis, size in base.items()}
    axes = [axis for axis in sizes if len(sizes[axis]) > 1] or ["width"]
    points, norms = collect(plan.curves, runs)
    if list(points["status"]).count("missing") == len(points):
        raise ConfigError(f"sweep={s.name}: no run is done under {runs}/; train first: {command('launch.py', argv)}")
    folder, figures = Path(config.paths.results) / s.name, getattr(config, "figures", None)
    verdicts: list[Any] = []
    for axis in axes:
        other, below = "depth" if axis == "width" else "width", "/depth" if axis != axes[0] else ""
        part = along(points, axis, base)
        if len(axes) > 1:
            print(f"Over {axis}, at {other} {base[other]}{': no runs yet' if part.empty else ''}")
        if part.empty:
            continue
        own = report(
            part,
            norms,
            name=s.name + below,
            out_dir=f"{folder}{below}",
            axis=axis,
            base=base,
            command=command("analyze.py", argv),
            commit=commit(),
            figures=figures,
        )
        print(format_verdicts(own) + "\n" * (len(axes) > 1))
        verdicts += own
    if len(axes) > 1:
        print(report_joint(points, norms, verdicts, base, folder, figures))
    later = sweep.remaining_curves(plan)
    if plan.todo or later:
        left = ", ".join(pluralize(n, what) for n, what in ((len(plan.todo), "run"), (later, "curve")) if n)
        print(f"Not finished: {left} left; resume with {command('launch.py', argv)}")
    print(f"Figures and tables: {folder}/")
    if not check:
        return OK
    return OK if as_claimed(verdicts) and not plan.todo and not later else CHECK_FAILED


def as_claimed(verdicts: Sequence[Any]) -> bool:
    """Does every rule but the controls transfer, and no feature fail?"""
    claims = [v for v in verdicts if not v.rule.split()[-1].startswith("standard")]
    return bool(claims) and all(
        v.verdict == "transfers" and (v.features is None or v.features.passed is not False) for v in claims
    )


def summarize(argv: list[str], check: bool) -> int:
    """Set the sweeps analysed below a folder side by side; with `check`, CHECK_FAILED as in `analyze`, over all of them."""
    wrong = [a for a in argv if "=" in a or a.startswith("-")]
    if not argv or wrong:
        problem = f"{wrong[0]} cannot be combined with it" if wrong else "no folder given"
        raise ConfigError(f"--summary: {problem}; give a folder of results, as in --summary results/mini/width")
    from spectral_mup.analysis import summary

    sweeps, absent = summary.summarize(argv[0], argv[1:])
    print(summary.format_summary(sweeps, absent))
    print(f"Figure and tables: {Path(argv[0])}/summary.*")
    held = not absent and all(as_claimed(r.verdicts) and not sum(v.counts["missing"] for v in r.verdicts) for r in sweeps)
    return OK if held or not check else CHECK_FAILED
