"""`python -m spectral_mup` does what `spectral-mup` does."""

import sys

from spectral_mup.cli.command_line import MODULE
from spectral_mup.cli.console import main

if __name__ == "__main__":
    sys.exit(main(program=MODULE))
