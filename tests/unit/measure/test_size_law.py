"""From directions to a size law: known growths are recovered, vague ones are called vague, strange ones are measured."""

from typing import Any

import numpy as np
import pytest
import torch
from support.optimizers import law_name

from spectral_mup.analysis.figures.style import save
from spectral_mup.measure.directions import DeriveError, check_ladder, norms_by_name
from spectral_mup.measure.size_law_fit import size_laws
from spectral_mup.measure.size_law_report import directions, format_size_laws, lr_exponent, rule_yaml
from spectral_mup.theory.growth import Growth, monomial
from spectral_mup.theory.size_laws import SIZE_LAWS

WIDTHS = (64, 128, 256, 512)
TENSORS = {  # name: (kind, label, fan_out grows, fan_in grows)
    "embed": ("embedding", "embedding (m, 1)", 1, 0), "query": ("hidden", "hidden (m, m)", 1, 1),
    "key": ("hidden", "hidden (m, m)", 1, 1), "up": ("hidden", "hidden (1, m)", 0, 1),
    "down": ("hidden", "hidden (m, 1)", 1, 0), "head": ("readout", "readout (1, m)", 0, 1),
}  # fmt: skip


def measured(
    size: Any, noise: float = 0.02, widths=WIDTHS, seeds=(0, 1), steps=range(1, 13), tensors=TENSORS, init_scales=(8.0,)
) -> list[dict]:
    """Rows as measure_directions returns them, of directions that grow as `size` (exponents, or a function of the tensor)."""
    rng = np.random.default_rng(0)
    rows = []
    runs = [(w, s, 1.0, 1.0) for w in widths for s in seeds] + [(widths[0], seeds[0], 16.0, 1.0)]
    for width, seed, loss_scale, init_scale in runs + [(widths[0], seeds[0], 1.0, scale) for scale in init_scales]:
        run = rng.normal(0, noise)
        for name, (kind, label, out, fan_in) in tensors.items():
            m = width / widths[0]
            ratios = {
                "m_out": m**out,
                "m_in": m**fan_in,
                "m_max": m ** max(out, fan_in),
                "m_aspect": m ** (out and not fan_in),
                "a": 1.0,
            }
            ratios |= {"c": 1 / m if kind == "readout" else 1.0, "s": m**-0.5 if kind == "hidden" and fan_in else 1.0}
            exponents: Any = size(name) if callable(size) else size
            follows = loss_scale ** exponents.get("a", 0.0) * init_scale ** exponents.get("s", 0.0)
            for step in steps:
                norm = 3.0 * follows * monomial(exponents, ratios) * 2 ** (run * (loss_scale == init_scale == 1))
                rows.append(
                    {
                        "width": width,
                        "seed": seed,
                        "loss_scale": loss_scale,
                        "init_scale": init_scale,
                        "step": step,
                        "tensor": name,
                        "kind": kind,
                    }
                    | {"label": label, "algorithm": "toy", "ratios": ratios, "direction": norm, "lr": 0.01 / norm}
                )
    return rows


@pytest.mark.parametrize("name", SIZE_LAWS)
def test_a_named_law_is_recovered_and_every_other_rejected(name):
    (law,) = size_laws(measured(SIZE_LAWS[name]))
    assert law.law == name and not law.also and not law.too_few
    assert law_name(law.exponents["hidden"]) == name


SQUARE = {name: TENSORS[name] for name in ("embed", "query", "head")}  # no hidden matrix grows in one dim alone
MAX = "orthogonal × √max(fan_out, fan_in)"


@pytest.mark.parametrize("name", ["norm of the weight (LAMB)", MAX])
def test_a_second_init_tells_laws_apart_that_agree_under_one(name):
    """Under the rule `spectral` s·√(m_out·m_in) and √m_max are m^1/2 for all of these tensors; eight times the init is eight
    times the norm of the weight, and changes nothing of the other."""
    (law,) = size_laws(measured(SIZE_LAWS[name], tensors=SQUARE))
    assert law.law == name and not law.also and not law.too_few
    assert [c.weight for c in law.classes] == pytest.approx([1.0 if "norm" in name else 0.0] * 3, abs=0.1)
    (blind,) = size_laws(measured(SIZE_LAWS[name], tensors=SQUARE, init_scales=()))
    assert {blind.law, *blind.also} == {"norm of the weight (LAMB)", MAX}  # the control: all that fit are named
    assert blind.too_few.startswith("several laws say the same of these tensors")
    assert " or ".join([str(blind.law), *blind.also]) in format_size_laws([blind])


def test_laws_that_no_tensor_of_its_kinds_can_tell_apart_are_one():
    """Of an embedding (m, 1) √fan_out, √(fan_out/fan_in), √max and √max(1, fan_out/fan_in) are the same, whatever the model."""
    (law,) = size_laws(measured({"m_out": 0.5}, tensors={"embed": TENSORS["embed"]}))
    assert not law.also and not law.too_few
    (law,) = size_laws(measured({}, tensors={"query": TENSORS["query"]}))
    assert {law.law, *law.also} == {
        "orthogonal (Muon, Shampoo)", "orthogonal × √(fan_out/fan_in)", "orthogonal × √max(1, fan_out/fan_in)",
    }  # fmt: skip


def test_a_strange_law_that_follows_the_weight_has_the_weight_in_its_exponents():
    """What the ladder's own s does is taken out."""
    (law,) = size_laws(measured({"s": 1.0, "m_out": 1.0, "m_in": 0.2}))
    assert law.law is None
    assert law.exponents["hidden"] == {"s": 1.0, "m_out": pytest.approx(1.0, abs=0.1), "m_in": pytest.approx(0.2, abs=0.1)}


def test_lr_that_follows_is_the_rule_of_the_theory():
    """Embedding, hidden, readout (c = 1/m) of the worked table: AdamW 1, 1/m, 1; Muon m^1/2, 1, m^1/2; SGD m, 1, m."""
    for name, expected in {
        "entries of order 1 (Adam, ADOPT, Sophia, Lion)": (0, -1, 0),
        "orthogonal (Muon, Shampoo)": (0.5, 0, 0.5),
        "raw gradient (SGD)": (1, 0, 1),
        "norm of the weight (LAMB)": (0, -0.5, 0),
    }.items():
        (law,) = size_laws(measured(SIZE_LAWS[name]))
        lr = {c.label: lr_exponent(c, c.laws[name]) for c in law.classes}
        assert [lr[k] for k in ("embedding (m, 1)", "hidden (m, m)", "readout (1, m)")] == pytest.approx(expected, abs=1e-9)


def test_a_strange_law_is_none_and_its_exponents_are_measured():
    strange = {"embed": {"m_out": 0.3}, "head": {"m_in": 0.1}}
    (law,) = size_laws(measured(lambda name: strange.get(name, {"m_out": 0.5, "m_in": 0.2})))
    assert law.law is None and not law.too_few
    assert law.exponents["hidden"] == {"m_out": pytest.approx(0.5, abs=0.06), "m_in": pytest.approx(0.2, abs=0.06)}
    assert law.exponents["embedding"] == {"m_out": pytest.approx(0.3, abs=0.06)}
    assert law.exponents["readout"] == {"m_in": pytest.approx(0.1, abs=0.06)}
    assert "none: measured exponents" in format_size_laws([law])


def test_following_the_gradient_is_measured():
    (law,) = size_laws(measured({"m_out": 0.5, "m_in": 0.5, "a": 1.0, "c": 0.0}))
    assert all(c.gradient == pytest.approx(1, abs=0.01) for c in law.classes) and law.law is None
    assert law.exponents["hidden"]["a"] == pytest.approx(1, abs=0.01)


def test_noise_widths_and_seeds_too_few_are_said():
    (noisy,) = size_laws(measured({}, noise=1.2))
    assert "more seeds (now 2)" in noisy.too_few and "undecided" in format_size_laws([noisy])
    (short,) = size_laws(measured({}, noise=0.3, widths=(64, 128, 256), seeds=(0,)))
    assert "more widths (now 3)" in short.too_few and "more seeds (now 1)" in short.too_few
    (fine,) = size_laws(measured({}))
    assert not fine.too_few


def growths(shapes: dict[int, tuple[int, int]], kind: str = "hidden") -> dict[int, dict[str, Growth]]:
    base = shapes[min(shapes)]
    return {width: {"w": Growth(kind, shape, base)} for width, shape in shapes.items()}


def test_a_ladder_that_does_not_grow_is_refused():
    check_ladder(growths({64: (64, 64), 128: (128, 128), 256: (256, 256)}))
    with pytest.raises(DeriveError, match="w: a growing matrix has shape"):
        check_ladder(growths({64: (64, 64), 128: (128, 128), 256: (128, 128)}))
    with pytest.raises(DeriveError, match="w: its fan_in should grow"):
        check_ladder(growths({64: (10, 64), 128: (10, 128), 256: (10, 128)}, "readout"))
    with pytest.raises(DeriveError, match="no hidden matrix"):
        check_ladder(growths({64: (10, 64), 128: (10, 128), 256: (10, 256)}, "readout"))
    with pytest.raises(DeriveError, match="three widths"):
        check_ladder(growths({64: (64, 64), 128: (128, 128)}))


def test_norms_of_experts_are_those_of_their_matrices():
    """Four orthogonal experts have norm 1, stored either way; as a convolution the same numbers are one matrix (4, 64·16)."""
    orthogonal = torch.linalg.qr(torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(0)))[0]
    hidden = Growth("hidden", (64, 16), (16, 4))
    assert norms_by_name({"w": orthogonal, "v": orthogonal.mT}, {"w": hidden, "v": hidden}) == pytest.approx(
        {"w": 1, "v": 1}, rel=1e-3
    )
    convolution = Growth("hidden", (4, 64 * 16), (4, 16 * 4))
    assert norms_by_name({"w": orthogonal}, {"w": convolution})["w"] > 3
    assert norms_by_name({"b": torch.ones(9)}, {"b": Growth("vector", (9, 1), (3, 1))}) == {"b": 3}


def test_rule_and_figure_are_the_same_bytes_each_time(tmp_path):
    rows = measured(SIZE_LAWS["orthogonal (Muon, Shampoo)"])
    laws = size_laws(rows)
    assert rule_yaml(laws, "x") == rule_yaml(size_laws(rows), "x")
    for stem in ("a", "b"):
        figure, data = directions(rows, laws, "Toy.")
        save(figure, tmp_path / stem, data)
    for kind in ("png", "svg", "pdf", "csv"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
