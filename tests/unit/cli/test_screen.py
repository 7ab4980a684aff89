"""Verdicts stand out on a terminal alone."""

import sys

import pytest

from spectral_mup.cli.screen import COLOURS, show
from spectral_mup.util.text import table

TABLE = "\n".join(table([["rule", "over width"], *(["r", word] for word in COLOURS)]))
PROSE = "what it costs: little; transfers are never undecided, r: the base's lr costs most"


def be_terminal(monkeypatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.parametrize("word", COLOURS)
def test_a_verdict_is_coloured_and_the_same_word_in_a_sentence_is_not(word, capsys, monkeypatch):
    be_terminal(monkeypatch)
    said = (f"r  {word}  +0.10", f"  {word}: few seeds", f"r, lr over width: {word} after 2 looks", f"norms (step 1): {word}")
    for line in said:
        show(line)
        shown = capsys.readouterr().out
        assert shown.count("\x1b[") == 2 and f"m{word}\x1b[0m" in shown
    show(PROSE)
    assert capsys.readouterr().out == PROSE + "\n"


def test_no_colour_is_shown_where_none_is_wanted(capsys, monkeypatch):
    be_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    show(TABLE)
    assert "\x1b[3" not in (shown := capsys.readouterr().out) and "\x1b[1mtransfers" in shown
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    show(TABLE + "x" * 300)
    assert capsys.readouterr().out == f"{TABLE}{'x' * 300}\n"
