"""Laws of the small multiples: a panel per sweep of the lr, of the rule that is tested, with the verdict of each over it."""

from dataclasses import replace

import numpy as np
import pytest
from support.figures import assert_printable
from support.summary_data import SIX, of_slope, sweep

from spectral_mup.analysis.figures.style import VERDICTS, ink
from spectral_mup.analysis.figures.transfer import transfer_figure

RULES = ("standard", "spectral")


@pytest.fixture(scope="module")
def six():
    """Every verdict, of six optimizers; their optima lie at different lrs."""
    verdicts = [*VERDICTS, "transfers", "drifts"]
    sweeps = [sweep(o, rules=RULES, **of_slope(-0.1, 0.1, v)) for o, v in zip(SIX, verdicts, strict=True)]
    drawing = transfer_figure(sweeps)
    assert drawing is not None
    return sweeps, *drawing


def test_a_panel_an_optimizer_with_its_own_verdict_over_it(six):
    sweeps, figure, _ = six
    assert len(figure.axes) == 6
    for ax, r, name in zip(figure.axes, sweeps, ("AdamW", "ADOPT", "LAMB", "Muon", "Shampoo", "Sophia"), strict=True):
        assert ax.get_title("left").endswith(f") {name}")
        (verdict,) = [t for t in ax.texts if t.get_text().startswith(f"{r.verdicts[0].verdict}:")]
        assert "[\N{MINUS SIGN}0.10,\N{NO-BREAK SPACE}+0.10]" in verdict.get_text()
        assert verdict.get_color() == ink(VERDICTS[r.verdicts[0].verdict]["color"])


def test_the_rule_that_is_tested_is_drawn_and_no_control(six):
    sweeps, _, drawn = six
    assert set(drawn["rule"]) == {"spectral"} and set(drawn["optimizer"]) == set(SIX)
    spectral = next(v for v in sweeps[0].verdicts if v.rule == "spectral")
    found = drawn[(drawn["optimizer"] == "adamw") & (drawn["what"] == "optimum")].set_index("size")["log2_lr"]
    assert dict(found) == pytest.approx({size: o.log2_lr for size, o in spectral.finished.items()})
    _, own = transfer_figure([sweep("muon", rules=("standard", "mine"))])
    assert set(own["rule"]) == {"mine"}


def test_what_tests_no_rule_on_the_lr_is_left_out():
    partner = sweep("muon", name="partner", tuned="optimizer.adamw.lr")
    assert transfer_figure([sweep("adamw", rules=("standard",)), partner]) is None
    figure, drawn = transfer_figure([partner, sweep("adamw")])
    assert len(figure.axes) == 1 and set(drawn["optimizer"]) == {"adamw"}


def drifting(optimizer):
    """A sweep whose rule, which claims transfer, drifts."""
    r = sweep(optimizer, rules=("standard",))
    return replace(r, points=r.points.assign(rule="mine"), verdicts=[replace(r.verdicts[0], rule="mine")])


def test_all_panels_show_as_many_octaves_with_every_optimum_in_view():
    figure, drawn = transfer_figure([sweep("adamw"), drifting("adopt")])
    spans = [np.ptp(ax.get_xlim()) for ax in figure.axes]
    assert spans[0] == pytest.approx(spans[1])
    for ax, optimizer in zip(figure.axes, ("adamw", "adopt"), strict=True):
        optima = drawn.loc[(drawn["optimizer"] == optimizer) & (drawn["what"] == "optimum"), "log2_lr"]
        assert len(optima) == 3 and ax.get_xlim()[0] < optima.min() - 1.9 < optima.max() + 1.9 < ax.get_xlim()[1]


def test_it_is_fit_for_print(six):
    assert_printable(six[1])
    assert_printable(transfer_figure([sweep("adamw")])[0])
