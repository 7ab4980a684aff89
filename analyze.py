"""Judge a sweep: verdicts on screen, figures and tables on disk. `python analyze.py --help` explains."""

import sys

from spectral_mup.cli.command_line import SCRIPTS
from spectral_mup.cli.console import analyze_command


def main(argv: list[str]) -> int:
    return analyze_command(argv, SCRIPTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
