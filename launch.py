"""Launch a sweep: compose, plan, run what is not done. `python launch.py --help` explains."""

import sys

from spectral_mup.cli import console
from spectral_mup.cli.context import SCRIPTS


def main(argv: list[str]) -> int:
    return console.main(["launch", *argv], SCRIPTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
