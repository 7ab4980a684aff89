"""The fields that the .json files of runs and sweeps must have because code relies on them; more are allowed."""

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from spectral_mup.config.deciding import DECIDING

STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)  # the text "1" is not a number


def record(**fields: Any) -> Any:
    """Make a type of dicts that have these fields, and maybe more."""
    return with_config(STRICT)(TypedDict("Record", fields))  # type: ignore[misc]


ENDED: dict[str, Any] = {
    "diverged_step": int | None, "steps": int, "tokens": int | None, "epochs": float | None, "parameters": int,
    "precision": str, "corpus": record(sha256=str),
}  # fmt: skip
KINDS: dict[str, Any] = {
    "config.json": dict[str, Any],
    "provenance.json": dict[str, Any],
    "wandb.json": dict[str, Any],
    "owner.json": record(host=str, pid=int, start=str | None, nonce=str, slurm=NotRequired[record(job=str, restart=int)]),
    "heartbeat.json": record(time=float),
    "status.json": record(
        step=int,
        steps=int,
        loss=float | None,
        time=float,
        tokens_per_second=NotRequired[float],
        examples_per_second=NotRequired[float],
        memory=NotRequired[int],
        mfu=NotRequired[float],
    ),
    "timing.json": record(
        seconds=float, steps=int, device=str, devices=NotRequired[int], memory=NotRequired[record(reserved=float) | None]
    ),
    "result.json": record(status=Literal["done"], val_loss=float, **ENDED)
    | record(status=Literal["diverged"], val_loss=None, **ENDED),
    "sweep.json": record(words=list[str], config=record(**dict.fromkeys((*DECIDING, "cluster", "paths"), dict[str, Any]))),
    "verdicts.json": record(verdicts=list[record(rule=str, verdict=str)]),
}
RECORDS: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(kind) for name, kind in KINDS.items()}
