"""What README shows, as code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def snippet(heading: str) -> str:
    """The first fenced block of Python after a heading."""
    section = (ROOT / "README.md").read_text("utf-8").split(f"\n{heading}\n")[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
