"""What is forecast of a larger model follows from the verdicts: the base's lr where it transfers, the line where it drifts."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from support.analysis_data import sweep

from spectral_mup.analysis.forecast import forecast, format_forecast
from spectral_mup.analysis.results import ResultsError
from spectral_mup.analysis.verdict import judge

BASE = {"width": 128, "depth": 2}
WIDE = {"width": 4096, "depth": 2}
GRID = np.arange(-12.0, -7.4, 0.5)


def verdict(slope, axis="width", **keys):
    sizes = {"width": (128, 256, 512), "depth": (2, 4, 8)}[axis]
    return judge(sweep(slope, sizes=sizes, axis=axis, grid=GRID, seeds=3, noise=0.001, **keys), axis)


def test_an_optimum_that_stays_is_to_be_taken():
    f = forecast([verdict(0.0)], WIDE, BASE)
    assert (f.verdict, f.take, f.unmeasured) == ("transfers", "base", []) and f.log2_lr == f.base.estimate
    assert f.base.estimate == pytest.approx(-9, abs=0.1) and f.if_flat.lo < -9 < f.if_flat.hi
    assert f.regret.lo == 0 and f.regret.estimate < 0.01
    (drift,) = f.drifts
    assert (drift.smallest, drift.largest, drift.doublings_measured, drift.doublings_further) == (128, 512, 2, 3)


def test_an_optimum_that_drifts_is_followed():
    f = forecast([verdict(-0.5)], WIDE, BASE)
    assert (f.verdict, f.take) == ("drifts", "with_drift") and f.log2_lr == f.with_drift.estimate
    assert f.with_drift.estimate == pytest.approx(-9 - 0.5 * 5, abs=0.4)
    assert f.with_drift.lo < -11.5 < f.with_drift.hi and not f.if_flat.lo < -11.5 < f.if_flat.hi
    assert f.regret.estimate == pytest.approx(0.05 * 2.5**2 / 3.3, rel=0.3)  # curvature · distance² / loss


def test_undecided_is_both_and_costs_is_the_line():
    v = dataclasses.replace(verdict(0.0), verdict="undecided", reason="more seeds")
    f = forecast([v], WIDE, BASE)
    assert (f.take, f.reasons) == ("both", ["more seeds"]) and f.log2_lr == f.base.estimate
    assert forecast([dataclasses.replace(v, verdict="costs")], WIDE, BASE).take == "with_drift"


def test_octaves_of_width_and_depth_add():
    width, depth, target = verdict(-0.5), verdict(-0.25, "depth"), {"width": 4096, "depth": 32}
    both, alone = forecast([width, depth], target, BASE), forecast([width], WIDE, BASE)
    assert both.with_drift.estimate == pytest.approx(alone.with_drift.estimate + depth.slope * 4)
    assert both.with_drift.hi - both.with_drift.lo > alone.with_drift.hi - alone.with_drift.lo
    assert [d.axis for d in both.drifts] == ["width", "depth"] and both.take == "with_drift"
    assert forecast([verdict(0.0), verdict(-0.5, "depth")], target, BASE).verdict == "drifts"  # the worse of the two
    assert forecast([verdict(0.0), verdict(-0.5, "depth")], WIDE, BASE).verdict == "transfers"  # of the axis that is asked for


def test_an_axis_that_was_not_measured_is_named():
    f = forecast([verdict(0.0)], {"width": 128, "depth": 8}, BASE)
    assert (f.verdict, f.take, f.unmeasured, f.drifts) == ("not measured", "base", ["depth"], [])
    f = forecast([verdict(0.0)], {"width": 4096, "depth": 8}, BASE)
    assert (f.verdict, f.take, f.unmeasured) == ("transfers", "base", ["depth"])
    one_lr = judge(sweep(0.0, sizes=(128, 256, 512), grid=[-9.0]), "width")
    assert forecast([one_lr], WIDE, BASE).unmeasured == ["width"]


def test_a_slope_within_the_tolerance_adds_up_and_is_said():
    """The verdict stands, but the base's lr is out of the drift's interval at a target far away."""

    def said(slope, target):
        v = dataclasses.replace(verdict(slope), verdict="transfers")
        return " ".join(" ".join(format_forecast(forecast([v], target, BASE), target)).split())

    assert "lies outside the drift's interval" in said(-0.2, {"width": 2**17, "depth": 2})
    assert "lies outside the drift's interval" not in said(0.0, WIDE)


def test_through_two_sizes_there_is_a_line_of_unknown_error():
    v = judge(sweep(-0.5, sizes=(128, 256), grid=GRID, seeds=1), "width")
    said = format_forecast(forecast([v], WIDE, BASE), WIDE)
    assert sum("[unknown]" in line for line in said) >= 2 and not any("nan" in line for line in said)


def test_where_no_two_sizes_have_an_optimum_inside_nothing_is_forecast_of_the_target():
    """A control that drifts out of a grid: the bound is said, and no lr that nobody knows."""
    optima = {128: -6.0, 256: -8.6, 512: -9.6, 1024: -10.6}
    parts = [sweep(sizes=(n,), best=at, grid=np.arange(-8.0, -3.9), seeds=3, curvature=0.03) for n, at in optima.items()]
    v = judge(pd.concat(parts, ignore_index=True), "width")
    assert v.verdict == "drifts" and sum(o.fitted for o in v.finished.values()) == 1
    f = forecast([v], WIDE, BASE)
    assert f.take == "unknown" and f.log2_lr == f.base.estimate
    said = format_forecast(f, WIDE)
    assert not any("nan" in line for line in said) and "where to is not known" in " ".join(said)
    assert any(f"Drift over width: < {v.slope_hi:+.2f} octaves" in line for line in said)


def test_nothing_at_the_base_is_an_error():
    points = sweep(0.0, sizes=(128, 256, 512))
    points.loc[points["width"] == 128, "status"] = "missing"
    with pytest.raises(ResultsError, match="no run finished at the base, width 128"):
        forecast([judge(points, "width")], WIDE, BASE)
