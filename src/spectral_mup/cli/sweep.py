"""A whole sweep from Python: the same plan, search, records and verdict as `launch` and `analyze`, for your own model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_mup.cli.context import FAILED, INTERRUPTED, Context
from spectral_mup.errors import ConfigError
from spectral_mup.models import FAMILIES
from spectral_mup.util.registry import GIVEN, import_path

if TYPE_CHECKING:
    from spectral_mup.analysis.load import Loaded


@dataclass
class CallContext(Context):
    """The context of a call in Python: in place of commands it suggests the same call, which resumes the sweep."""

    call: str = ""

    def launch_command(self, action: str | None = None) -> str:
        return self.call

    def analyze_command(self) -> str:
        return self.call

    def whole_command(self, script: str, action: str | None = None) -> str:
        return self.call

    def next_lines(self) -> list[str]:
        return []


def sweep(
    model: Callable[..., Any] | str,
    *overrides: str,
    name: str,
    widths: Sequence[int],
    depths: Sequence[int] | None = None,
    log2_lrs: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    rules: Sequence[str] | None = None,
    batches: Callable[..., Any] | str | None = None,
    folder: str | Path = ".",
    workers: int | None = None,
    quiet: bool = False,
) -> Loaded:
    """Train a model at several sizes and learning rates until it is decided whether the best one stays, and judge it.

    Args:
        model: A function that returns a torch.nn.Module, called with width, and with depth, vocab_size and context if it
            takes them; its import path; or the name of a family: nanogpt, llama2, or huggingface with "model.type=qwen3".
        overrides: Any further keys as on the command line, as in "model.context=128", "sweep.budget=1h".
        name: The sweep's name; its results are in FOLDER/results/NAME.
        widths: The smallest is the base.
        depths: In blocks; the smallest is the base.
        log2_lrs: Coarse grid of log2 of the base's learning rate, extended and refined where the search needs it.
        seeds: To begin with; the search adds more where the verdict needs them.
        steps: Optimizer steps per run, of which a tenth is warmup unless overrides say otherwise.
        batch_size: Sequences, or examples, per step.
        optimizer: Name of a preset, as in "muon".
        rules: Names of rules; by default a control is judged beside spectral.
        batches: A function (seed, step[, batch_size]) to a dict or tuple, from which the model returns its loss, seed None
            for validation; None: a text, Shakespeare unless overrides name another, as in "data=pydoc".
        folder: Where runs/ and results/ are; a run that is done there is not trained again.
        workers: Processes that train; None: as many as the cores have room for, or none where a function has no import
            path, as in a notebook; 0: none, runs are trained in this process, one by one.
        quiet: Print nothing.

    Returns:
        The results, as `load("FOLDER/results/NAME")` returns them.

    Raises:
        ConfigError: The config is one that a launch would refuse.
        Refusal: The name was used with another config; "yes=true" replaces its results.
        RuntimeError: Runs failed; the message says where their tracebacks are.
        KeyboardInterrupt: After Ctrl-C, once the run at hand is saved; the same call resumes.
    """
    from spectral_mup.analysis.load import load  # here, as `import spectral_mup` needs neither pandas nor, below, hydra
    from spectral_mup.cli.analyze import judge_and_draw
    from spectral_mup.cli.local_launch import train_here
    from spectral_mup.cli.screen import show
    from spectral_mup.config.compose import load_config

    with (
        StringIO() if quiet else nullcontext(sys.stdout) as out,
        redirect_stdout(out),
        _given(model, batches) as (target, data),
    ):
        keys: dict[str, Any] = _keys_of_model(target) | _keys_of_data(data)
        keys |= {"sweep.name": name, "sweep.width": _list(widths), "sweep.base_width": min(widths, default=None)}
        keys |= {"sweep.depth": _list(depths), "sweep.base_depth": depths and min(depths)}
        keys |= {"sweep.lr": _list(log2_lrs), "sweep.seed": _list(seeds), "optimizer": optimizer, "rule": _list(rules)}
        keys |= {"train.steps": steps, "train.batch_size": batch_size}
        keys |= {f"paths.{kind}": Path(folder, kind) for kind in ("runs", "results")} | {"cluster.workers": workers or None}
        argv = [*(f"{key}={value}" for key, value in keys.items() if value is not None), *overrides]
        call = f"the same call, sweep(…, name={name!r})"
        context = CallContext(load_config(argv), argv, call=call)
        context.check_own_code()
        if context.plan.todo:
            importable = {target, data}.isdisjoint(GIVEN)
            if workers and not importable:
                raise ConfigError(f"workers={workers}: cannot import {target}; define it in a module, or leave workers out")
            with _main_left_alone():
                code = train_here(context, in_this_process=workers == 0 or not importable)
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            if code == FAILED:
                raise RuntimeError(f"runs failed; their tracebacks are in error.txt under {context.runs}/")
        show(judge_and_draw(context)["screen"])
    return load(Path(folder, "results", name))


@contextmanager
def _given(*functions: Callable[..., Any] | str | None) -> Iterator[list[str | None]]:
    """Yield names for a config in place of functions; those without an import path are registered while inside."""
    names: list[str | None] = []
    mine: dict[str, Any] = {}
    for function in functions:
        name = import_path(function) if callable(function) else function
        if callable(function) and name is None:
            name = f"__main__.{_name(function)}"
            mine[name] = function
        names.append(name)
    GIVEN.update(mine)
    try:
        yield names
    finally:
        for name in mine:
            del GIVEN[name]


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return name if name.isidentifier() else "function"


def _keys_of_model(target: str | None) -> dict[str, Any]:
    return {"model": target} if target in FAMILIES else {"model": "factory", "model.target": target}


def _keys_of_data(target: str | None) -> dict[str, Any]:
    return {} if target is None else {"data": "batches", "data.target": target}


def _list(values: Sequence[Any] | None) -> str | None:
    return None if values is None else f"[{','.join(map(str, values))}]"


@contextmanager
def _main_left_alone() -> Iterator[None]:
    """Keep new processes from running the script that called: they import what they need by its path."""
    main = sys.modules["__main__"].__dict__
    hidden = {key: main.pop(key) for key in ("__file__", "__spec__") if key in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)
