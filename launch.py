"""Launch a sweep: compose, plan, run what is not done. `python launch.py --help` explains."""

import sys

from spectral_mup.cli.command_line import SCRIPTS
from spectral_mup.cli.console import launch_command


def main(argv: list[str]) -> int:
    return launch_command(argv, SCRIPTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
