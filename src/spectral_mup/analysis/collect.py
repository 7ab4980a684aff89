"""From run folders to two DataFrames, the only place of the analysis that knows of folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_mup.errors import RecordError
from spectral_mup.runs.run_config import Curve, RunConfig
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.files import read_rows


def collect(curves: Mapping[Curve, Sequence[RunConfig]], runs: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(points, norms): one row a run, missing ones included; one row a probed step and module or tensor of ended runs.

    Raises RecordError on a folder that contradicts itself and on runs trained on different corpora.
    """
    rows: list[dict[str, Any]] = []
    norms: list[dict[str, Any]] = []
    corpora: dict[str, str] = {}
    for curve, run in ((curve, run) for curve, of_curve in curves.items() for run in of_curve):
        folder = RunFolder(runs, run.run_id)
        key = {"run_id": run.run_id, "rule": curve.rule, "width": curve.width, "depth": curve.depth}
        key |= {"log2_lr": run.log2_lr, "seed": run.seed}
        rows.append(key | {"family": run.model.family, "optimizer": run.optimizer.name, "status": "missing"})
        result = folder.result()
        if result is None:
            continue
        folder.check_config()
        corpora.setdefault(result["corpus"]["sha256"], run.run_id)
        if len(corpora) > 1:
            raise RecordError(
                f"runs {' and '.join(corpora.values())} under {runs} were trained on different texts: the corpus was "
                "changed while the sweep ran; move the wrong ones away and launch again"
            )
        rows[-1] |= {name: result[name] for name in ("status", *OF_RESULT)} | {"loss": result["val_loss"]}
        norms += [key | row for row in read_rows(folder.path / "norms.jsonl")]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"loss": float, "diverged_step": float})
    return table, pd.DataFrame(norms)


OF_RESULT = ["diverged_step", "steps", "tokens", "epochs", "parameters", "precision"]
COLUMNS = ["run_id", "family", "optimizer", "rule", "width", "depth", "log2_lr", "seed", "status", "loss", *OF_RESULT]
