"""The verdict of a sweep as a W&B run of its own, NAME/verdict: its table, its figures, and its numbers as the summary."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from spectral_mup.analysis.report import table_of
from spectral_mup.analysis.results import ResultsError, Written, read_folder
from spectral_mup.tracking.live import import_wandb, open_run
from spectral_mup.tracking.push import SETTINGS, PushError, finish_sent, refusal, target_of
from spectral_mup.util.files import read_cache, write_cache

SENT, UNCHANGED, NOT_JUDGED = "pushed, with its table and figures", "nothing new", "not judged yet; first: {analyze}"


def push_verdict(folder: Path, parts: Sequence[str], sweep: str, project: str, mode: str, memory: Path) -> str:
    """Send what analyze wrote into a folder, unless the file `memory` says that W&B has it.

    Returns SENT, UNCHANGED or NOT_JUDGED. `parts` are its subfolders, of further axes and keys. Raises PushError.
    """
    found = {}
    for part in ("", *parts):
        with suppress(ResultsError):
            found[f"{part}/" * bool(part)] = read_folder(folder / part)
    if not found:
        return NOT_JUDGED
    figures = {f"{part}{path.stem}": path for part in found for path in sorted((folder / part).glob("*.png"))}
    files = [*(folder / part / "verdicts.json" for part in found), *figures.values()]
    sent = target_of(project, mode) | {"digest": hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()}
    if read_cache(memory) == sent:
        return UNCHANGED
    try:
        _send(found, figures, sweep, project, mode)
    except Exception as error:  # whatever W&B or the network raises
        raise PushError(refusal(error)) from error
    write_cache(memory, sent)
    return SENT


def _send(found: Mapping[str, Written], figures: Mapping[str, Path], sweep: str, project: str, mode: str) -> None:
    wandb = import_wandb(mode)
    config = {"sweep": sweep, **next(iter(found.values())).about}
    about = {"name": f"{sweep}/verdict", "group": sweep, "job_type": "verdict", "config": config}
    target = open_run(f"verdict-{hashlib.sha256(sweep.encode()).hexdigest()[:16]}", about, mode, project, **SETTINGS)
    logged = {name: wandb.Image(str(path)) for name, path in figures.items()}
    for part, written in found.items():
        head, *rows = table_of(written.verdicts)
        logged[f"{part}verdicts"] = wandb.Table(columns=head, data=rows)
    target.log(logged)
    finish_sent(target, {name: x for part, written in found.items() for name, x in _numbers(part, written).items()})


def _numbers(part: str, written: Written) -> dict[str, Any]:
    """Return {RULE/verdict, RULE/slope, RULE/regret: value}, the regret as a fraction of the loss."""
    said = {(v.rule, name): getattr(v, name) for v in written.verdicts for name in ("verdict", "slope", "regret")}
    return {f"{part}{rule}/{name}": value for (rule, name), value in said.items()}
