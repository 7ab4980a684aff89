"""Several analysed sweeps side by side, as tables and figures, from their result files alone."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mup.analysis.figures.printing import Printing
from spectral_mup.analysis.latex import summary_tex
from spectral_mup.analysis.published import read_published
from spectral_mup.analysis.report import aligned, best_loss, best_lr, verdict_cells
from spectral_mup.analysis.results import Results, ResultsError, by_family_and_axis, labels, read_results
from spectral_mup.analysis.stats import write_csv
from spectral_mup.analysis.verdict import Verdict, level_marks, percent
from spectral_mup.runs.run_config import AXES

# Names of what `summarize` writes by group; what else lies there is the user's.
WRITTEN = re.compile(rf"(summary|transfer)(_.+_({'|'.join(AXES)}))?\.(pdf|svg|png|txt|csv)|summary_figure\.csv")


def summarize(
    folder: Path | str, names: Sequence[str] = (), printing: Printing | None = None
) -> tuple[list[Results], list[str], int]:
    """Read every sweep analysed below `folder`, and write the summary into it.

    Files:
        summary.csv, summary.tex: One row per sweep and rule.
        forest.pdf .svg .png: The slopes of all, beside those of published.csv if it exists; what is drawn: forest.csv.
        summary.pdf .svg .png: One row of panels per sweep; what is drawn: summary_figure.csv.
        summary_FAMILY_AXIS.*: In place of them where families or axes differ: one figure of each, and .csv of what is drawn.
        transfer.pdf .svg .png: Loss against lr under the rule that is tested, a panel per sweep of the first family and axis.
        transfer_FAMILY_AXIS.*: The same of the others; what is drawn: .csv.

    The caption of each figure is in a .txt beside it. The same files give the same bytes. Raises ResultsError.

    Returns:
        (sweeps, names without results, number of published slopes that belong to none of the sweeps).
    """
    out = Path(folder)
    sweeps, absent = gather(out, names)
    published = read_published(out)
    for path in out.iterdir():  # of other groups than today's
        if WRITTEN.fullmatch(path.name):
            path.unlink()
    write_csv(summary_table(sweeps), out / "summary.csv")
    (out / "summary.tex").write_text(summary_tex(sweeps), "utf-8")

    from spectral_mup.analysis.figures.forest import forest_figure  # matplotlib takes a second to import: only where it draws
    from spectral_mup.analysis.figures.style import save
    from spectral_mup.analysis.figures.summary import summary_figure
    from spectral_mup.analysis.figures.transfer import transfer_figure

    drawing, data = forest_figure(sweeps, published, printing)
    save(drawing, out / "forest", data, printing)
    left = len(published) - list(data["what"]).count("published")
    groups = by_family_and_axis(sweeps)
    for i, ((family, axis), group) in enumerate(groups.items()):
        of_group = f"_{family.replace('/', '_')}_{axis}"
        drawing, data = summary_figure(group, printing)
        if len(groups) == 1:
            save(drawing, out / "summary", data, printing, out / "summary_figure")
        else:
            save(drawing, out / f"summary{of_group}", data, printing)
        if (transfer := transfer_figure(group, printing)) is not None:
            save(transfer[0], out / f"transfer{of_group if i else ''}", transfer[1], printing)
    return sweeps, absent, left


def gather(folder: Path, names: Sequence[str] = ()) -> tuple[list[Results], list[str]]:
    """Read the sweeps at and below a folder that has their verdicts.json; return them and the names that were not found.

    `names` choose and order them, by path below the folder, last part of it, sweep's name, or optimizer; else they come in
    alphabetical order of optimizer and path.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder}: does not exist; analyze.py sweep=NAME writes a sweep's results under results/NAME")
    sweeps = [one for path in sorted(folder.rglob("verdicts.json")) for one in read_results(path.parent)]
    if not sweeps:
        raise ResultsError(f"{folder}: no verdicts.json here or below; analyse its sweeps first: python analyze.py sweep=NAME")
    if not names:
        return sorted(sweeps, key=lambda r: (r.optimizer, r.folder.as_posix())), []
    paths = [r.folder.relative_to(folder).as_posix() for r in sweeps]
    of_sweep = [{path, r.folder.name, r.name, r.optimizer} for r, path in zip(sweeps, paths, strict=True)]
    chosen = dict.fromkeys(i for name in names for i, known in enumerate(of_sweep) if name in known)
    if not chosen:
        raise ResultsError(f"{folder}: no results of {', '.join(names)} here; there are {', '.join(sorted(set(paths)))}")
    return [sweeps[i] for i in chosen], [name for name in dict.fromkeys(names) if not any(name in known for known in of_sweep)]


def sizes_of(sweeps: Sequence[Results]) -> list[tuple[str, int]]:
    """Return every (axis, size) that was judged, widths first."""
    return sorted({(v.axis, s) for r in sweeps for v in r.verdicts for s in v.optima}, key=lambda x: (x[0] != "width", *x))


def summary_table(sweeps: Sequence[Results]) -> pd.DataFrame:
    """Make one row per sweep and rule: verdict, slope with its interval of level 1 - alpha, regret (a fraction), evidence.

    Columns:
        sizes: Those judged.
        seeds: Fewest-most seeds that finished at one of them.
        runs: Those that finished under the rule.
        sweep_runs: Those under all rules, those that several share counted once.
        train_hours: Of all these, on the cores or the GPU that each run had.

    Then optimum and loss by size, runs by status, and the command and commit that judged the sweep.
    """
    table = []
    numbers = "rule verdict slope slope_lo slope_hi alpha regret regret_lo regret_hi regret_at_least".split()
    for r, v in ((sweep, v) for sweep in sweeps for v in sweep.verdicts):
        row: dict[str, Any] = {"optimizer": r.optimizer, "family": r.family} | {name: getattr(v, name) for name in numbers}
        row |= {"features": features(v), "interval_of": v.basis, "axis": v.axis, "base": v.base}
        row |= {"sizes": " ".join(map(str, v.optima)), "seeds": "-".join(map(str, dict.fromkeys(r.seeds(v))))}
        row |= {"runs": len(r.done(v.rule)), "sweep_runs": len(r.done()), "train_hours": r.train_hours}
        for axis, size in sizes_of(sweeps):
            o = v.optima.get(size) if v.axis == axis else None
            row |= {f"{name}_{axis}_{size}": getattr(o, name) if o else None for name in ("log2_lr", "lo", "hi", "loss")}
            row[f"not_bracketed_{axis}_{size}"] = " ".join(o.open_sides) if o else None
        table.append(row | v.counts | {"sweep": r.name, "command": r.command, "commit": r.commit, "reason": v.reason})
    return pd.DataFrame(table)


def features(v: Verdict) -> str:
    """Describe the feature check in a word or two."""
    if v.features is None or v.features.step is None:
        return "-"
    return {True: "passed", False: f"{len(v.features.failed)} failed", None: "undecided"}[v.features.passed]


def format_summary(sweeps: Sequence[Results], absent: Sequence[str] = ()) -> str:
    """Format the table for the screen, one line per sweep and rule, then what the numbers alone do not say."""
    sizes = sizes_of(sweeps)
    heads = [f"{what} {axis[0]}{size}" for what in ("lr*", "loss") for axis, size in sizes]
    levels = " or ".join(percent(alpha) for alpha in level_marks([v for r in sweeps for v in r.verdicts]))
    cells, notes = [["optimizer", "rule", "verdict", "over", f"slope [{levels}]", "regret", "features", *heads]], []
    for r, label in zip(sweeps, labels(sweeps), strict=True):
        notes += [f"{label}: its runs were trained by {len(r.codes)} codes, which analyze.py names"] * (len(r.codes) > 1)
        for v in r.verdicts:
            own = [(v.optima.get(size), axis == v.axis and size in v.optima) for axis, size in sizes]
            lrs, losses = ([cell(o) if tried else "-" for o, tried in own] for cell in (best_lr, best_loss))
            verdict, slope, regret = verdict_cells(v)
            cells.append([label, v.rule, verdict, v.axis, slope, regret, features(v), *lrs, *losses])
            missing = v.counts.get("missing", 0)
            notes += [f"{label}, {v.rule}: undecided: {v.reason}"] if v.reason else []
            notes += [f"{label}, {v.rule}: {missing} of {sum(v.counts.values())} runs missing"] if missing else []
    lines = aligned(cells, groups=[5, len(sizes), len(sizes)], keys=2)
    lines += ["lr*: log2 of the best learning rate, '<' or '>' where it is not bracketed on that side. Features: their check."]
    lines += ["Regret: what the optimal lr of the base costs at the largest size."]
    return "\n".join([*lines, *notes, *([f"no results here yet: {', '.join(absent)}"] if absent else [])])
