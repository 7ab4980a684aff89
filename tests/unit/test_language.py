"""Phrases that a native reader must decode stay out of code, messages, presets and docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTEAD = {
    r"\bis no (?!more\b|longer\b|wider\b|larger\b|less\b)[a-z]+": "is not a …",
    r"\bgoes on\b": "resumes, continues",
    r"\b(begins|begun) again\b": "is retried",
    r"\btells\b": "shows, says",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\basks for\b": "wants, needs",
    r"\bof one's own\b": "your own",
    r"\bas it is\b": "unchanged",
    r"\bso many\b": "that many",
    r"\ba (row|line|panel|column) (a|an|each) [a-z]+\b": "one row per …",
    r"\bat work\b": "running",
    r"\bis there\b": "exists",
    r"\balike\b": "the same",
}
WHERE = [
    *(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"),
    *(ROOT / "conf").rglob("*.yaml"), *(ROOT / "sweeps").rglob("*.yaml"), *(ROOT / "docs").glob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "slurm/README.md", "launch.py", "analyze.py")),
]  # fmt: skip


def found(text: str) -> list[str]:
    """The phrases of a text that INSTEAD lists, with what to write."""
    return [f"'{match[0]}': {better}" for phrase, better in INSTEAD.items() for match in re.finditer(phrase, text)]


@pytest.mark.parametrize("text", ["is no folder", "it goes on", "a row a rule", "models of one's own", "left as it is"])
def test_a_phrase_is_seen(text):
    assert found(text)


def test_plain_words():
    phrases = {str(path.relative_to(ROOT)): found(path.read_text("utf-8")) for path in WHERE if "results" not in path.parts}
    assert len(phrases) > 150
    assert {path: said for path, said in phrases.items() if said} == {}
