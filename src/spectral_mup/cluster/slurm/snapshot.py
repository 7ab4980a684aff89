"""What a job is frozen with: the code as it was launched, and the config with every path made absolute. Imports no torch.

    jobs/code/<hash>/src/     the package
    jobs/code/<hash>/user/    *.py, conf/ and sweeps/ of the folder of the launch

and in a checkout what lies beside src/.
"""

import hashlib
import secrets
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spectral_mup.config.schema import Config, to_plain
from spectral_mup.errors import ConfigError
from spectral_mup.runs.provenance import COMMIT_FILE, PACKAGE, commit
from spectral_mup.util.files import rename_to_free
from spectral_mup.util.system import package_root

CHECKOUT_PARTS = ("src", "conf", "sweeps", "launch.py", "analyze.py", "pyproject.toml")
ROOT = package_root()
RESULTS = "sweeps/results/"  # committed figures: large, and not code


def code_now() -> tuple[str, dict[str, bytes]]:
    """Hash and files of the code here, uncommitted changes and new files included."""
    files = {name: path.read_bytes() for name, path in sorted(_files(Path.cwd()).items())}
    content = b"".join(f"{name}\n{len(content)}\n".encode() + content for name, content in files.items())
    return hashlib.sha256(content).hexdigest()[:16], files


def snapshot_code(jobs_dir: Path) -> str:
    """Copy the code to jobs/code/<hash>, once for equal code; return the hash."""
    code, files = code_now()
    target = jobs_dir / "code" / code
    if target.is_dir():
        return code
    prepared = target.with_name(f"new.{secrets.token_hex(4)}")
    for name, content in (files | {f"src/{PACKAGE.name}/{COMMIT_FILE}": f"{commit()}\n".encode()}).items():
        path = prepared / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    rename_to_free(prepared, target)  # if it is taken, by equal code
    return code


def _files(here: Path) -> dict[str, Path]:
    """Path of every file of a snapshot, by its name in it, for a launch from the folder `here`."""
    if ROOT / "src" in PACKAGE.parents:
        files = {name: ROOT / name for name in _tracked() or _names(ROOT, CHECKOUT_PARTS) if not name.startswith(RESULTS)}
    else:  # installed
        files = {f"src/{PACKAGE.name}/{name}": PACKAGE / name for name in _names(PACKAGE, ["."])}
    own = [path.name for path in here.glob("*.py")] + ([] if here == ROOT else _names(here, ["conf", "sweeps"]))
    files |= {f"user/{name}": here / name for name in own if not name.startswith(RESULTS)}
    return {name: path for name, path in files.items() if path.is_file()}


def _tracked() -> list[str]:
    """The files of the checkout that git tracks or would track; none if it is not one."""
    try:
        return subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CHECKOUT_PARTS],
            cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
        ).stdout.split("\0")[:-1]  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []


def _names(folder: Path, parts: Iterable[str]) -> list[str]:
    """Names in `folder` of these files and of all below these folders, without bytecode."""
    paths = [path for part in parts for path in [folder / part, *(folder / part).rglob("*")]]
    return [str(path.relative_to(folder)) for path in paths if "__pycache__" not in path.parts]


def find_preamble(name: str) -> Path:
    """The site's file, relative to here or to the source tree. Raises ConfigError if it is in neither."""
    for path in (Path(name).expanduser().absolute(), ROOT / name):
        if path.is_file():
            return path
    raise ConfigError(f"cluster.preamble={name}: no such file; slurm/ has an example")


def snapshot_config(config: Config) -> dict[str, Any]:
    """Return the config as plain dicts with absolute paths, for `action=run` from any working directory."""
    plain = to_plain(config)
    for key, value in plain["paths"].items():
        plain["paths"][key] = str(Path(value).absolute())
    if config.data.path is not None:
        plain["data"]["path"] = str(Path(config.data.path).expanduser().absolute())
    if plain["cluster"].get("preamble"):
        plain["cluster"]["preamble"] = str(find_preamble(plain["cluster"]["preamble"]))
    return plain | {"action": "run", "yes": True}
