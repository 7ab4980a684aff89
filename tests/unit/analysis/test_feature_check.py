"""Laws of the feature-norm check: flat passes, growing fails and is named, and what was not measured is not decided."""

import numpy as np
import pandas as pd
import pytest
from support.analysis_data import norm_rows

from spectral_mup.analysis.feature_check import check_features, relative, representative, short


def test_flat_passes():
    check = check_features(norm_rows(), near=-7.2)
    assert check.passed and check.summary == "passed" and not check.indicative
    assert (check.log2_lr, check.step) == (-7, 20)
    assert check.failed == check.failed_updates == ()


@pytest.mark.parametrize(("slope", "passed"), [(0.5, False), (-0.5, False), (0.12, True)])
def test_hidden_slope_is_found_and_judged(slope, passed):
    check = check_features(norm_rows({"blocks.1.attn": slope}), near=-7)
    assert check.passed is passed
    row = check.table[(check.table["name"] == "blocks.1.attn") & check.table["judged"]].iloc[0]
    assert row["slope"] == pytest.approx(slope, abs=0.02) and row["lo"] < slope < row["hi"]
    if not passed:
        assert check.failed == ("blocks.1.attn",) and f"blocks.1.attn ({slope:+.2f})" in check.summary
        assert check.failed_updates == ("blocks.1.attn.weight",)


def test_embedding_and_readout_are_judged_more_strictly():
    for name in ("embed", "readout"):
        assert check_features(norm_rows({name: 0.13}), near=-7).failed == (name,)


def test_update_is_read_in_natural_units():
    values = check_features(norm_rows(), near=-7).values
    update, feature = (np.asarray(values[values["quantity"] == q]["value"]) for q in ("update", "feature"))
    assert np.allclose(update, feature * 2 * np.sqrt(4))


def test_a_common_lr_is_needed():
    table = norm_rows()
    wide = table["width"] == 512
    assert check_features(table[~wide | (table["log2_lr"] == -8)], near=-7).log2_lr == -8
    none = check_features(table[wide ^ (table["log2_lr"] == -8)], near=-7)
    assert none.passed is None and "no lr has norms" in none.summary
    absent = check_features(table[~wide], near=-7, sizes=[64, 128, 256, 512])  # a width of which nothing ran
    assert absent.passed is None and "every width" in absent.summary
    assert "no norms were recorded" in check_features(pd.DataFrame(), near=-7, sizes=[64, 128]).summary
    assert "only one width" in check_features(table[wide], near=-7).summary


def test_a_run_that_diverged_early_moves_the_judged_step():
    table = norm_rows()
    died = (table["width"] == 512) & (table["step"] > 5)
    assert check_features(table[~died], near=-7).step == 5
    broken = table.assign(delta_rms=table["delta_rms"].where(~died, np.inf))
    assert check_features(broken, near=-7).step == 5


def test_what_has_not_moved_decides_nothing():
    still = norm_rows()
    still.loc[still["name"] == "blocks.0.attn", "delta_rms"] = 0.0
    check = check_features(still, near=-7)
    assert check.passed is None and "blocks.0.attn" in check.summary


def test_few_sizes_or_seeds_are_only_indicative():
    for few in (norm_rows(sizes=(64, 128, 256)), norm_rows(seeds=2)):
        check = check_features(few, near=-7)
        assert check.passed and check.indicative and check.summary == "passed (indicative)"


def test_depth_judges_what_every_depth_has():
    table = norm_rows(sizes=(2, 4, 8), axis="depth")
    deep_only = table[~((table["depth"] == 2) & (table["name"] == "blocks.1.attn"))]
    check = check_features(deep_only, near=-7, axis="depth")
    assert check.passed and "blocks.1.attn" not in set(check.table["name"][check.table["judged"]])


def test_names_shown_are_those_of_the_last_block():
    check = check_features(norm_rows({"readout": 0.4}), near=-7)
    assert representative([check], "feature", most=10) == ["embed", "blocks.1.attn", "readout"]
    assert representative([check], "feature", most=1) == ["readout"]
    assert [short(n) for n in ("blocks.3.attn.q.weight", "embed.weight", "blocks.3")] == ["attn.q", "embed", "block"]
    ratio = relative(check, "feature", "readout")
    assert ratio[ratio[:, 0] == 64, 3].mean() == pytest.approx(0, abs=1e-9)
    assert ratio[ratio[:, 0] == 512, 3].mean() == pytest.approx(1.2, abs=0.05)


def test_seeds_that_disagree_leave_a_module_undecided():
    """The same mean slope outside the limit fails when the seeds agree on it and is undecided when they do not."""
    agreed = check_features(norm_rows({"blocks.1.attn": 0.4}), near=-7)
    assert agreed.passed is False and agreed.failed == ("blocks.1.attn",)
    table = norm_rows({"blocks.1.attn": 0.4}, seeds=2)
    at = (table["name"] == "blocks.1.attn").to_numpy()
    tilt = np.where(table["seed"] == 0, 1.5, -1.5)
    table.loc[at, "delta_rms"] *= (table["width"] / 64.0)[at] ** tilt[at]
    check = check_features(table, near=-7)
    row = check.table[(check.table["name"] == "blocks.1.attn") & check.table["judged"]].iloc[0]
    assert abs(row["slope"]) > 0.15 and row["lo"] < 0.15 and row["verdict"] == "undecided"
    assert check.passed is None and check.failed == ()
    assert check.summary.startswith("undecided: 3 of 4") and "blocks.1.attn" in check.summary


def test_a_wide_interval_does_not_pass():
    """Flat in the mean, but with noise that would hide a slope as steep as the limit: one module, then all."""
    noise = np.exp(np.random.default_rng(1).normal(0, 0.3, len(norm_rows())))
    table = norm_rows()
    one = table.assign(delta_rms=table["delta_rms"] * np.where(table["name"] == "embed", noise, 1))
    check = check_features(one, near=-7)
    row = check.table[(check.table["name"] == "embed") & check.table["judged"]].iloc[0]
    assert row["hi"] - row["lo"] > 0.2 and row["verdict"] == "undecided" and check.passed is None
    assert "3 of 4 modules passed, 1 undecided (embed" in check.summary
    every = check_features(table.assign(delta_rms=table["delta_rms"] * noise), near=-7)
    assert every.passed is None and every.summary.startswith("undecided: all 4 (")
