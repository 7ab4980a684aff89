"""What a job is frozen with: the code as it was launched, and the config, resolved. Imports no torch.

    jobs/code/<hash>/src/     the package
    jobs/code/<hash>/user/    *.py, conf/ and sweeps/ of the folder of the launch

A launch from a checkout adds what lies beside src/. In the config every path is absolute, and account and partition are
filled in from the shell where it says nothing.
"""

import hashlib
import itertools
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from spectral_mup.cluster.slurm_commands import from_shell
from spectral_mup.config.schema import Config, to_plain
from spectral_mup.errors import ConfigError
from spectral_mup.runs.provenance import COMMIT_FILE, PACKAGE, commit
from spectral_mup.util.files import rename_to_free
from spectral_mup.util.system import package_root

CHECKOUT_PARTS = ("src", "conf", "sweeps", "launch.py", "analyze.py", "pyproject.toml")
ROOT = package_root()
RESULTS = "sweeps/results/"  # committed figures: large, and not code
COMMIT = f"src/{PACKAGE.name}/{COMMIT_FILE}"
MOST_BYTES = 100e6  # of a copy; the package has 2e6


def code_files() -> dict[str, Path]:
    """Return the files of the code here, by their names in a snapshot, uncommitted changes and new files included."""
    return _files(Path.cwd())


def code_now() -> tuple[str, dict[str, Path]]:
    """Return hash and files of the code here. Reads every file: call check_size(code_files()) first where they may be large."""
    files = code_files()
    return _hash(files), files


def _hash(files: Mapping[str, Path]) -> str:
    """Return the hash of names, modes and contents."""
    every = hashlib.sha256()
    for name, path in sorted(files.items()):
        with path.open("rb") as f:
            content = hashlib.file_digest(f, "sha256").hexdigest()
        every.update(f"{name}\n{_mode(path):o}\n{content}\n".encode())
    return every.hexdigest()[:16]


def _mode(path: Path) -> int:
    """Return the permissions of a copy of the file: its own, without those of group and others to write."""
    return stat.S_IMODE(path.stat().st_mode) & ~0o022


def check_size(files: Mapping[str, Path]) -> None:
    """Raise ConfigError, which names the largest file, if this is more than code."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if (total := sum(sizes.values())) > MOST_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"{files[largest]}: of {sizes[largest] / 1e6:.0f} MB; jobs get a copy of *.py, conf/ and sweeps/, which may have "
            f"{MOST_BYTES / 1e6:.0f} MB and has {total / 1e6:.0f}; move it elsewhere"
        )


def snapshot_code(jobs_dir: Path) -> str:
    """Return the name, in jobs/code/, of an intact copy of the code here, which is made if there is none.

    The name is the code's hash, with a suffix if that name is spoilt. Raises ConfigError if the code is too large.
    """
    check_size(code_files())
    code, files = code_now()
    if found := find_intact(jobs_dir, code):
        return found
    prepared = jobs_dir / "code" / f"new.{secrets.token_hex(4)}"
    for name, path in files.items():
        target = prepared / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(path, target)
    (prepared / COMMIT).write_text(f"{commit()}\n")
    (prepared / COMMIT).chmod(0o644)
    for folder in {path.parent for path in prepared.rglob("*.py")}:
        (folder / "__pycache__").mkdir()  # else the first job makes it with its umask, so maybe for a group to write to
    for folder in (prepared, *(path for path in prepared.rglob("*") if path.is_dir())):
        folder.chmod(_mode(folder))
    code = _hash(_copied(prepared))  # as it was copied, should a file have been edited meanwhile
    free = next(name for name in _names_of(code) if not os.path.lexists(jobs_dir / "code" / name))
    if rename_to_free(prepared, jobs_dir / "code" / free):
        return free
    return snapshot_code(jobs_dir)  # another launch was faster


def _names_of(code: str) -> Iterator[str]:
    """Return the names that a copy may have, in the order in which they are tried."""
    return itertools.chain([code], (f"{code}.{i}" for i in itertools.count(2)))


def find_intact(jobs_dir: Path, code: str) -> str | None:
    """Return the name of the first copy of this code that can be trusted, None without one."""
    names = itertools.takewhile(lambda name: os.path.lexists(jobs_dir / "code" / name), _names_of(code))
    return next((name for name in names if is_intact(jobs_dir / "code" / name)), None)


def is_intact(copy: Path) -> bool:
    """Return whether a copy is what its name says, and nobody but us can write to any of it, bytecode included."""
    found = []
    for path in (copy, *copy.rglob("*")):
        with suppress(FileNotFoundError):  # a job that starts just now has put its bytecode in place
            found.append(path.lstat())
    ours = all(f.st_uid == os.getuid() and not f.st_mode & 0o022 for f in found if not stat.S_ISLNK(f.st_mode))
    return ours and matches(copy)


def matches(copy: Path) -> bool:
    """Return whether a copy has the files that its name is the hash of, and besides them only bytecode, and no links."""
    try:
        return not any(path.is_symlink() for path in copy.rglob("*")) and _hash(_copied(copy)) == copy.name.partition(".")[0]
    except OSError:
        return False


def _copied(copy: Path) -> dict[str, Path]:
    """Return the files of a copy, by name."""
    return {name: copy / name for name in _names(copy, ["."]) if name != COMMIT and (copy / name).is_file()}


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as f, os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as g:
        shutil.copyfileobj(f, g)
        os.fchmod(g.fileno(), _mode(source))


def _files(here: Path) -> dict[str, Path]:
    """Return the path of every file of a snapshot, by its name in it, for a launch from the folder `here`."""
    if ROOT / "src" in PACKAGE.parents:
        files = {name: ROOT / name for name in _own(ROOT, _tracked() or _names(ROOT, CHECKOUT_PARTS))}
    else:  # installed; an installer may have linked every file
        files = {f"src/{PACKAGE.name}/{name}": PACKAGE / name for name in _names(PACKAGE, ["."])}
    own = [path.name for path in here.glob("*.py")] + ([] if here == ROOT else _names(here, ["conf", "sweeps"]))
    files |= {f"user/{name}": here / name for name in _own(here, own)}
    return {name: path for name, path in files.items() if path.is_file()}


def _own(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield those of the names that are code of this folder: no results, and no link that leads out of it.

    Where everybody may write to the folder, only our own files count. Raises ConfigError about a module that is a link out of
    it, as a job would import what that leads to by then.
    """
    shared, top = bool(folder.stat().st_mode & 0o002), folder.resolve()
    for name in names:
        path = folder / name
        leads_out = path.is_symlink() and not path.resolve().is_relative_to(top)
        if leads_out and path.suffix == ".py":
            raise ConfigError(f"{path} is a link out of its folder, which no job can be given; put the file itself there")
        foreign = shared and path.exists() and path.stat().st_uid != os.getuid()
        if not (leads_out or foreign or name.startswith(RESULTS)):
            yield name


def _tracked() -> list[str]:
    """Return the files of the checkout that git tracks or would track; none unless ROOT is the top of one."""
    git = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    try:
        if Path(git(["git", "rev-parse", "--show-toplevel"]).stdout.rstrip("\n")).resolve() != ROOT:
            return []
        listed = git(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CHECKOUT_PARTS])
        return listed.stdout.split("\0")[:-1]
    except (OSError, subprocess.SubprocessError):
        return []


def _names(folder: Path, parts: Iterable[str]) -> list[str]:
    """Return the names in `folder` of these files and of all below these folders, without bytecode."""
    paths = [path for part in parts for path in [folder / part, *(folder / part).rglob("*")]]
    return [str(path.relative_to(folder)) for path in paths if "__pycache__" not in path.parts]


def find_preamble(name: str) -> Path:
    """Return the site's file, relative to here or to the source tree. Raises ConfigError if it is in neither."""
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
    if plain["cluster"]["scheduler"] == "slurm":
        plain["cluster"] |= from_shell(plain["cluster"])
    if plain["cluster"].get("preamble"):
        plain["cluster"]["preamble"] = str(find_preamble(plain["cluster"]["preamble"]))
    return plain | {"action": "run", "yes": True}
