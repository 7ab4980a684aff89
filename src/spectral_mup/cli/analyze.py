"""What analyze.py does: gather the runs of a sweep and judge them. Imports pandas only when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_mup.cli.main import CHECK_FAILED, OK, command
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
    from spectral_mup.analysis.report import along, report, report_joint, text
    from spectral_mup.runs.provenance import commit

    s = config.sweep
    sizes, base = {"width": s.width, "depth": s.depth}, {"width": s.base_width, "depth": s.base_depth}
    base = {axis: size if size in sizes[axis] else min(sizes[axis]) for axis, size in base.items()}
    axes = [axis for axis in sizes if len(sizes[axis]) > 1] or ["width"]
    points, norms = collect(plan.curves, runs)
    if list(points["status"]).count("missing") == len(points):
        raise ConfigError(f"sweep={s.name}: no run is done under {runs}/; train first: {command('launch.py', argv)}")
    folder = Path(config.paths.results) / s.name
    verdicts: list[Any] = []
    for axis in axes:
        other, below = "depth" if axis == "width" else "width", "/depth" if axis != axes[0] else ""
        mine = along(points, axis, base)
        if len(axes) > 1:
            print(f"Over {axis}, at {other} {base[other]}{': nothing begun yet' if mine.empty else ''}")
        if mine.empty:
            continue
        found = report(
            mine,
            norms,
            name=s.name + below,
            out_dir=f"{folder}{below}",
            base_width=base["width"],
            base_depth=base["depth"],
            command=command("analyze.py", argv),
            commit=commit(),
            axis=axis,
        )
        print(text(found) + "\n" * (len(axes) > 1))
        verdicts += found
    if len(axes) > 1:
        print(report_joint(points, base, folder))
    later = sweep.remaining_curves(plan)
    if plan.todo or later:
        print(f"Not finished: {len(plan.todo)} runs to do, {later} curves not begun; {command('launch.py', argv)} goes on.")
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
        said = f"{wrong[0]} does not go with it" if wrong else "no folder given"
        raise ConfigError(f"--summary: {said}; give a folder of results, as in --summary results/mini/width")
    from spectral_mup.analysis import summary

    sweeps, absent = summary.summarize(argv[0], argv[1:])
    print(summary.text(sweeps, absent))
    print(f"Figure and tables: {Path(argv[0])}/summary.*")
    held = not absent and all(as_claimed(r.verdicts) and not sum(v.counts["missing"] for v in r.verdicts) for r in sweeps)
    return OK if held or not check else CHECK_FAILED
