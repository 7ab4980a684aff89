"""Sweeps side by side whose slopes and verdicts are given, as read from their results."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from spectral_mup.analysis.report import judge_all
from spectral_mup.analysis.results import Results
from support.analysis_data import data

SIX = ("adamw", "adopt", "lamb", "muon", "shampoo", "sophia")


@cache
def judged(rules, axis):
    """Points of these rules over an axis, and their verdicts."""
    sizes = (64, 128, 256) if axis == "width" else (2, 4, 8)
    points, norms = data(rules, sizes, axis)
    return points, judge_all(points, norms.iloc[:0], axis, sizes[0])


def sweep(optimizer="adamw", family="nanogpt", axis="width", rules=("spectral", "standard"), name="", **verdict):
    """A sweep of these rules; `verdict`: fields that all its verdicts have instead of those found."""
    points, found = judged(tuple(rules), axis)
    points = points.assign(optimizer=optimizer, family=family)
    verdicts = [replace(v, **verdict) for v in found]
    name = name or f"{family}_{axis}/{optimizer}"
    return Results(Path("results", name), name, optimizer, f"python analyze.py sweep={name}", "abc", 0.5, [], points, verdicts)


def of_slope(lo, hi, verdict="undecided", slope=None, **more):
    """Fields of a verdict: the slope half way between its bounds unless it is given, NaN where one is not known."""
    found = (lo + hi) / 2 if slope is None and np.isfinite([lo, hi]).all() else np.nan if slope is None else slope
    return {"slope": found, "slope_lo": lo, "slope_hi": hi, "verdict": verdict, **more}


def grid():
    """Six optimizers in four groups of (family, axis), half of them with a control: 24 sweeps, 36 lines."""
    rules = {"width": ("spectral", "standard"), "depth": ("spectral",)}
    groups = [(family, axis) for family in ("llama2", "nanogpt") for axis in rules]
    return [sweep(optimizer, family, axis, rules[axis]) for optimizer in SIX for family, axis in groups]
