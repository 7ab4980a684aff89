"""The actions about rules: explain (what each tensor trains with), derive (the rule that an optimizer's updates need)."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spectral_mup.cli.context import OK, Context
from spectral_mup.config.compose import load_config
from spectral_mup.config.schema import Config
from spectral_mup.data import Corpus
from spectral_mup.errors import ConfigError
from spectral_mup.models.configs import FamilyConfig
from spectral_mup.runs.provenance import commit
from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.theory.growth import KINDS
from spectral_mup.util.system import machine
from spectral_mup.util.text import pluralize, progress_bars


def explain(context: Context) -> int:
    """Print what each tensor trains with at the largest size: one rule in full, several side by side."""
    from spectral_mup.scaling.forward_multipliers import multipliers
    from spectral_mup.scaling.run_scaling import hyperparameters, scale_on_meta
    from spectral_mup.scaling.table import one_rule, side_by_side, tensor_rows

    config, sweep, vocab_size = context.config, context.sweep, context.load_corpus().vocab_size
    s, sources = config.sweep, {name: rule.source for name, rule in config.rule.items()}
    runs = [sweep.run(Curve(rule, max(s.width), max(s.depth)), max(s.lr), min(s.seed)) for rule in sources]
    scalings = [scale_on_meta(run, vocab_size) for run in runs]
    rows = [tensor_rows(scaling, **hyperparameters(run)) for scaling, run in zip(scalings, runs, strict=True)]
    forward = [asdict(multipliers(scaling)) for scaling in scalings]
    (first, source), alone = next(iter(sources.items())), len(rows) == 1
    print(_heading(config))
    print(one_rule(first, source, rows[0], forward[0]) if alone else side_by_side(sources, rows, forward))
    return OK


def _heading(config: Config) -> str:
    """Return the line above the table: its size, lr and optimizers."""
    s, o = config.sweep, config.optimizer
    others = ", ".join(f"{kind} {getattr(o, kind)}" for kind in KINDS if getattr(o, kind) != o.hidden)
    return (
        f"width {max(s.width)} (base {s.base_width}), depth {max(s.depth)} (base {s.base_depth}), lr 2^{max(s.lr):g}, "
        f"optimizer {o.name}{f' ({others})' if others else ''}, {config.train.weight_decay} λ"
    )


def derive(context: Context) -> int:
    """Measure the size law of an optimizer, print it, write the rule that follows; nothing is written if that fails."""
    overrides = [override for override in context.argv if not override.startswith("rule=")]
    config = load_config([*overrides, "rule=[spectral]"])  # the ladder uses its init and forward pass

    from spectral_mup.analysis.figures.printing import Printing
    from spectral_mup.analysis.figures.style import save
    from spectral_mup.measure.size_law_fit import first_log2_lr, law_table, size_laws
    from spectral_mup.measure.size_law_report import directions, format_size_laws, rule_yaml

    measured = _measure(context, config)
    laws = size_laws(measured)
    d, o = config.derive, config.optimizer
    targets = {a: o.algorithms[a].target for a in dict.fromkeys(getattr(o, kind) for kind in KINDS)}
    ladder = f"{config.model.family} at widths {', '.join(map(str, d.width))}, {d.steps} steps, "
    ladder += f"{pluralize(len(d.seed), 'seed')}, {config.data.source}"
    print(f"{o.name} ({', '.join(f'{a}: {target}' for a, target in targets.items())}) on {ladder}")
    print(format_size_laws(laws))

    folder, rule = Path(config.paths.results) / "derive" / o.name, Path("conf", "rule", "derived", f"{o.name}.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    printing = Printing.of(config.figures)
    drawing, data = directions(measured, laws, f"{o.name} on {ladder}.", printing)
    save(drawing, folder / "directions", data, printing)
    law_table(laws).to_csv(folder / "slopes.csv", index=False, float_format="%.6g", lineterminator="\n")
    rule.parent.mkdir(parents=True, exist_ok=True)
    rule.write_text(rule_yaml(laws, f"{ladder}; {', '.join(targets.values())}; commit {commit()}, {machine()}"), "utf-8")

    moved = f"by more than {d.update:.0%} of its norm per step"
    print(f"At lr 2^{first_log2_lr(measured):.1f}, no hidden weight of the base model changes {moved}.")
    print(f"Slopes and figure: {folder}/. Rule: {rule}")
    use = [*(override for override in overrides if override.startswith("optimizer")), f"rule=[derived/{o.name},standard]"]
    print(f"To use it: {context.program.format('launch')} {shlex.join(['sweep=mini/width', *use])}")
    return OK


def _measure(context: Context, config: Config) -> list[dict[str, Any]]:
    """Return the norms of the optimizer's directions on a ladder of models of the config's family."""
    from spectral_mup.measure.derive import measure_family

    d, smallest = config.derive, Curve("spectral", min(config.sweep.width), min(config.sweep.depth))
    run, corpus = open_sweep(config).run(smallest, 0.0, d.seed[0]), context.load_corpus()
    if not isinstance(corpus, Corpus) or not isinstance(config.model, FamilyConfig):
        raise ConfigError(
            "action=derive: needs a text and a model of which it can hold the MLP fixed, as model=nanogpt or huggingface; "
            "for another model of your own use spectral_mup.derive in Python"
        )
    with progress_bars() as show:
        return measure_family(
            run, corpus, widths=d.width, seeds=d.seed, steps=d.steps, batch_size=d.batch_size, update=d.update,
            on_run=lambda done, total, _seconds: show("measuring", done, total, f"{done / total:.0%}"),
        )  # fmt: skip
