"""Laws of published.csv: what it says is read as it stands, and what cannot be right is one line with the fix."""

from pathlib import Path

import pytest

from spectral_mup.analysis.published import Published, read_published
from spectral_mup.analysis.results import ResultsError
from spectral_mup.runs.run_config import AXES

HEAD = "optimizer,family,axis,rule,slope,source,note\n"
LINE = 'adamw,nanogpt,width,spectral,-0.17,2602.20937,"parabolas, three points"\n'
OURS = Path(__file__).parents[3] / "sweeps" / "results" / "grid"


def test_it_is_read_as_it_stands(tmp_path):
    assert read_published(tmp_path) == []
    (tmp_path / "published.csv").write_text(HEAD + LINE + "muon,nanogpt,width,standard,-0.53,2603.00541,\n", "utf-8")
    one, two = read_published(tmp_path)
    assert one == Published("adamw", "nanogpt", "width", "spectral", -0.17, "2602.20937", "parabolas, three points")
    assert two.note == "" and two.slope == -0.53
    (tmp_path / "published.csv").write_text("own,note,source,slope,rule,axis,family,optimizer\n1,n,s,1,r,depth,f,o\n", "utf-8")
    assert read_published(tmp_path) == [Published("o", "f", "depth", "r", 1.0, "s", "n")]  # in any order, beside others


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column optimizer is missing; the first line must be optimizer,family,axis,rule,slope,source,note"),
        (HEAD.replace("slope,", "") + LINE, "column slope is missing; the first line must be"),
        (HEAD.replace("source", "slope") + LINE, "column slope occurs twice; the first line must be"),
        (HEAD + LINE.replace("-0.17", "−0.17*"), "line 2: column slope has −0.17*; write a number, as in -0.17"),
        (HEAD + LINE.replace("-0.17", "nan"), "column slope has nan; write a number"),
        (HEAD + LINE.replace("-0.17", ""), "column slope is empty; fill it in, or delete the line"),
        (HEAD + LINE + LINE.replace("adamw", "AdamW"), "line 3: column optimizer has AdamW; write our lower-case name, adamw"),
        (HEAD + LINE.replace("nanogpt", "NanoGPT"), "column family has NanoGPT; write our lower-case name, nanogpt"),
        (HEAD + LINE.replace("width", "size"), f"column axis has size; write one of {', '.join(AXES)}"),
        (HEAD + LINE.replace('"', ""), "line 2: more cells than columns; put a note that has commas in double quotes"),
        (HEAD + "adamw,nanogpt\n", "column axis is empty"),
        (HEAD + 'adamw,"nanogpt\n', "no CSV in UTF-8 (unexpected end of data); its columns are optimizer,"),
    ],
)
def test_bad_input_is_one_line_with_the_fix(tmp_path, text, message):
    (tmp_path / "published.csv").write_text(text, "utf-8")
    with pytest.raises(ResultsError) as error:
        read_published(tmp_path)
    assert str(tmp_path / "published.csv") in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "published.csv").write_bytes(HEAD.encode() + b"\xff\xfe")
    with pytest.raises(ResultsError, match="no CSV in UTF-8"):
        read_published(tmp_path)


def test_ours_is_well_formed_and_says_how_each_slope_was_obtained():
    found = read_published(OURS)
    assert {one.source for one in found} == {"2602.20937", "2603.00541"} and all(one.note for one in found)
    assert len({one[:4] + one[6:] for one in found}) == len(found)
    edge = [one for one in found if "edge of the lr grid" in one.note]
    assert [(one.optimizer, one.family) for one in edge] == [("adamw", "nanogpt"), ("adamw", "llama2")]
