"""action=derive: the rule that follows from how an optimizer's updates grow with width."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_mup.cli.bars import progress_bars
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK
from spectral_mup.config.compose import load_config
from spectral_mup.config.schema import Config
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.theory.growth import KINDS
from spectral_mup.util.text import pluralize

RULES = Path("conf", "rule", "derived")  # of the working directory


def derive(context: Context) -> int:
    """Measure the size law of an optimizer, print it, write the rule that follows; nothing is written if that fails."""
    overrides = [override for override in context.argv if not override.startswith("rule=")]
    config = load_config([*overrides, "rule=[spectral]"])  # the ladder uses its init and forward pass

    from spectral_mup.measure.size_law_fit import first_log2_lr, size_laws
    from spectral_mup.measure.size_law_report import package_name, text

    measured = _measure(config)
    laws = size_laws(measured)
    name = config.optimizer.name
    print(f"{name} ({', '.join(f'{a}: {t}' for a, t in _targets(config).items())}) on {_ladder(config)}")
    print(text(laws))
    folder = _write_slopes(config, measured, laws)
    path = _write_rule(config, laws)
    print(
        f"At lr 2^{first_log2_lr(measured):.1f}, no hidden weight of the base model changes by more than "
        f"{config.derive.update:.0%} of its norm per step."
    )
    print(f"Slopes and figure: {folder}/. Rule: {path} ({package_name(name)})")
    optimizer = [override for override in overrides if override.startswith("optimizer")]
    use = shlex.join(["sweep=mini/width", *optimizer, f"rule=[derived/{name},standard]"])
    print(f"To use it: {context.program.launch} {use}")
    return OK


def _measure(config: Config) -> list[dict[str, Any]]:
    """Norms of the optimizer's directions on a ladder of models of the config's family."""
    from spectral_mup.data import load
    from spectral_mup.measure.derive import measure_family

    d, sweep = config.derive, open_sweep(config)
    run = sweep.run(sweep.curves()[0][0], 0.0, d.seed[0])
    corpus = load(config.data.source, config.data.path, config.data.vocab_size)
    with progress_bars() as show:
        return measure_family(
            run, corpus, widths=d.width, seeds=d.seed, steps=d.steps, batch_size=d.batch_size, update=d.update,
            on_run=lambda done, total, _seconds: show("measuring", done, total, f"{done / total:.0%}"),
        )  # fmt: skip


def _targets(config: Config) -> dict[str, str]:
    """{algorithm: class} of those in use."""
    used = dict.fromkeys(getattr(config.optimizer, kind) for kind in KINDS)
    return {algorithm: config.optimizer.algorithms[algorithm].target for algorithm in used}


def _ladder(config: Config) -> str:
    d = config.derive
    widths = ", ".join(map(str, d.width))
    return f"{config.model.family} at widths {widths}, {d.steps} steps, {pluralize(len(d.seed), 'seed')}, {config.data.source}"


def _write_slopes(config: Config, measured: Sequence[Any], laws: Sequence[Any]) -> Path:
    """Figure and table of what was measured, below the results."""
    from spectral_mup.analysis.figures.style import save
    from spectral_mup.measure.size_law_fit import table
    from spectral_mup.measure.size_law_report import directions

    name = config.optimizer.name
    folder = Path(config.paths.results) / "derive" / name
    folder.mkdir(parents=True, exist_ok=True)
    drawing, data = directions(measured, laws, f"{name} on {_ladder(config)}.")
    save(drawing, folder / "directions", data)
    table(laws).to_csv(folder / "slopes.csv", index=False, float_format="%.6g", lineterminator="\n")
    return folder


def _write_rule(config: Config, laws: Sequence[Any]) -> Path:
    """The rule as a preset of the working directory."""
    from spectral_mup.measure.size_law_report import rule_yaml
    from spectral_mup.runs.provenance import commit, machine

    name = config.optimizer.name
    origin = f"{_ladder(config)}; {', '.join(_targets(config).values())}; commit {commit()}, {machine()}"
    path = RULES / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rule_yaml(name, laws, origin), "utf-8")
    return path
