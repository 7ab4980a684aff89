"""action=explain: what each tensor trains with."""

from __future__ import annotations

from dataclasses import asdict

from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import OK
from spectral_mup.theory.growth import KINDS


def explain(context: Context) -> int:
    """Print what each tensor trains with at the largest size: one rule in full, several side by side."""
    from spectral_mup.data import load
    from spectral_mup.scaling.forward_multipliers import multipliers
    from spectral_mup.scaling.run_scaling import hyperparameters, scale_on_meta
    from spectral_mup.scaling.table import one_rule, side_by_side, tensor_rows

    config, sweep = context.config, context.sweep
    vocab_size = load(config.data.source, config.data.path, config.data.vocab_size).vocab_size
    largest = {curves[-1].rule: curves[-1] for curves in sweep.curves()}
    runs = {rule: sweep.run(curve, max(config.sweep.lr), min(config.sweep.seed)) for rule, curve in largest.items()}
    sources = {rule: config.rule[rule].source for rule in runs}
    scalings = {rule: scale_on_meta(run, vocab_size) for rule, run in runs.items()}
    rows = [tensor_rows(scalings[rule], **hyperparameters(run)) for rule, run in runs.items()]
    forward = [asdict(multipliers(scaling)) for scaling in scalings.values()]
    print(_heading(context, max(config.sweep.width), max(config.sweep.depth)))
    print(
        one_rule(*next(iter(sources.items())), rows[0], forward[0]) if len(rows) == 1 else side_by_side(sources, rows, forward)
    )
    return OK


def _heading(context: Context, width: int, depth: int) -> str:
    """The size, lr and optimizers of the table below it."""
    s, o = context.config.sweep, context.config.optimizer
    others = ", ".join(f"{kind} {getattr(o, kind)}" for kind in KINDS if getattr(o, kind) != o.hidden)
    return (
        f"width {width} (base {s.base_width}), depth {depth} (base {s.base_depth}), lr 2^{max(s.lr):g}, "
        f"optimizer {o.name}{f' ({others})' if others else ''}, {context.config.train.weight_decay} λ"
    )
