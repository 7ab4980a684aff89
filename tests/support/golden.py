"""The whole output of a command against a file of tests/golden; `RENEW_GOLDEN=1 pytest tests/unit/cli` writes them anew."""

import os
import re
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def check_golden(name: str, text: str, tmp: Path | None = None) -> None:
    """Compare with tests/golden/NAME.txt, where TMP stands for the temporary folder and RUN1, RUN2, … for ids of runs."""
    if tmp is not None:
        text = text.replace(str(tmp), "TMP")
    for i, run_id in enumerate(dict.fromkeys(re.findall(r"\b[0-9a-f]{8}(?=[0-9a-f]{8}\b|  )", text))):
        text = re.sub(rf"{run_id}[0-9a-f]*", f"RUN{i + 1}", text)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("RENEW_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8"), f"{path} has another wording; RENEW_GOLDEN=1 pytest writes it anew"
