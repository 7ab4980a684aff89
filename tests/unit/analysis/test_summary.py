"""Laws of the summary: it says what the sweeps' own results say, needs no run, and the same results give the same bytes."""

import json
import shutil
from dataclasses import replace

import matplotlib.text
import numpy as np
import pandas as pd
import pytest
from support.analysis_data import data
from support.figures import assert_printable
from support.summary_data import sweep

import analyze
from spectral_mup.analysis.figures.summary import summary_figure
from spectral_mup.analysis.names import printed
from spectral_mup.analysis.report import format_verdicts, report
from spectral_mup.analysis.results import ResultsError, read_results
from spectral_mup.analysis.summary import gather, summarize, summary_table

SIZES = (64, 128, 256)
COMMAND = "python analyze.py sweep=demo"


def sweep_of(optimizer, rules=("spectral", "standard"), sizes=SIZES, axis="width"):
    points, norms = data(rules, sizes, axis)
    return points.assign(optimizer=optimizer), norms


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Four sweeps: all well; nothing bracketed; a width that diverged and a rule not run; other rules."""
    root, verdicts = tmp_path_factory.mktemp("summary"), {}

    def write(name, points, norms=None):
        norms = pd.DataFrame() if norms is None else norms
        of = {"name": f"demo/{name}", "out_dir": root / name, "base": {"width": 64}}
        verdicts[name] = report(points, norms, command=COMMAND, commit="abc", **of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectral_mup.analysis.figures.FIGURES", {})  # the sweeps' own figures are not read
        write("adamw", *sweep_of("adamw"))
        points, _ = sweep_of("sophia")
        write("sophia", points[points["log2_lr"] <= -9.5])
        points, _ = sweep_of("muon", ("standard",))
        points.loc[points["width"] == 256, ["status", "loss"]] = ["diverged", np.nan]
        write("muon", points)
        write("lamb", *sweep_of("lamb", ("spectral", "lamb_hidden_0", "paper_2602_20937", "qiu")))
    return root, verdicts


def comparable(value):
    """A field of a dataclass as comparable text, numbers to nine digits as in a CSV."""
    return repr([f"{x:.9g}" for x in np.ravel(value)] if isinstance(value, float | np.ndarray) else value)


def test_results_are_read_back_as_they_were_judged(written):
    root, verdicts = written
    for name, judged in verdicts.items():
        (found,) = read_results(root / name)
        assert format_verdicts(found.verdicts) == format_verdicts(judged) and (found.optimizer, found.commit) == (name, "abc")
        for ours, theirs in zip(found.verdicts, judged, strict=True):
            for size, o in theirs.optima.items():
                mine = ours.optima[size]
                if o is None or mine is None:
                    assert mine is o
                    continue
                for field in ("log2_lr", "lo", "hi", "loss", "curvature", "skew", "bracketed", "open_sides"):
                    assert comparable(getattr(mine, field)) == comparable(getattr(o, field)), (name, size, field)
                for field in ("log2_lrs", "mean_L", "n_seeds"):
                    curves = [comparable(getattr(x.curve, field)) for x in (mine, o)]
                    assert curves[0] == curves[1], (name, size, field)


def test_nothing_is_judged_anew(written, tmp_path):
    """A verdict that was edited comes out as edited: the summary reports, it does not fit."""
    shutil.copytree(written[0] / "adamw", tmp_path / "adamw")
    path = tmp_path / "adamw" / "verdicts.json"
    edited = json.loads(path.read_text("utf-8"))
    edited["verdicts"][0] |= {"verdict": "drifts", "slope": {"estimate": 7.0, "lo": 6.0, "hi": 8.0}}
    path.write_text(json.dumps(edited), "utf-8")
    row = summary_table(gather(tmp_path)[0]).iloc[0]
    assert (row["verdict"], row["slope"]) == ("drifts", 7.0)


def test_table_has_a_row_a_sweep_and_rule(written):
    found = summary_table(gather(written[0])[0])
    rules = ["spectral", "lamb_hidden_0", "paper_2602_20937", "qiu"]
    expected = [("adamw", "spectral"), ("adamw", "standard"), *(("lamb", rule) for rule in rules), ("muon", "standard")]
    assert list(zip(found["optimizer"], found["rule"], strict=True)) == [
        *expected,
        ("sophia", "spectral"),
        ("sophia", "standard"),
    ]
    adamw, muon, sophia = (found[found["optimizer"] == name].iloc[0] for name in ("adamw", "muon", "sophia"))
    assert (adamw["verdict"], adamw["features"]) == ("transfers", "passed")
    assert found["verdict"][1] == "drifts" and found["features"][1] == "1 failed"
    assert abs(found["slope"][1] + 0.5) < 0.1 and found["slope_lo"][1] < -0.5 < found["slope_hi"][1]
    assert found["regret"][1] > 0.005 > found["regret"][0]
    assert abs(adamw["log2_lr_width_64"] + 9) < 0.1 and adamw["loss_width_64"] > adamw["loss_width_256"]
    assert muon["verdict"] == "undecided" and np.isnan(muon["loss_width_256"]) and muon["diverged"] > 0
    assert sophia["not_bracketed_width_64"] == "higher" and "test higher lr" in sophia["reason"]


def test_table_has_the_evidence(written):
    """Family, sizes, seeds, runs, command: what a claim in a log must name."""
    found = summary_table(gather(written[0])[0])
    assert set(found["family"]) == {"nanogpt"} and set(found["sizes"]) == {"64 128 256"} and set(found["command"]) == {COMMAND}
    assert list(found["runs"]) == list(found["done"]) and set(found["seeds"]) <= {"2", "0-2"}
    muon = found[found["optimizer"] == "muon"].iloc[0]
    assert muon["seeds"] == "0-2" and muon["runs"] == muon["sweep_runs"]  # nothing finished at the largest width
    adamw = found[found["optimizer"] == "adamw"]
    assert list(adamw["sweep_runs"]) == 2 * [adamw["runs"].sum()]


def test_a_run_that_rules_share_is_counted_once(written):
    (one,) = read_results(written[0] / "adamw")
    at_base = one.points["width"] == 64
    ids = one.points["run_id"].where(~at_base, one.points["run_id"].str.replace("standard", "spectral"))
    found = summary_table([replace(one, points=one.points.assign(run_id=ids))])
    done = one.points[at_base & (one.points["status"] == "done")]
    both = min(list(done["rule"]).count(rule) for rule in ("spectral", "standard"))
    assert list(found["runs"]) == list(found["done"]) and list(found["sweep_runs"]) == 2 * [found["runs"].sum() - both]


@pytest.mark.parametrize("families, axes", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_several_families_or_axes_have_a_figure_each(tmp_path, monkeypatch, families, axes):
    groups = [(family, axis) for family in ("nanogpt", "llama2")[:families] for axis in ("width", "depth")[:axes]]
    sweeps = [sweep("adamw", family, axis, ("spectral",)) for family, axis in groups]
    monkeypatch.setattr("spectral_mup.analysis.summary.gather", lambda *_: (sweeps, []))
    saved = {}
    monkeypatch.setattr("spectral_mup.analysis.figures.style.save", lambda _, stem, data, *__: saved.update({stem.name: data}))
    summarize(tmp_path)
    names = [f"{family}_{axis}" for family, axis in groups]
    expected = {f"summary_{name}" for name in names} if len(groups) > 1 else {"summary"}
    first = "nanogpt_width"
    expected |= {"transfer"} | {f"transfer_{name}" for name in names if name != first}
    assert set(saved) - {"forest"} == expected and set(saved["transfer"]["sweep"]) == {f"{first}/adamw"}
    assert all(len(set(data["sweep"])) == 1 for name, data in saved.items() if name != "forest")
    assert len(saved["forest"]) == len(groups)


def test_of_earlier_groups_nothing_is_left_and_the_user_s_files_are(tmp_path, monkeypatch):
    monkeypatch.setattr("spectral_mup.analysis.summary.gather", lambda *_: ([sweep("adamw", "nanogpt", "width")], []))
    monkeypatch.setattr("spectral_mup.analysis.figures.style.save", lambda *_: None)
    stale = ["summary_llama2_depth.pdf", "summary_llama2_depth.csv", "transfer_my_net_batch_size.png", "summary_figure.csv"]
    own = ["summary_for_my_boss.txt", "transfer-talk.pdf", "transferable.png", "forest.txt", "published_notes.csv"]
    for name in (*stale, *own):
        (tmp_path / name).touch()
    summarize(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*own, "summary.csv", "summary.tex"])


def test_published_slopes_are_drawn_and_a_malformed_file_is_an_error(written, tmp_path, capsys):
    shutil.copytree(written[0] / "adamw", tmp_path / "adamw")
    head = "optimizer,family,axis,rule,slope,source,note\n"
    (tmp_path / "published.csv").write_text(head + "adamw,nanogpt,width,spectral,-0.17,2602.20937,\n")
    assert analyze.main(["--summary", str(tmp_path)]) == 0
    drawn = pd.read_csv(tmp_path / "forest.csv")
    assert list(drawn["what"]) == ["slope", "slope", "published"] and drawn["slope"].iloc[-1] == -0.17
    capsys.readouterr()
    (tmp_path / "published.csv").write_text(head + "adamw,nanogpt,width,spectral,low,2602.20937,\n")
    (tmp_path / "summary.csv").unlink()
    assert analyze.main(["--summary", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "published.csv, line 2: column slope has low; write" in said
    assert not (tmp_path / "summary.csv").exists()


def test_order_is_that_of_the_names_and_else_of_the_alphabet(written):
    assert [r.optimizer for r in gather(written[0])[0]] == ["adamw", "lamb", "muon", "sophia"]
    chosen, absent = gather(written[0], ["muon", "shampoo", "demo/adamw", "muon"])
    assert [r.optimizer for r in chosen] == ["muon", "adamw"] and absent == ["shampoo"]


def test_the_same_results_give_the_same_bytes_without_runs(written, tmp_path):
    kinds = ["summary.csv", "summary.pdf", "summary.svg", "summary.png", "summary.txt", "summary_figure.csv"]
    kinds += ["forest.csv", "forest.pdf", "forest.svg", "forest.png", "forest.txt", "summary.tex"]
    kinds += [f"transfer.{kind}" for kind in ("csv", "pdf", "svg", "png", "txt")]
    for copy in ("one", "two", "other"):
        shutil.copytree(written[0] / "adamw", tmp_path / copy / "adamw")
    curves = tmp_path / "other" / "adamw" / "curves.csv"
    points = pd.read_csv(curves)
    points.assign(loss=points["loss"] + 0.01).to_csv(curves, index=False)
    for copy in ("one", "two", "other"):
        summarize(tmp_path / copy)
        assert sorted(p.name for p in (tmp_path / copy).iterdir() if p.is_file()) == sorted(kinds)
    one, two, other = ([(tmp_path / copy / kind).read_bytes() for kind in kinds] for copy in ("one", "two", "other"))
    assert one == two
    same = {kind: a == b for kind, a, b in zip(kinds, one, other, strict=True)}
    losses = {k for k in kinds if k.startswith(("summary", "transfer"))} - {
        "summary.csv",
        "summary.tex",
        "summary.txt",
        "transfer.txt",
    }  # verdicts stand
    assert same == {kind: kind not in losses for kind in kinds}


def test_figure_is_fit_for_print_and_says_what_the_table_says(written):
    sweeps, _ = gather(written[0])
    figure, drawn = summary_figure(sweeps)
    assert figure.get_figwidth() <= 6.75 and set(drawn["optimizer"]) == {"adamw", "lamb", "muon", "sophia"}
    assert len(drawn.query("what == 'optimum' and optimizer == 'adamw'")) == 2 * len(SIZES)
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip() and t.get_visible()]
    page, boxes = figure.bbox.padded(1), [t.get_window_extent() for t in texts]
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes)
    assert_printable(figure)
    beside = [ax for ax in figure.axes if any("regret" in t.get_text() for t in ax.texts)]
    assert len(beside) == 4
    for ax, r in zip(beside, sweeps, strict=True):
        spots = [t.get_window_extent() for t in ax.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(spots) for b in spots[:i])
        lines = " ".join(t.get_text() for t in ax.texts)
        assert all(printed(v.rule) in lines and v.verdict in lines for v in r.verdicts)
        bounds = [x for x in (r.verdicts[0].slope_lo, r.verdicts[0].slope_hi) if np.isfinite(x)]
        assert all(f"{x:+.2f}".replace("-", "\N{MINUS SIGN}") in lines for x in bounds)
    panels = [ax.get_title("left") for ax in figure.axes if ax.axison]
    assert panels.count("spectral") == 3 and panels.count("standard") == 3 and panels.count("optimum") == 4
    assert len(panels) == 4 + 2 + 3 + 1 + 2  # no panel for a rule that was not run


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "does not exist"),
        (lambda f: (f / "adamw" / "verdicts.json").unlink(), "no verdicts.json here or below; analyse its sweeps first"),
        (lambda f: (f / "adamw" / "verdicts.json").write_text('{"name": "x", '), "verdicts.json: damaged (Expecting"),
        (lambda f: (f / "adamw" / "verdicts.json").write_text('{"name": "x"}'), "verdicts.json: damaged (no entry 'verdicts')"),
        (lambda f: (f / "adamw" / "verdicts.json").write_text("[]"), "verdicts.json: damaged"),
        (lambda f: (f / "adamw" / "curves.csv").unlink(), "curves.csv: does not exist; write it again"),
        (lambda f: (f / "adamw" / "curves.csv").write_text(""), "curves.csv: damaged (No columns"),
        (lambda f: (f / "adamw" / "curves.csv").write_text("a,b\n1,2\n"), "curves.csv: damaged (no entry 'family')"),
    ],
)
def test_bad_input_is_one_line_with_the_fix(written, tmp_path, capsys, spoil, message):
    folder = tmp_path / "width"
    shutil.copytree(written[0] / "adamw", folder / "adamw")
    spoil(folder)
    assert analyze.main(["--summary", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not folder.exists() or not (folder / "summary.csv").exists()


def test_command_line(written, tmp_path, capsys):
    shutil.copytree(written[0] / "adamw", tmp_path / "adamw")
    assert analyze.main(["--summary", str(tmp_path), "adamw", "shampoo", "--check"]) == 5  # shampoo and a run are missing
    out = capsys.readouterr().out
    for line in ("adamw      spectral  transfers", "no results here yet: shampoo", "adamw, standard: 1 of 66 runs missing"):
        assert line in out
    for wrong in ([], [str(tmp_path), "rule=spectral"]):
        assert analyze.main(["--summary", *wrong]) == 2
    with pytest.raises(ResultsError, match="shampoo.*adamw"):
        gather(tmp_path, ["shampoo"])


def test_runs_of_two_codes_are_said_and_pass_no_check(written, tmp_path, capsys, monkeypatch):
    (one,) = read_results(written[0] / "adamw")
    assert one.codes == [], "results of before, of which it is not known"
    monkeypatch.setattr("spectral_mup.cli.analyze.as_claimed", lambda verdicts: True)
    whole = [replace(v, counts=v.counts | {"missing": 0}) for v in one.verdicts]
    for codes, code in (([], 0), (["a"], 0), (["a", "b"], 5)):
        sweeps = [replace(one, codes=codes, verdicts=whole)]
        monkeypatch.setattr("spectral_mup.analysis.summary.summarize", lambda *_, found=sweeps: (found, [], 0))
        assert analyze.main(["--summary", str(tmp_path), "--check"]) == code
        assert ("adamw: its runs were trained by 2 codes" in capsys.readouterr().out) == (code == 5)
