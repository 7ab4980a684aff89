"""action=recipe: what to train a model with that is larger than any of the sweep."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from spectral_mup.cli.context import OK, Context
from spectral_mup.config.tune import LR
from spectral_mup.errors import ConfigError
from spectral_mup.runs.provenance import commit
from spectral_mup.runs.run_config import AXES, Curve


def recipe(context: Context) -> int:
    """Print for each rule what to train the target with, and write it beside the sweep's other results."""
    if context.config.target.width is None and context.config.target.depth is None:
        raise ConfigError("target.width: action=recipe needs it, or target.depth; give one, as in target.width=8192")
    if LR not in context.config.sweep.tune:
        raise ConfigError("sweep.tune: action=recipe needs a sweep of the learning rate, as in sweep.tune=lr")
    found = _judged(context)
    from spectral_mup.analysis.forecast import at_size, forecast, format_forecast
    from spectral_mup.scaling.recipe import recipe_of
    from spectral_mup.scaling.run_scaling import hyperparameters, scale_on_meta

    config, sweep, vocab_size = context.config, context.sweep, context.load_corpus().vocab_size
    base = {axis: sweep.base[axis] for axis in AXES[:2]}
    target = {axis: getattr(config.target, axis) or size for axis, size in base.items()}
    command = " ".join([context.whole_command("launch", "recipe"), *(f"target.{axis}={size}" for axis, size in target.items())])
    head = {"name": config.sweep.name, "command": command, "commit": commit()}
    head |= {"family": config.model.label, "optimizer": config.optimizer.name, "target": target, "base": base}
    held = next((curve.held for curve in context.plan.judged(LR)), ())  # a key that was tuned with lr by turns
    rules, said = {}, [f"{config.model.label}, {config.optimizer.name}, {at_size(target)}, tuned at {at_size(base)}"]
    for rule in config.rule:
        expected = forecast(found[rule], target, base)
        curve = Curve(rule, target["width"], target["depth"], held=held)
        run = sweep.run(curve, expected.log2_lr, min(config.sweep.seed))
        numbers = recipe_of(scale_on_meta(run, vocab_size), **hyperparameters(run))
        rules[rule] = {"forecast": asdict(expected), **numbers.to_dict()}
        lines = format_forecast(expected, target, independent=config.train.weight_decay == "independent")
        said.append("\n".join([*lines, f"groups at lr {numbers.lr:.4g}", str(numbers)]))
    folder = Path(config.paths.results) / config.sweep.name
    plain = json.loads(json.dumps(head | {"rules": rules}), parse_constant=lambda _: None)  # lists, and null for NaN
    (folder / "recipe.json").write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), "utf-8")
    print("\n\n".join(said))
    print(f"\nWritten: {folder}/recipe.json, recipe.yaml")
    return OK


def _judged(context: Context) -> dict[str, list[Any]]:
    """Return {rule: its Verdicts, one per axis} as analyze wrote them. Raises ConfigError if it has not."""
    from spectral_mup.analysis.results import read_results

    config = context.config
    found: dict[str, list[Any]] = {rule: [] for rule in config.rule}
    parts = [part for (key, axis), part in context.sweep.parts.items() if key == LR and axis in ("width", "depth")]
    for part in [context.folder / part for part in parts]:  # not what an earlier sweep of this name left in another
        for results in read_results(part) if (part / "verdicts.json").exists() else []:
            for v in results.verdicts if results.optimizer == config.optimizer.name else []:
                found.get(v.rule, []).append(v)
    if missing := [rule for rule, verdicts in found.items() if not verdicts]:
        raise ConfigError(
            f"sweep={config.sweep.name}: {config.optimizer.name} under rule {missing[0]} is not analysed yet, "
            f"{context.folder} has no verdict of it; write it with: {context.analyze_command()}"
        )
    return found
