"""How status, why and logs write one run and its log."""

from __future__ import annotations

from spectral_mup.cluster.slurm.run_states import State
from spectral_mup.util.text import format_duration

WATCH_SECONDS = 10.0
SHOWN = 20  # runs of a state or cause that are listed one by one without run=ID


def run_line(state: State) -> str:
    """A run, where it is and why."""
    parts = [f"{state.run.run_id[:8]}  {state.run}"]
    if state.name == "running":
        parts.append(_progress(state))
    if state.cause:
        parts.append(state.cause.name)
    if state.tries > 1:
        parts.append(f"submitted {state.tries} times")
    if state.detail:
        parts.append(state.detail)
    return ", ".join(parts)


def _progress(state: State) -> str:
    """'step 120/400, about 3 min left'."""
    s = state.status
    if not s:
        return "starting"
    text = f"step {s['step']}/{s['steps']}"
    speed = (s["step"] - s.get("began", 0)) / max(1e-3, s["time"] - s["started"]) if "started" in s else 0
    return text + (f", about {format_duration((s['steps'] - s['step']) / speed)} left" if speed > 0 else "")


def log_name(state: State) -> str:
    """Path of the log of a run's task, or of the folder where it will be."""
    assert state.submission is not None
    logs = state.submission.log(state.index)
    return str(logs[0]) if logs else f"{state.submission.logs}/"
