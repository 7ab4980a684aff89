"""Judge a sweep: verdicts on screen, figures and tables on disk. `python analyze.py --help` explains."""

import sys

from spectral_mup.cli import console
from spectral_mup.cli.context import SCRIPTS


def main(argv: list[str]) -> int:
    return console.main(["analyze", *argv], SCRIPTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
