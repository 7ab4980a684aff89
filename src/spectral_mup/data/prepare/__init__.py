"""Text to shards of token ids, once and for all runs: action=prepare."""

from spectral_mup.data.prepare.settings import PrepareConfig
from spectral_mup.data.prepare.write import prepare

__all__ = ["PrepareConfig", "prepare"]
