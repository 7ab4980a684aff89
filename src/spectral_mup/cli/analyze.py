"""The command `analyze`: collect the runs of a sweep and judge them. Imports pandas only where it is needed."""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from spectral_mup.analysis.figures import FIGURES, choose_figures
from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.cli.context import CHECK_FAILED, OK, SCRIPTS, Context
from spectral_mup.cli.names import FLAGS, check_name, context_of, keep_name
from spectral_mup.cli.screen import show
from spectral_mup.config.compose import load_config
from spectral_mup.config.schema import FiguresConfig
from spectral_mup.errors import ConfigError
from spectral_mup.runs.provenance import PACKAGE, code_of, commit
from spectral_mup.runs.results import file_state
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.search.plan import ALPHA, Plan
from spectral_mup.util.files import read_cache, write_cache
from spectral_mup.util.system import own_cores
from spectral_mup.util.text import pluralize

PAGE = "report.html"  # in the folder of a sweep's results
CODE = (".py", ".html", ".css", ".js")  # suffixes of the package's files that a report depends on
OF_THE_SWEEP = ("model", "optimizer", "rule", "data", "train", "probe", "lr", "verdict", "sweep")  # parts of the config


def analyze(argv: list[str], check: bool, program: str = SCRIPTS) -> int:
    """Collect, judge, draw; return the exit code, with `check` CHECK_FAILED unless all is as claimed and no run is missing.

    As claimed: every rule but the controls transfers, no feature fails, and one code has trained all runs. If nothing has
    changed since the last time, the files stay as they are, and the screen shows the same again.
    """
    context = context_of(argv, program, FLAGS)
    check_figures(context.config.figures)
    check_name(context)
    plan, memory, inputs = context.plan, context.cache / "report", inputs_of(context)
    found: dict[str, Any] = read_cache(memory) or {}
    if inputs is None or found.get("inputs") != inputs or any(file_state(f) != state for f, state in found["files"].items()):
        found = judge_and_draw(context) | {"inputs": inputs}
        context.results.save()
        write_cache(memory, found)
    show(found["screen"])
    left = ((len(plan.todo), "run", "to do"), (context.later_curves, "curve", "still to be planned"))
    missing = ", ".join(f"{pluralize(n, noun)} {state}" for n, noun, state in left if n)
    if missing:
        print(f"Not finished: {missing}. Resume with: {context.launch_command()}")
    folder = Path(context.config.paths.results) / context.config.sweep.name
    print(f"Report: {folder / PAGE}; figures and tables: {folder}/")
    return OK if not check or found["as_claimed"] and not missing else CHECK_FAILED


def check_figures(figures: FiguresConfig) -> None:
    """Raise ConfigError about an unknown figure, font or style; matplotlib is imported only if the latter two are set."""
    choose_figures(figures.only)
    usual = Printing()
    if (figures.font, figures.style) != (usual.font, usual.style):
        with Printing.of(figures).context():
            pass


def inputs_of(context: Context) -> str | None:
    """Return a digest of all that a report depends on; None where that is unknown, as with a style of the user's own."""
    if context.config.figures.style or not set(context.config.figures.only or ()) <= set(FIGURES):
        return None
    code = [path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.*")) if path.suffix in CODE]
    versions = [sys.version, *map(metadata.version, ("jinja2", "matplotlib", "numpy", "pandas", "scipy"))]
    curves = [(asdict(curve), [run.run_id for run in runs]) for curve, runs in context.plan.curves.items()]
    command = [context.config.model_dump_json(), context.whole_command("analyze"), commit(), list(FIGURES)]
    return hashlib.sha256(json.dumps([code, versions, curves, command, context.results.states()]).encode()).hexdigest()


def judge_and_draw(context: Context) -> dict[str, Any]:
    """Write the results; return what the screen shows, whether all is as claimed, and the state of the files.

    Each key and axis is judged into its folder (see Sweep.parts).
    """
    check_name(context)
    s, results, plan = context.config.sweep, Path(context.config.paths.results), context.plan
    verdicts, lines, folders, codes = [], [], [], trained_by(context)
    for tuned in s.tune:
        if len(s.tune) > 1:
            lines.append(_format_turns(plan, tuned))
        if curves := plan.judged(tuned):
            found, said, written = judge_tuned(context, curves, tuned, codes)
            verdicts += found
            lines += said
            folders += written
    if not folders:
        raise ConfigError(f"sweep={s.name}: no run is done under {context.runs}/; train first: {context.launch_command()}")
    keep_name(context, launched=False)
    write_report_page(context, folders)
    places = dict.fromkeys([s.name, *folders])
    states = {str(path): file_state(path) for name in places for path in (results / name).glob("*.*")}
    lines += (several := format_codes(codes))
    return {"screen": "\n".join(lines), "as_claimed": as_claimed(verdicts) and not several, "files": states}


def write_report_page(context: Context, folders: Sequence[str]) -> None:
    """Write the one page that shows all these folders of results, which are named relative to paths.results."""
    from spectral_mup.analysis.page.formula import formula
    from spectral_mup.analysis.page.write import About, write_page

    config, s, results = context.config, context.config.sweep, Path(context.config.paths.results)
    width, depth = max(s.width), max(s.depth)
    grown = (width, depth) != (s.base_width, s.base_depth)
    runs = [context.sweep.run(Curve(rule, width, depth), s.lr[0], s.seed[0]) for rule in config.rule] if grown else []
    plain = {part: values for part, values in config.model_dump().items() if part in OF_THE_SWEEP}
    about = About(
        name=s.name, launch=context.whole_command("launch"), config=yaml.safe_dump(plain, sort_keys=False, allow_unicode=True),
        formulas=[formula(run) for run in runs], labels=config.figures.labels,
        hours=hours_of(context, [run for run in context.plan.runs if context.results.of(run)]),
    )  # fmt: skip
    chosen = choose_figures(config.figures.only)
    write_page(results / s.name / PAGE, [results / name for name in folders], chosen, about)


def trained_by(context: Context) -> dict[str, str]:
    """Return {run id: code that trained it}, of runs that have ended and whose code is known."""
    ended = [run.run_id for run in context.plan.runs if context.results.of(run)]
    codes = {run_id: code_of(RunFolder(context.runs, run_id).peek("provenance.json")) for run_id in ended}
    return {run_id: code for run_id, code in codes.items() if code}


def format_codes(codes: Mapping[str, str]) -> list[str]:
    """Return a note, line by line, if runs that are judged together were trained by different code."""
    by_code: dict[str, list[str]] = {}
    for run_id, code in codes.items():
        by_code.setdefault(code, []).append(run_id)
    if len(by_code) < 2:
        return []
    lines = [f"  {pluralize(len(ids), 'run')}, as {ids[0]}: {code}" for code, ids in by_code.items()]
    return ["note: these runs were not trained by one code; to train some again, move their folders away:", *lines]


def _format_turns(plan: Plan, tuned: str) -> str:
    """Return where a key was found at the base, turn by turn, and what is held for its verdicts."""
    turns = [f"2^{plan.found[c]:g} ({c.held_text})" for c in plan.turns if c.tuned == tuned and c in plan.found]
    held = next((f"; held: {curve.held_text}" for curve in plan.judged(tuned)), "")
    return f"{tuned}, by turns at the base: {', '.join(turns) or 'not found yet'}{held}"


def judge_tuned(
    context: Context, curves: Mapping[Curve, Sequence[RunConfig]], tuned: str, codes: Mapping[str, str]
) -> tuple[list[Any], list[str], list[str]]:
    """Judge one key over every axis; return the verdicts, lines for the screen, and the folders written, below paths.results.

    Where several axes vary, each is judged at the base of the others.
    """
    from spectral_mup.analysis.collect import collect, norm_reader
    from spectral_mup.analysis.report import format_verdicts, norms_to_judge, of_rules, points_along, report, report_joint

    results, base, axes = Path(context.config.paths.results), context.sweep.base, context.sweep.axes
    points = collect(curves, context.results)
    runs = {run.run_id: run for of_curve in curves.values() for run in of_curve}
    read_norms = norm_reader(list(runs.values()), context.runs)
    if set(points["status"]) == {"missing"}:
        return [], [f"{tuned}: no run is done yet"], []
    on_axes = {axis: points_along(points, axis, base) for axis in axes}
    norms = read_norms(set().union(*(norms_to_judge(p, read_norms, axis, base[axis]) for axis, p in on_axes.items())))
    figures = context.config.figures
    drawing: Any = {"figures": figures.only, "printing": Printing.of(figures), "processes": own_cores()}
    judging: Any = {"tolerance": context.config.verdict.slope, "regret_limit": context.config.verdict.regret}
    judging |= {"alpha": ALPHA} if context.config.lr.adaptive else {}
    name, parts = context.config.sweep.name, context.sweep.parts
    places = {axis: Path(name, parts[tuned, axis]).as_posix() for axis in axes}
    verdicts, lines, folders = [], [], []
    for axis, on_axis in on_axes.items():
        if len(axes) > 1:
            others = ", ".join(f"{other.replace('_', ' ')} {base[other]}" for other in axes if other != axis)
            lines.append(f"Over {axis.replace('_', ' ')}, at {others}{': no runs yet' if on_axis.empty else ''}")
        if not on_axis.empty:
            folders.append(places[axis])
            ended = set(on_axis["run_id"].where(on_axis["status"] != "missing").dropna())
            hours = hours_of(context, [runs[run_id] for run_id in ended])
            found = report(
                on_axis, norms, name=folders[-1], out_dir=results / folders[-1], base=base, axis=axis,
                command=context.whole_command("analyze"), commit=commit(), train_hours=hours,
                codes=sorted({codes[run_id] for run_id in ended if run_id in codes}), **drawing, **judging,
            )  # fmt: skip
            lines.append(format_verdicts(found) + "\n" * (len(axes) > 1))
            verdicts += found
    if {"width", "depth"} <= {*axes}:
        of_models = [v for v in verdicts if v.axis in ("width", "depth")]
        lines.append(report_joint(of_rules(points), norms, of_models, base, results / places[axes[0]], **drawing))
    return verdicts, lines, folders


def hours_of(context: Context, runs: Iterable[RunConfig]) -> float | None:
    """Return the hours for which these runs were trained, None where they are not known of each."""
    seconds = [context.results.seconds(run) for run in runs]
    return round(sum(seconds) / 3600, 4) if all(seconds) else None


def as_claimed(verdicts: Sequence[Any]) -> bool:
    """Return whether every rule but the controls transfers and no feature fails.

    Only width and depth count, as no rule claims anything over steps or batch size.
    """
    claims = [v for v in verdicts if v.axis in ("width", "depth") and not v.is_control]
    kept = [v.verdict == "transfers" and (v.features is None or v.features.passed is not False) for v in claims]
    return bool(kept) and all(kept)


def summarize(argv: list[str], check: bool) -> int:
    """Set the sweeps analysed below a folder side by side; return the exit code, with `check` as in `analyze` over all."""
    own = [a for a in argv if a.startswith("figures.")]
    argv = [a for a in argv if a not in own]
    wrong = [a for a in argv if "=" in a or a.startswith("-")]
    if not argv or wrong:
        problem = f"{wrong[0]} cannot be combined with it, only keys of figures" if wrong else "no folder given"
        raise ConfigError(f"--summary: {problem}; give a folder of results, as in --summary results/mini/width")
    from spectral_mup.analysis import summary

    sweeps, absent, left = summary.summarize(argv[0], argv[1:], Printing.of(load_config(own).figures))
    show(summary.format_summary(sweeps, absent))
    if left:
        print(f"Not in the forest plot: {pluralize(left, 'published slope')} of sweeps that are not here")
    print(f"Figures and tables: {Path(argv[0])}/forest.*, transfer*.* and summary*.*")
    whole = (len(r.codes) < 2 and not sum(v.counts["missing"] for v in r.verdicts) for r in sweeps)
    held = not absent and all(as_claimed(r.verdicts) for r in sweeps) and all(whole)
    return OK if held or not check else CHECK_FAILED
