"""Tables of what check.sh left in a folder, beside what is aimed at: python benchmarks/gpu/report.py OUT"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from spectral_mup.util.files import read_json
from spectral_mup.util.text import table

Row = dict[str, Any]
CPU_SECONDS = {64: 3.86, 128: 9.45, 256: 22.2}  # of a run on one of two CPU cores, in sweeps/results/throughput.json (auto)
RUNS, STEPS = {64: 28, 128: 15, 256: 15}, 400  # of the default sweep at a width, and of a run


def show(x: Any) -> str:
    if isinstance(x, float):
        return f"{x:.0f}" if abs(x) >= 1000 or x == 0 else f"{x:.3g}"
    return "-" if x is None else "error" if "Error" in str(x) else str(x)


def columns(rows: Sequence[Row], text: Sequence[str], numbers: Sequence[str]) -> list[str]:
    """A table of these keys of the rows."""
    cells = [[show(r.get(key)) for key in (*text, *numbers)] for r in rows]
    header = [key.replace("_", " ") for key in (*text, *numbers)]
    return table(cells, header=header, right=range(len(text), len(header)), indent=2)


def aim(what: str, values: Iterable[float | None], wanted: float, sign: int = 1) -> str:
    """Whether the best of these values is at least what is wanted; with sign -1, at most."""
    best = max((sign * x for x in values if x is not None), default=None)
    reached = "not measured" if best is None else "reached" if best >= sign * wanted else "MISSED"
    return f"  {what}: {show(best and sign * best)} (aim {'≥' if sign > 0 else '≤'} {wanted:g}: {reached})"


def correctness(rows: Sequence[Row]) -> list[str]:
    lines = columns(rows, ("optimizer", "family"), ("graph", "repeat", "resume", "ddp", "bf16"))
    return [*lines, "  largest difference of a loss, of bf16 that of validation; 0: equal to the bit"]


def throughput(rows: Sequence[Row]) -> list[str]:
    runs = {r["workers"]: r["runs_an_hour"] for r in rows if "runs_an_hour" in r}
    steps = {(r["way"], r["width"], r["workers"]): r["steps_a_second"] for r in rows if "way" in r}
    ways = list(dict.fromkeys(way for way, _, _ in steps))

    def had_steps_alone(way: str, workers: int) -> float | None:
        """Runs an hour if they were nothing but steps."""
        rates = {width: steps.get((way, width, workers)) for width in RUNS}
        if not all(rates.values()):
            return None
        return 3600 * sum(RUNS.values()) / sum(n * STEPS / rates[width] for width, n in RUNS.items())  # type: ignore[operator]

    cells = [["runs an hour", *(show(x) for x in runs.values())]]
    cells += [[f"  if all were steps, {way}", *(show(had_steps_alone(way, n)) for n in runs)] for way in ways]
    for way, width in dict.fromkeys(key[:2] for key in steps):
        cells.append([f"steps a second, width {width}, {way}", *(show(steps.get((way, width, n))) for n in runs)])
    gain = [steps[g] / steps[e] for g, e in [[(way, 128, 1) for way in ("graph", "eager")]] if {g, e} <= steps.keys()]
    over_cpu = runs.values() if set(RUNS) <= {width for _, width, _ in steps} else []  # other runs have no such figure
    on_cpu = 2 * 3600 * sum(RUNS.values()) / sum(n * CPU_SECONDS[width] for width, n in RUNS.items())
    return [
        *table(cells, header=["processes on the device", *map(str, runs)], right=range(1, 1 + len(runs)), indent=2),
        aim("graph over eager, one process, width 128", gain, 4),
        aim(f"runs an hour over the {on_cpu:.0f} of two CPU cores", [x / on_cpu for x in over_cpu], 20),
    ]


def large(rows: Sequence[Row]) -> list[str]:
    ours, lines = (
        [r for r in rows if r["way"] != "plain"],
        columns(rows, ("way",), ("width", "ms", "mfu", "speed_of_plain", "peak_gb")),
    )
    lines.append(aim("MFU at width 2048", [r["mfu"] for r in ours if r["width"] == 2048], 0.5))
    for width in dict.fromkeys(r["width"] for r in ours):
        lines.append(aim(f"speed of plain at width {width}", [r["speed_of_plain"] for r in ours if r["width"] == width], 1))
    return lines


def optimizers(rows: Sequence[Row]) -> list[str]:
    ms = {r["whose"]: r["ms"] for r in rows if r["optimizer"] == "Muon" and r["ms"]}
    lines = columns(rows, ("optimizer", "whose"), ("width", "ms", "peak_gb"))
    return [*lines, aim("Muon's step over torch's", [ms["ours"] / ms["torch"]] if len(ms) == 2 else [], 1, sign=-1)]


def ladder(rows: Sequence[Row]) -> list[str]:
    lines = []
    for r in rows:
        end = "" if r["finished"] else ", stopped before its end"
        lines.append(f"  {r['optimizer']}: {r['seconds']:.0f} s with {r['workers']} workers{end}")
        lines += wrap(r["said"] if not r["rules"] else "", 78, initial_indent="    ", max_lines=2)
        for rule in r["rules"]:
            slope = [show(rule["slope"][key]) for key in ("estimate", "lo", "hi")]
            lines.append(f"    {rule['rule']}: {rule['verdict']}, slope {slope[0]} [{slope[1]}, {slope[2]}]")
            optima = ", ".join(f"{o['width']}: {show(o['log2_lr'])} ({show(o['loss'])})" for o in rule["optima"])
            lines += wrap(f"log2 lr* (loss) by width {optima}", 78, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


PARTS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "correctness": correctness, "throughput": throughput, "large": large, "optimizers": optimizers, "ladder": ladder,
}  # fmt: skip


def main(out: Path) -> None:
    said = ""
    for part, lines_of in PARTS.items():
        found = read_json(out / f"{part}.json") or {"rows": [], "cut": "not run", "finished": False}
        about = "{device}, torch {torch}, Python {python}, commit {commit}".format(**found) if "device" in found else said
        lines = wrap(about, 80) if about != said else []
        lines += ["", part, *(lines_of(found["rows"]) if found["rows"] else [])]
        for row in found["rows"]:
            errors = [
                f"{' '.join(list(map(str, row.values()))[:2])}, {key}: {x}" for key, x in row.items() if "Error" in str(x)
            ]
            lines += [line for error in errors for line in wrap(error, 78, initial_indent="  ", max_lines=3)]
        if "error" in found:
            lines += wrap(f"error: {found['error'].splitlines()[-1]}", 78, initial_indent="  ", max_lines=4)
        elif "cut" in found or not found["finished"]:
            lines.append(f"  {found.get('cut', 'killed at its limit')}")
        print("\n".join(lines))
        said = about


if __name__ == "__main__":
    main(Path(sys.argv[1]))
