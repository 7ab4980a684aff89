"""Where a job enters its snapshot: `python -P JOBS/code/HASH/src/spectral_mup/cluster/slurm/enter.py MODULE JOBS/<n> …`.

The path of this file says which code runs, not PYTHONPATH, which a site may drop or a colon in a path may break. The user's
own modules come last on the path: a random.py beside a launch must not replace Python's.
"""

import sys
from importlib import import_module
from pathlib import Path

CODE = Path(__file__).parents[4]


def main(module: str, *arguments: str) -> int:
    """Run `main` of a module beside this one. Exits with a message if anything but the whole snapshot would be imported."""
    sys.path.insert(0, f"{CODE}/src")
    sys.path.append(f"{CODE}/user")
    snapshot = import_module("spectral_mup.cluster.slurm.snapshot")
    if not Path(str(snapshot.__file__)).resolve().is_relative_to(CODE.resolve()):
        sys.exit(f"refused: {snapshot.__file__} would run, not the code that was launched, {CODE}")
    if not snapshot.matches(CODE):
        sys.exit(f"refused: {CODE} is not as it was launched; launch again, which takes a new copy")
    return import_module(f"spectral_mup.cluster.slurm.{module}").main(*arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
