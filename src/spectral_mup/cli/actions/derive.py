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


def derive(context: Context) -> int:
    """Measure the size law of an optimizer, print it, write the rule that follows; nothing is written if that fails."""
    overrides = [override for override in context.argv if not override.startswith("rule=")]
    config = load_config([*overrides, "rule=[spectral]"])  # the ladder uses its init and forward pass

    from spectral_mup.measure.size_law_fit import first_log2_lr, size_laws
    from spectral_mup.measure.size_law_report import format_size_laws

    measured = _measure(config)
    laws = size_laws(measured)
    d, o = config.derive, config.optimizer
    targets = {a: o.algorithms[a].target for a in dict.fromkeys(getattr(o, kind) for kind in KINDS)}
    ladder = f"{config.model.family} at widths {', '.join(map(str, d.width))}, {d.steps} steps, "
    ladder += f"{pluralize(len(d.seed), 'seed')}, {config.data.source}"
    print(f"{o.name} ({', '.join(f'{a}: {target}' for a, target in targets.items())}) on {ladder}")
    print(format_size_laws(laws))
    folder = _write_slopes(config, measured, laws, f"{o.name} on {ladder}.")
    path = _write_rule(o.name, laws, f"{ladder}; {', '.join(targets.values())}")
    moved = f"by more than {d.update:.0%} of its norm per step"
    print(f"At lr 2^{first_log2_lr(measured):.1f}, no hidden weight of the base model changes {moved}.")
    print(f"Slopes and figure: {folder}/. Rule: {path}")
    use = [*(override for override in overrides if override.startswith("optimizer")), f"rule=[derived/{o.name},standard]"]
    print(f"To use it: {context.program.launch} {shlex.join(['sweep=mini/width', *use])}")
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


def _write_slopes(config: Config, measured: Sequence[Any], laws: Sequence[Any], note: str) -> Path:
    """Figure and table of what was measured, below the results."""
    from spectral_mup.analysis.figures.style import save
    from spectral_mup.measure.size_law_fit import law_table
    from spectral_mup.measure.size_law_report import directions

    folder = Path(config.paths.results) / "derive" / config.optimizer.name
    folder.mkdir(parents=True, exist_ok=True)
    drawing, data = directions(measured, laws, note)
    save(drawing, folder / "directions", data)
    law_table(laws).to_csv(folder / "slopes.csv", index=False, float_format="%.6g", lineterminator="\n")
    return folder


def _write_rule(name: str, laws: Sequence[Any], origin: str) -> Path:
    """The rule as a preset of the working directory."""
    from spectral_mup.measure.size_law_report import rule_yaml
    from spectral_mup.runs.provenance import commit
    from spectral_mup.util.system import machine

    path = Path("conf", "rule", "derived", f"{name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rule_yaml(laws, f"{origin}; commit {commit()}, {machine()}"), "utf-8")
    return path
