"""The GPU memory that a run needs, measured on the first run of its shape, until then estimated. Imports no torch."""

from collections.abc import Iterable
from pathlib import Path

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder

CONTEXT_BYTES = 0.6e9  # what CUDA and its libraries take for each process, which torch does not count
# Numbers kept for each parameter: two moments, and where an optimizer has factors of both sides, these and what is made of
# them (roots, bases), for matrices of sides up to 1 : 4.
STATES, FACTORED = 2, {"spectral_mup.optim.shampoo.Shampoo": 10, "spectral_mup.optim.soap.SOAP": 11}


def estimate_bytes(run: RunConfig, vocab_size: int | None) -> float:
    """Bytes of a process that trains the run, rather too many: 4·P·(5 + s) + 4·t·(depth·(12·width + 4·mlp) + 5·vocabulary).

    P parameters (blocks of four width × width and three width × mlp matrices), each with gradient, s numbers of optimizer state
    and three passing ones of the step; t tokens of a micro-batch, all in float32, with attention that keeps no T × T matrix,
    without activation checkpointing and without sharing by several processes.
    """
    m, t, w = run.model, run.train, run.width
    mlp = m.mlp_width(w)
    parameters = run.depth * w * (4 * w + 3 * mlp) + (2 * (vocab_size or 0) + m.context) * w
    states = max(FACTORED.get(str(a.target), STATES) for a in run.optimizer.algorithms.values())
    tokens = max(t.batch_size // t.accumulate, run.probe.sequences) * m.context
    activations = tokens * (run.depth * (12 * w + 4 * mlp) + 5 * (vocab_size or 0))
    return 4 * (parameters * (5 + states) + activations) + CONTEXT_BYTES


class RunMemory:
    """What the runs of one sweep need; `vocab_size` is that of their text."""

    def __init__(self, runs_dir: Path, vocab_size: int | None) -> None:
        self.runs_dir, self.vocab_size = runs_dir, vocab_size
        self._measured: dict[tuple[int, int, int], float] = {}

    def learn(self, runs: Iterable[RunConfig]) -> None:
        """Read from timing.json what those of the runs took that have ended on a GPU of their own."""
        for run in runs:
            if run.shape not in self._measured:
                timing = RunFolder(self.runs_dir, run.run_id).peek("timing.json") or {}
                if timing.get("memory") and timing.get("devices") == 1:
                    self._measured[run.shape] = timing["memory"]["reserved"] + CONTEXT_BYTES

    def largest(self, runs: Iterable[RunConfig]) -> tuple[float, str]:
        """Bytes that the neediest of the runs takes, and whether they were 'measured' or 'estimated'."""
        shapes = {run.shape: run for run in runs}
        needs = [
            (self._measured[shape], "measured") if shape in self._measured
            else (estimate_bytes(run, self.vocab_size), "estimated")
            for shape, run in shapes.items()
        ]  # fmt: skip
        return max(needs)
