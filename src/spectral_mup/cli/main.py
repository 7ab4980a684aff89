"""What launch.py does, and what it shares with analyze.py. Imports neither torch nor pandas before they are needed."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spectral_mup.config.compose import ROOT, ConfigError, load_config, options
from spectral_mup.config.schema import Config
from spectral_mup.errors import RecordError, Refusal, Unanswered
from spectral_mup.runs.sweep import Plan, Sweep, open_sweep, result_reader
from spectral_mup.theory.growth import KINDS
from spectral_mup.util.text import pluralize

OK, FAILED, BAD_INPUT, REFUSED, NO_ANSWER, CHECK_FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


def guard(action: Callable[[], int]) -> int:
    """Run an action; a mistake of the user's is one line on stderr and exit code 2, never a traceback."""
    try:
        return action()
    except (ConfigError, RecordError, ValueError) as error:
        if not isinstance(error, ConfigError | RecordError) and type(error).__module__.partition(".")[0] != "spectral_mup":
            raise  # a bug of ours, with its traceback
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Refusal as error:
        print(f"refused: {error}", file=sys.stderr)
        return REFUSED
    except Unanswered as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_ANSWER
    except BrokenPipeError:  # head and its like read what they want and go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        print(
            f"error: {error.filename or 'disk'}: {error.strerror or error}; free or mend it and give the command again",
            file=sys.stderr,
        )
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def command(script: str, argv: list[str], action: str | None = None) -> str:
    """A command line to copy, quoted for a shell; the action of this one is not what to do next."""
    kept = [a for a in argv if not a.startswith(("action=", "yes=", "watch=", "run=", "cause="))]
    return shlex.join(["python", script, *kept, *([f"action={action}"] if action else [])])


def groups() -> str:
    """The config groups and their options, a line each."""
    lines = []
    for folder in sorted(p for p in (ROOT / "conf").iterdir() if p.is_dir()):
        lines.append(f"  {folder.name + '=':11s}{', '.join(options(folder))}")
    return "\n".join(lines)


def launch(argv: list[str]) -> int:
    """Plan, explain or run a sweep on this machine, derive a rule, or prepare a text."""
    config = load_config(argv)
    if config.action == "prepare":
        return prepare(config)
    if config.action == "derive":
        return derive([a for a in argv if not a.startswith("rule=")])
    if config.action == "doctor":
        from spectral_mup.cli.status import doctor

        return doctor(config)
    sweep = open_sweep(config)
    outcome = result_reader(Path(config.paths.runs))
    plan = sweep.plan(outcome)
    if config.action == "explain":
        return explain(config, sweep)
    if config.action in ("status", "why", "logs"):
        from spectral_mup.cli import status as cli_status

        return cli_status.ACTIONS[config.action](config, sweep, plan, argv)
    if config.action in ("retry", "cancel", "extend"):
        from spectral_mup.cli import submit as cli_submit

        return cli_submit.ACTIONS[config.action](config, sweep, plan, argv)
    if config.action == "wandb_push":
        from spectral_mup.cli.wandb_push import wandb_push

        return wandb_push(config, plan.runs)
    print(describe(config, sweep, plan))
    if config.cluster.name == "slurm" and plan.todo:
        from spectral_mup.cli import submit as cli_submit

        return (cli_submit.show if config.action == "plan" else cli_submit.launch)(config, sweep, plan, argv)
    if config.action == "plan" or not plan.todo:
        if not plan.todo:
            print(f"Nothing to do. Next: {command('analyze.py', argv)}")
        return OK
    return run(config, sweep, outcome, plan, argv)


def describe(config: Config, sweep: Sweep, plan: Plan) -> str:
    """Counts first, then a line a curve."""
    later = sweep.remaining_curves(plan)
    done = len(plan.runs) - len(plan.todo)
    lines = [f"{config.sweep.name}: {pluralize(len(plan.runs), 'point')} so far: {done} done, {len(plan.todo)} to do"]
    if later:
        lines[0] += f"; {later} more curves follow, each around the optimum of the one before"
    todo = {p.run_id for p in plan.todo}
    for chain in sweep.curves():
        for curve in chain:
            mine = plan.curves.get(curve, [])
            lrs = sorted({p.log2_lr for p in mine})
            if mine:
                missing = sum(p.run_id in todo for p in mine)
                mark = ", not bracketed within lr.budget" if curve in plan.unbracketed else ""
                lines.append(
                    f"  {curve.rule} width {curve.width} depth {curve.depth}: lr 2^[{', '.join(f'{x:g}' for x in lrs)}]"
                    f" × {len(config.sweep.seed)} seeds, {len(mine) - missing} done, {missing} to do{mark}"
                )
    return "\n".join(lines)


def run(config: Config, sweep: Sweep, outcome: Any, plan: Plan, argv: list[str]) -> int:
    """Train on this machine until the plan is empty, Ctrl-C, or only failed runs are left."""
    from spectral_mup.cluster.local import run_local, worker_count
    from spectral_mup.cluster.progress import Progress
    from spectral_mup.data import load

    note = load(config.data.source, config.data.path, config.data.vocab_size).note
    if note:
        print(f"note: {note}")
    stopping = False

    def ask_to_stop(_signal: int, _frame: Any) -> None:
        nonlocal stopping
        stopping = True

    previous = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    progress = Progress(plan, worker_count(config), sweep.remaining_curves(plan), lambda line, _run: print(line, flush=True))

    def todo() -> list[Any]:
        progress.plan = sweep.plan(outcome)
        progress.later_curves = sweep.remaining_curves(progress.plan)
        return progress.plan.todo

    try:
        with progress:
            failed = run_local(config, todo, progress.on_event, lambda: stopping)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
    plan = sweep.plan(outcome)
    done = len(plan.runs) - len(plan.todo)
    if stopping:
        print(f"Stopped: {pluralize(done, 'point')} done. To go on: {command('launch.py', argv)}")
        return INTERRUPTED
    if failed:
        print(f"{len(failed)} of {len(plan.runs)} points failed:", file=sys.stderr)
        for run_id, error in failed.items():
            print(f"  {config.paths.runs}/{run_id}: {error} (traceback in error.txt)", file=sys.stderr)
        print(f"Once the cause is removed, this goes on: {command('launch.py', argv)}", file=sys.stderr)
        return FAILED
    print(f"All {pluralize(done, 'point')} done. Next: {command('analyze.py', argv)}")
    return OK


def explain(config: Config, sweep: Sweep) -> int:
    """Print what each tensor trains with at the largest size: one rule in full, several side by side."""
    from spectral_mup.data import load
    from spectral_mup.scaling.build import explain as rows_of
    from spectral_mup.scaling.build import forward_of
    from spectral_mup.scaling.table import one_rule, side_by_side

    vocab_size = load(config.data.source, config.data.path, config.data.vocab_size).vocab_size
    s, o = config.sweep, config.optimizer
    of_rules = {chain[-1].rule: sweep.run(chain[-1], max(s.lr), min(s.seed)) for chain in sweep.curves()}
    largest = next(iter(of_rules.values()))
    sources = {rule: config.rule[rule].source for rule in of_rules}
    rows = [rows_of(run, vocab_size) for run in of_rules.values()]
    forward = [asdict(forward_of(run)) for run in of_rules.values()]
    others = ", ".join(f"{role} {getattr(o, role)}" for role in KINDS if getattr(o, role) != o.hidden)
    print(
        f"width {largest.width} (base {s.base_width}), depth {largest.depth} (base {s.base_depth}), "
        f"lr 2^{largest.log2_lr:g}, optimizer {o.name}{f' ({others})' if others else ''}, {config.train.weight_decay} λ"
    )
    if len(rows) == 1:
        print(one_rule(*next(iter(sources.items())), rows[0], forward[0]))
    else:
        print(side_by_side(sources, rows, forward))
    return OK


def derive(argv: list[str]) -> int:
    """Measure the size law of an optimizer, say it, and write the rule that follows; nothing is written if it fails."""
    config = load_config([*argv, "rule=[spectral]"])  # whose init and forward pass the ladder has
    d, name = config.derive, config.optimizer.name

    from spectral_mup.analysis.figures.style import save
    from spectral_mup.cli.bars import ladder_progress
    from spectral_mup.data import load
    from spectral_mup.measure.ladder import make_ladder, measure
    from spectral_mup.measure.size_law_fit import first_log2_lr, size_laws, table
    from spectral_mup.measure.size_law_report import directions, package_name, rule_yaml, text
    from spectral_mup.runs.provenance import commit
    from spectral_mup.util.system import machine

    sweep = open_sweep(config)
    run = sweep.run(sweep.curves()[0][0], 0.0, d.seed[0])
    corpus = load(config.data.source, config.data.path, config.data.vocab_size)
    with ladder_progress() as on_run:
        ladder = make_ladder(run, corpus.vocab_size, d.width)
        measured = measure(ladder, corpus, seeds=d.seed, steps=d.steps, batch_size=d.batch_size, update=d.update, on_run=on_run)
    laws = size_laws(measured)
    targets = {a: config.optimizer.algorithms[a].target for a in dict.fromkeys(getattr(config.optimizer, r) for r in KINDS)}
    where = f"{config.model.family} at widths {', '.join(map(str, d.width))}, {d.steps} steps, {len(d.seed)} seeds, "
    where += config.data.source
    print(f"{name} ({', '.join(f'{a}: {t}' for a, t in targets.items())}) on {where}")
    print(text(laws))
    folder = Path(config.paths.results) / "derive" / name
    folder.mkdir(parents=True, exist_ok=True)
    drawing, data = directions(measured, laws, f"{name} on {where}.")
    save(drawing, folder / "directions", data)
    table(laws).to_csv(folder / "slopes.csv", index=False, float_format="%.6g", lineterminator="\n")
    path = ROOT / "conf" / "rule" / "derived" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(rule_yaml(name, laws, f"{where}; {', '.join(targets.values())}; commit {commit()}, {machine()}"), "utf-8")
    lr = first_log2_lr(measured)
    print(f"In the base model lr 2^{lr:.1f} moves no hidden matrix by more than {d.update:.0%} of its norm a step.")
    print(f"Slopes and figure: {folder}/. Rule: {path} ({package_name(name)})")
    mine = [a for a in argv if a.startswith("optimizer")]
    print("To use it: " + shlex.join(["python", "launch.py", "sweep=mini/width", *mine, f"rule=[derived/{name},standard]"]))
    return OK


def prepare(config: Config) -> int:
    """Tokenize a text into a folder for data=prepared, and say what it became."""
    from rich import print as show

    from spectral_mup.cli.bars import prepare_progress, prepared_table
    from spectral_mup.data.prepare.write import prepare as write

    out = Path(config.prepare.out or "").expanduser().absolute()
    try:
        with prepare_progress() as on_text:
            meta, already = write(config.prepare, on_text)
    except KeyboardInterrupt:
        print("Stopped: nothing was written.")
        return INTERRUPTED
    print(f"{out} {'was already prepared' if already else 'prepared'}: {meta['tokenizer']}, {meta['vocab_size']} ids")
    show(prepared_table(meta))
    print(f"Split: {meta['split']}.")
    if not meta["lossless"]:
        print("note: decoding does not give the text back: the tokenizer's model normalises or drops some of it")
    print("Next: " + shlex.join(["python", "launch.py", "data=prepared", f"data.path={out}", f"sweep.name={out.name}"]))
    return OK
