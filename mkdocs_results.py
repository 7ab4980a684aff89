"""Figures of sweeps/results in the built pages: docs/ links to them where they lie, outside of it, as GitHub shows them."""

import re
from pathlib import Path

from mkdocs.structure.files import File

RESULTS = Path(__file__).parent / "sweeps" / "results"
LINK = re.compile(r"\]\(\.\./sweeps/results/([^)]+\.png)\)")


def on_files(files, config):
    """Add the figures that pages show."""
    pages = "".join(path.read_text("utf-8") for path in Path(config.docs_dir).glob("*.md"))
    for name in sorted(set(LINK.findall(pages))):
        files.append(File.generated(config, f"results/{name}", abs_src_path=str(RESULTS / name)))
    return files


def on_page_markdown(markdown, **_):
    """Link to the added files."""
    return LINK.sub(r"](results/\1)", markdown)
