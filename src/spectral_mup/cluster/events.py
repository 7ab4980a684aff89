"""What workers report to their launcher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spectral_mup.runs.run_config import RunConfig

ENDS = ("done", "failed", "stopped", "claimed")  # after which the worker is idle


@dataclass(frozen=True)
class Event:
    """Something that happened to a run: started, step, one of ENDS (claimed: another process has the run), or died."""

    kind: str
    run: RunConfig
    payload: dict[str, Any] = field(default_factory=dict)
