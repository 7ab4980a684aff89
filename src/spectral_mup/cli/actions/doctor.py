"""action=doctor: what this machine and its SLURM offer."""

from __future__ import annotations

from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import FAILED, OK
from spectral_mup.cluster.slurm.doctor import LEGEND, WRONG
from spectral_mup.cluster.slurm.doctor import doctor as examine
from spectral_mup.util.text import table


def doctor(context: Context) -> int:
    """Print what this machine and its SLURM offer and what to fix; FAILED if something must be fixed."""
    findings = examine(context.config)
    print("\n".join(table([[f"{f.mark} {f.subject}", f.message] for f in findings])))
    print(LEGEND)
    return FAILED if any(f.mark == WRONG for f in findings) else OK
