"""runs and norms whose truth is known: curves with a vertex that moves, norms that grow as powers of the size."""

import numpy as np
import pandas as pd

from spectral_mup.analysis.figures import SweepData
from spectral_mup.analysis.figures.diagnostics import SIDES
from spectral_mup.analysis.report import judge_all

GRID = np.arange(-10.0, -7.9, 0.5)


def sweep(
    slope=0.0,
    *,
    sizes=(128, 256, 512),
    seeds=2,
    noise=0.002,
    tilt=0.0,
    grid=GRID,
    best=-9.0,
    curvature=0.05,
    rng=None,
    axis="width",
):
    """Parabolas in log2 lr whose vertex moves by `slope` octaves a doubling; noise in nats, tilt: a seed's own shift."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for size in sizes:
        vertex = best + slope * np.log2(size / sizes[0])
        floor = 3.5 - 0.1 * np.log2(size / sizes[0])
        for seed in range(seeds):
            own, offset = rng.normal(0, tilt), rng.normal(0, 0.02)
            for x in grid:
                loss = floor + offset + curvature * (x - vertex - own) ** 2 + rng.normal(0, noise)
                rows.append({axis: size, "log2_lr": x, "seed": seed, "status": "done", "loss": loss, "rule": "r"})
    return pd.DataFrame(rows)


KINDS = {"embed": "embedding", "blocks.0.attn": "hidden", "blocks.1.attn": "hidden", "readout": "readout"}


def norm_rows(slopes=None, *, sizes=(64, 128, 256, 512), seeds=3, lrs=(-8.0, -7.0), steps=(0, 1, 5, 20, 50), axis="width"):
    """Norms that grow as size**slope (by name, default 0), with 1 % noise; step 0 has no change yet."""
    rng, rows = np.random.default_rng(0), []
    for size in sizes:
        for lr in lrs:
            for seed in range(seeds):
                for step in steps:
                    for name, kind in KINDS.items():
                        value = 0.01 * step * size ** (slopes or {}).get(name, 0.0) * np.exp(rng.normal(0, 0.01))
                        row = {
                            axis: size,
                            "log2_lr": lr,
                            "seed": seed,
                            "step": step,
                            "rule": "r",
                            "run_id": f"{size}{lr}{seed}",
                        }
                        tensor = "hidden" if kind == "hidden" else kind
                        rows.append(row | {"name": name, "kind": kind, "what": "feature", "rms": 1.0, "delta_rms": value})
                        weight = {
                            "name": f"{name}.weight",
                            "kind": tensor,
                            "what": "tensor",
                            "fan_out": size,
                            "fan_in": 4 * size,
                        }
                        rows.append(row | weight | {"multiplier": 2.0, "update_norm": value})
    return pd.DataFrame(rows)


WIDTHS = (64, 128, 256, 512)


def data(rules=("standard", "spectral"), sizes=WIDTHS, axis="width"):
    """runs with a wall of diverged runs and one missing run, and norms; the rule 'standard' drifts and grows."""
    points, norms, other = [], [], "depth" if axis == "width" else "width"
    for rule in rules:
        drift, growth = (-0.5, {"blocks.1.attn": 1.0}) if rule == "standard" else (0.0, {})
        part = sweep(drift, sizes=sizes, grid=np.arange(-12.0, -6.9, 0.5), seeds=2, axis=axis)
        wall = part["log2_lr"] > -7.4 + drift * np.log2(part[axis] / sizes[0]) + 0.6 * part["seed"]
        part.loc[wall, ["status", "loss"]] = ["diverged", np.nan]
        part = part.assign(rule=rule, family="nanogpt", optimizer="adamw", diverged_step=np.where(wall, 37, np.nan))
        part = part.assign(steps=100, tokens=409600, epochs=0.4, **{other: 4})
        part["run_id"] = rule + part[axis].astype(str) + part["log2_lr"].astype(str) + part["seed"].astype(str)
        points.append(part)
        rows = norm_rows(growth, sizes=sizes, seeds=2, lrs=(-9.0,), axis=axis).assign(rule=rule)
        rows["run_id"] = rule + rows[axis].astype(str) + rows["log2_lr"].astype(str) + rows["seed"].astype(str)
        norms.append(rows)
    table = pd.concat(points, ignore_index=True)
    table.loc[len(table) - 11, ["status", "loss", "steps", "tokens", "epochs"]] = ["missing", None, None, None, None]
    return table, pd.concat(norms, ignore_index=True)


OWN = {"trust_ratios": "trust_ratio", "clip_fraction": "clip_fraction", "shampoo_spectra": "left_rank"}


STD = {"embedding": 0.0, "hidden": -0.5, "readout": -1.0}  # powers of the width


SHAPES = {"embedding": (1, 0), "hidden": (4, 1), "readout": (0, 1)}  # width × of (fan_out, fan_in); 0: does not grow


def recorded(rules=("standard", "spectral"), sizes=(64, 128, 256), axis="width", growth=None, optimizer=tuple(OWN)):
    """runs and norms whose tensors hold every column: the spectral condition kept, times width**growth[rule]."""
    growth = {"standard": 0.7} if growth is None else growth
    points, norms = data(rules, sizes, axis)
    rng = np.random.default_rng(3)
    zero = norms["step"] == 0
    size = norms[axis].to_numpy(float)
    width = size if axis == "width" else np.full(len(norms), 64.0)
    out, fan_in = (np.array([SHAPES.get(k, (1, 1))[i] for k in norms["kind"]]) * width for i in (0, 1))
    out, fan_in = np.where(out > 0, out, 50.0), np.where(fan_in > 0, fan_in, 1.0)
    drift = (size / size.min()) ** np.array([growth.get(r, 0.0) for r in norms["rule"]])
    std = np.array([width[0] ** 0.5]) * width ** np.array([STD.get(k, 0.0) for k in norms["kind"]])
    noise = np.exp(rng.normal(0, 0.005, len(norms)))
    weight = np.where(zero, std * (np.sqrt(out) + np.sqrt(fan_in)), 3.0 * np.sqrt(out / fan_in) * drift * noise)
    later = {
        "update_norm": 0.1 * np.sqrt(out / fan_in) * drift * noise,
        "update_stable_rank": 2.0 * drift * noise,
        "grad_stable_rank": 2.0 * noise,
        "update_alignment": np.full(len(norms), 0.9),
    }
    own = {
        "trust_ratios": {"trust_ratio": 5.0 * std * drift * noise},
        "clip_fraction": {"clip_fraction": 0.9 - 0.1 * np.log2(drift)},
        "shampoo_spectra": {f"{side}_{what}": 0.5 * drift * noise for side in ("left", "right") for what in SIDES},
    }
    for name in optimizer:
        later |= own[name]
    columns = {name: np.where(zero, np.nan, value) for name, value in later.items()}
    columns |= {"weight_norm": weight, "weight_alignment": np.full(len(norms), 0.5), "multiplier": 1.0}
    columns |= {"fan_out": out, "fan_in": fan_in}
    tensor = (norms["what"] == "tensor").to_numpy()
    table = norms.assign(**{name: np.where(tensor, value, np.nan) for name, value in columns.items()})
    return points, table.assign(rms=np.where(tensor, np.nan, std))


DEPTHS = (2, 4, 8, 16)


INSIDE = ["attention.query", "attention.out", "mlp.up", "mlp.down"]


def flat(name, position, depth):
    return 1.0


def deep(feature=flat, update=flat, *, alpha=1.0, depths=DEPTHS, seeds=3, rule="r", lr=-9.0):
    """Norms of transformers: change feature(name, (i+1)/L, L), multiplier · ‖ΔW‖₂ the same of update, in blocks over L."""
    rng, found = np.random.default_rng(0), []
    for depth in depths:
        inside = [(f"blocks.{i}.{n}", n, (i + 1) / depth) for i in range(depth) for n in INSIDE]
        outer = [(f"blocks.{i}", "block", (i + 1) / depth) for i in range(depth)]
        modules = [("token", "token", 0.0, "embedding"), *((*m, "hidden") for m in inside + outer)]
        modules += [("logits", "logits", 1.0, "readout")]
        for seed in range(seeds):
            run = {"depth": depth, "log2_lr": lr, "seed": seed, "rule": rule, "run_id": f"{rule}{depth}{lr}{seed}"}
            for step in (0, 20):
                for name, short, position, kind in modules:
                    noise, row = np.exp(rng.normal(0, 0.01)), run | {"step": step}
                    change = 0.05 * step * feature(short, position, depth) * noise
                    found.append(row | {"name": name, "kind": kind, "what": "feature", "rms": 1.0, "delta_rms": change})
                    if short == "block":
                        continue
                    branch, size = (depth**-alpha, depth**-1.0) if short in INSIDE else (1.0, 1.0)
                    of = {"kind": "hidden" if kind == "hidden" else kind, "multiplier": branch, "fan_in": 9, "fan_out": 9}
                    norm = update(short, position, depth) * size / branch * noise if step else np.nan
                    found.append(row | of | {"name": f"{name}.weight", "what": "tensor", "update_norm": norm})
    return pd.DataFrame(found)


def deep_data(rules, depths=(2, 4, 8)):
    """runs over depth, and norms of these {rule: feature}."""
    points, _ = data(list(rules), depths, "depth")
    points["run_id"] = points["rule"] + points["depth"].astype(str) + points["log2_lr"].astype(str) + points["seed"].astype(str)
    norms = [deep(feature, depths=depths, seeds=2, rule=rule) for rule, feature in rules.items()]
    return points, pd.concat(norms, ignore_index=True)


def sweep_data(points, norms, axis="width", base=64):
    """What figures are drawn from: the points with the verdicts of their rules."""
    return SweepData(points, norms, judge_all(points, norms, axis, base), {axis: base}, axis)
