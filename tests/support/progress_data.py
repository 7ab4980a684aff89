"""A sweep half-way, as its launcher would tell of it."""

from spectral_mup.cluster.durations import Durations
from spectral_mup.cluster.progress import Event, Progress
from spectral_mup.config.compose import load_config
from spectral_mup.runs.sweep import Sweep
from spectral_mup.search.curve_state import curve_states
from spectral_mup.search.outlook import outlook
from spectral_mup.search.plan import make_plan, remaining_curves
from support.searches import simulated

SWEEP = [
    "data=pydoc",
    "sweep.width=[32,64,128,256]",
    "sweep.base_width=32",
    "sweep.lr=[-8,-6,-4]",
    "sweep.seed=[0]",
    "model.head_size=16",
]


class HalfWay:
    """A Progress that is told of the first `done` runs, which took 10 s each, and of what follows; `lines` are what it said."""

    def __init__(self, done: int, *overrides: str, workers: int = 2) -> None:
        self.sweep = Sweep(load_config([*SWEEP, *overrides]), "text")
        self.loss, self.known = simulated(diverges=1.2), dict[str, float]()
        self.lines: list[str] = []
        self.workers = workers
        self.progress = Progress(lambda line, run_id: self.lines.append(line), Durations("cpu"))
        self.look()
        self.done = done

    def look(self) -> None:
        outcome = lambda run: self.known.get(run.run_id)  # noqa: E731
        self.plan = make_plan(self.sweep, outcome)
        later = remaining_curves(self.sweep, self.plan)
        self.progress.look(self.plan, self.workers, outlook(self.sweep, self.plan), curve_states(self.plan, outcome), later)

    def go(self) -> None:
        """Tell of the runs that end, then of some that are trained."""
        for _ in range(self.done):
            run = self.plan.todo[0]
            loss = self.known[run.run_id] = self.loss(run)
            gone = loss == float("inf")
            end = {"status": "diverged" if gone else "done", "diverged_step": 3, "val_loss": None if gone else loss}
            self.progress.on_event(Event("started", run))
            self.progress.on_event(Event("done", run, end | {"seconds": 10.0, "trained": run.train.steps}))
            self.look()
        failed, *running = self.plan.todo[: self.workers + 1]
        self.progress.on_event(Event("failed", failed, {"error": "ValueError: no luck"}))
        for run in running:
            self.progress.on_event(Event("started", run))
        self.progress.on_event(Event("step", running[0], {"step": 100, "steps": 400, "loss": 3.25}))


def show(done: int, *overrides: str) -> None:
    """Draw it on this process's terminal."""
    half_way = HalfWay(done, *overrides)
    with half_way.progress:
        half_way.go()
