"""`python -m spectral_mup` does what `spectral-mup` does."""

import sys

from spectral_mup.cli.console import main
from spectral_mup.cli.context import MODULE

if __name__ == "__main__":
    sys.exit(main(program=MODULE))
