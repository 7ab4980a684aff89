"""The verdict of a sweep as a W&B run of its own, NAME/verdict: its table, its figures, and its numbers as the summary."""

import hashlib
from pathlib import Path
from typing import Any

from spectral_mup.analysis.report import table_of
from spectral_mup.analysis.results import ResultsError, Written, read_folder
from spectral_mup.tracking.live import import_wandb, open_run
from spectral_mup.tracking.push import SETTINGS, PushError, finish_sent, refusal, target_of
from spectral_mup.util.files import read_cache, write_cache

SENT, UNCHANGED, NOT_JUDGED = "pushed, with its table and figures", "nothing new", "not judged yet; first: {analyze}"


def push_verdict(folder: Path, sweep: str, project: str, mode: str, memory: Path) -> str:
    """Send what analyze wrote into a folder, unless `memory` says that W&B has it; return which of the three it was.

    Raises PushError.
    """
    try:
        written = read_folder(folder)
    except ResultsError:
        return NOT_JUDGED
    figures = sorted(folder.glob("*.png"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (folder / "verdicts.json", *figures))).hexdigest()
    sent = target_of(project, mode) | {"digest": digest}
    if read_cache(memory) == sent:
        return UNCHANGED
    try:
        _send(written, figures, sweep, project, mode)
    except Exception as error:  # whatever W&B or the network raises
        raise PushError(refusal(error, 0)) from error
    write_cache(memory, sent)
    return SENT


def _send(written: Written, figures: list[Path], sweep: str, project: str, mode: str) -> None:
    wandb = import_wandb(mode)
    about = {"name": f"{sweep}/verdict", "group": sweep, "job_type": "verdict", "config": {"sweep": sweep, **written.about}}
    target = open_run(f"verdict-{hashlib.sha256(sweep.encode()).hexdigest()[:16]}", about, mode, project, **SETTINGS)
    head, *rows = table_of(written.verdicts)
    target.log({"verdicts": wandb.Table(columns=head, data=rows), **{path.stem: wandb.Image(str(path)) for path in figures}})
    finish_sent(target, numbers(written))


def numbers(written: Written) -> dict[str, Any]:
    """{RULE/verdict, RULE/slope, RULE/regret: value}, the last in fractions of the loss."""
    said = {(v.rule, name): getattr(v, name) for v in written.verdicts for name in ("verdict", "slope", "regret")}
    return {f"{rule}/{name}": value for (rule, name), value in said.items()}
