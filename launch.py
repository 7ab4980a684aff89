"""Launch a sweep: compose, plan, run what is not done. `python launch.py --help` explains."""

import sys

from spectral_mup.cli.command_line import SCRIPTS
from spectral_mup.cli.console import launch_command

if __name__ == "__main__":
    sys.exit(launch_command(sys.argv[1:], SCRIPTS))
