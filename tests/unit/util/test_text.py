"""Numbers and tables as a person reads them."""

import sys

from spectral_mup.util.text import format_duration, format_span, pluralize, table, wrap


def test_words_and_durations():
    assert [pluralize(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert [format_duration(s) for s in (3, 89, 90, 5399, 5400)] == ["3 s", "89 s", "2 min", "90 min", "1.5 h"]
    spans = {
        (3, 3.4): "3 s",
        (3, 80): "3 to 80 s",
        (40, 180): "40 s to 3 min",
        (180, 300): "3 to 5 min",
        (5000, 9000): "83 min to 2.5 h",
    }
    assert {span: format_span(*span) for span in spans} == spans


def test_a_line_is_broken_between_words_alone():
    """A path or a command that is longer than a line stands whole."""
    path = "a-long/path-of/" + 3 * "hyphens-and-more/"
    lines = wrap(f"see {path} for more", indent=2, columns=30)
    assert lines == ["  see", f"    {path}", "    for more"]


def test_a_table_is_plain_text_that_is_never_wrapped_or_read_as_markup():
    long = "x" * 500
    lines = table([["a", "1", "[red]"], ["bb", "22", long]], header=["name", "n", "said"], right=[1], indent=2)
    assert lines == ["  name   n  said", "  a      1  [red]", f"  bb    22  {long}"]
    assert table([["a", "b"], ["", "c"]]) == ["a  b", "   c"]
    assert table([]) == [] and table([], header=["a", "b"]) == ["a  b"]


def test_only_a_terminal_gets_a_bold_header(monkeypatch):
    assert "\x1b" not in "".join(table([["a"]], header=["b"]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    head, row = table([["a"]], header=["b"])
    assert "\x1b[1m" in head and row == "a"
