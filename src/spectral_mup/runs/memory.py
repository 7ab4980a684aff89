"""The GPU memory that a run needs: estimated until a run of its shape has been measured. Imports no torch."""

from collections.abc import Iterable
from pathlib import Path

from spectral_mup.runs.run_config import RunConfig
from spectral_mup.runs.run_folder import RunFolder

CONTEXT_BYTES = 0.6e9  # taken in each process by CUDA and its libraries, which torch does not count
# Numbers of optimizer state per parameter: two moments; for optimizers that keep a factor for each side of a matrix also these
# and their roots or bases, at aspect ratios up to 1 : 4.
STATES, FACTORED = 2, {"spectral_mup.optim.shampoo.Shampoo": 10, "spectral_mup.optim.soap.SOAP": 11}


def estimate_bytes(run: RunConfig, vocab_size: int | None) -> float:
    """Estimate the bytes that a process training the run takes, rather too many than too few.

    4·P·(5 + s) + 4·t·(depth·(12·width + 4·mlp) + 5·vocabulary) + CONTEXT_BYTES, all numbers in float32: P parameters (blocks of
    four width × width and three width × mlp matrices), each with its gradient, s numbers of optimizer state and three
    temporaries of the step; t tokens of a micro-batch. Attention is taken to keep no T × T matrix, activations to be kept
    (no checkpointing), and nothing to be shared among processes.
    """
    m, t, w = run.model, run.train, run.width
    mlp = m.mlp_width(w)
    parameters = run.depth * w * (4 * w + 3 * mlp) + (2 * (vocab_size or 0) + m.context) * w
    states = max(FACTORED.get(str(a.target), STATES) for a in run.optimizer.algorithms.values())
    tokens = max(t.batch_size // t.accumulate, run.probe.sequences) * m.context
    activations = tokens * (run.depth * (12 * w + 4 * mlp) + 5 * (vocab_size or 0))
    return 4 * (parameters * (5 + states) + activations) + CONTEXT_BYTES


class RunMemory:
    """The GPU memory that the runs of one sweep need; `vocab_size` is that of their text."""

    def __init__(self, runs_dir: Path, vocab_size: int | None) -> None:
        self.runs_dir, self.vocab_size = runs_dir, vocab_size
        self._measured: dict[tuple[int, int, int], float] = {}

    def learn(self, runs: Iterable[RunConfig]) -> None:
        """Read from timing.json what the runs took that have ended on a single GPU; one run per shape is enough."""
        for run in runs:
            if run.shape not in self._measured:
                timing = RunFolder(self.runs_dir, run.run_id).peek("timing.json") or {}
                if timing.get("memory") and timing.get("devices") == 1:
                    self._measured[run.shape] = timing["memory"]["reserved"] + CONTEXT_BYTES

    def largest(self, runs: Iterable[RunConfig]) -> tuple[float, str]:
        """Return the bytes that the most demanding of the runs takes, and whether they were 'measured' or 'estimated'."""
        shapes = {run.shape: run for run in runs}
        needs = [
            (self._measured[shape], "measured") if shape in self._measured
            else (estimate_bytes(run, self.vocab_size), "estimated")
            for shape, run in shapes.items()
        ]  # fmt: skip
        return max(needs)
