"""From run folders to two DataFrames, the only place of the analysis that knows of folders."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mup.errors import RecordError
from spectral_mup.runs.results import Results
from spectral_mup.runs.run_config import AXES, Curve, RunConfig
from spectral_mup.util.files import read_rows
from spectral_mup.util.log import log


def collect(curves: Mapping[Curve, Sequence[RunConfig]], results: Results) -> pd.DataFrame:
    """Make one row per run of a curve, missing ones included; a run of the base size is on a curve of every rule.

    `steps` and `batch_size` are what the run was to train, also where it diverged before; `value` is log2 of what was `tuned`.
    Raises RecordError on runs trained on different corpora.
    """
    rows: list[dict[str, Any]] = []
    corpora: dict[str, str] = {}
    for curve, run in ((curve, run) for curve, of_curve in curves.items() for run in of_curve):
        about = {"log2_lr": run.log2_lr, "tuned": curve.tuned, "held": curve.held_text, "value": run.value, "status": "missing"}
        about |= {"family": run.model.label, "optimizer": run.optimizer.name}
        rows.append(run_columns(run, curve) | run.sizes | about)
        result = results.of(run)
        if result is None:
            continue
        corpora.setdefault(result["corpus"]["sha256"], run.run_id)
        if len(corpora) > 1:
            raise RecordError(
                f"runs {' and '.join(corpora.values())} under {results.runs} were trained on different texts: the corpus was "
                "changed while the sweep ran; move the wrong ones away and launch again"
            )
        rows[-1] |= {name: result[name] for name in ("status", *OF_RESULT)} | {"loss": result["val_loss"]}
    return pd.DataFrame(rows, columns=COLUMNS).astype({"loss": float, "diverged_step": float})


def norm_reader(runs: Sequence[RunConfig], folder: Path) -> Callable[[Collection[str]], pd.DataFrame]:
    """Make a function from the ids of ended runs to their norms, one row per probed step and module or tensor.

    It reads a run once. Each run is listed once, also one of the base size, which several rules share. A run without
    norms.jsonl, as from an archive of results, or with one that cannot be read, has no rows: its loss counts in the verdict,
    its features do not.
    """
    known: dict[str, list[dict[str, Any]]] = {}

    def rows_of(run: RunConfig) -> list[dict[str, Any]]:
        if run.run_id not in known:
            key = run_columns(run, run.curve)
            file = folder / run.run_id / "norms.jsonl"
            known[run.run_id] = [key | row for row in readable_rows(file)] if file.is_file() else []
        return known[run.run_id]

    return lambda run_ids: pd.DataFrame([row for run in runs if run.run_id in run_ids for row in rows_of(run)])


def norms_of(run_ids: Iterable[str], folder: Path) -> pd.DataFrame:
    """Read the norms of those runs that are in the folder, with their ids: one row per probed step and module or tensor."""
    files = {run_id: folder / run_id / "norms.jsonl" for run_id in run_ids}
    return pd.DataFrame(
        [{"run_id": run_id} | row for run_id, file in files.items() if file.is_file() for row in readable_rows(file)]
    )


def readable_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a file; none where it cannot be read, which is logged."""
    try:
        return list(read_rows(file))
    except (RecordError, OSError) as error:
        log.warning("%s; until then nothing is said of the norms of this run", error, extra={"run": file.parent.name})
        return []


def run_columns(run: RunConfig, curve: Curve) -> dict[str, Any]:
    """Return the columns that say of which run a row is, in both tables; `log2_lr` is log2 of what is tuned, lr or not."""
    key = {"run_id": run.run_id, "rule": curve.rule, "width": curve.width, "depth": curve.depth}
    return key | {"log2_lr": run.value, "seed": run.seed}


def as_judged(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points with log2 of what was tuned in the column that is judged, `log2_lr`."""
    return points.assign(log2_lr=points["value"]) if "value" in points else points


KEY = ["run_id", "rule", "width", "depth", "log2_lr", "seed"]  # the columns of `run_columns`
OF_RESULT = ["diverged_step", "tokens", "epochs", "parameters", "precision"]
OF_RUN = ["run_id", "family", "optimizer", "rule", *AXES, "tuned", "held", "value", "log2_lr", "seed"]
COLUMNS = [*OF_RUN, "status", "loss", *OF_RESULT]
