"""`init`: a small project of one's own to start from. Its files lie in templates/."""

from __future__ import annotations

from pathlib import Path

from spectral_mup.cli.command_line import Program, command
from spectral_mup.cli.exit_codes import OK
from spectral_mup.errors import ConfigError

TEMPLATES = Path(__file__).with_name("templates")
NAMES = {"gitignore": ".gitignore"}  # which would act on this repository under its own name


def init(folder: Path, program: Program) -> int:
    """Write the templates into a new or empty folder. Raises ConfigError if anything is in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: already exists and is not an empty folder; choose a new one")
    for template in sorted(path for path in TEMPLATES.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        target = folder / template.relative_to(TEMPLATES)
        target = target.with_name(NAMES.get(target.name, target.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(template.read_bytes())
        print(target)
    start, sweep = f"cd {folder} && ", ["sweep=mine"]
    print(f"Next: {start}{command(program.launch, sweep)} && {command(program.analyze, sweep)}")
    return OK
