"""Presets: the YAML files of conf/ and sweeps/, a user's own first. The name of a preset is that of its file.

They are looked for in ./conf and ./sweeps of the working directory, then in the project folders of $SPECTRAL_MUP_PATH, then in
the package. Imports neither torch nor Hydra.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from spectral_mup.errors import ConfigError
from spectral_mup.util.registry import did_you_mean
from spectral_mup.util.system import package_root

GROUPS = ("cluster", "data", "model", "optimizer", "rule", "sweep", "train")
MEANT = {"mup": "spectral", "µp": "spectral", "μp": "spectral", "sp": "standard", "gpt": "nanogpt", "gpt2": "nanogpt"}
"""What presets are called elsewhere; whoever gives such a name is pointed to the preset."""
NAMED_BY_FILE = {"model": "family", "data": "source"}  # keys whose default is the name of the file


def folders() -> list[Path]:
    """Return the folders that hold conf/ and sweeps/, in the order in which presets are looked for."""
    listed = filter(None, os.environ.get("SPECTRAL_MUP_PATH", "").split(os.pathsep))
    return list(dict.fromkeys(p.resolve() for p in (Path.cwd(), *[Path(x).expanduser() for x in listed], package_root())))


def candidates(path: str) -> list[Path]:
    """Return where group/name may lie, without .yaml: conf/group/name, but sweeps/name for the group sweep."""
    group, _, name = path.partition("/")
    return [(folder / "sweeps" if group == "sweep" else folder / "conf" / group) / name for folder in folders()]


def options(group: str) -> list[str]:
    """List the names that a config group offers, nested ones as folder/name."""
    found = {str(p.relative_to(top).with_suffix("")) for top in candidates(group) for p in top.rglob("*.yaml")}
    return sorted(name for name in found if not name.startswith("results/"))  # sweeps/results has results, not presets


def files_of(group: str, name: str) -> list[Path]:
    """List the files of a preset, the one that counts first. Raises ConfigError with the names that exist if there is none."""
    files = [path for p in candidates(f"{group}/{name}") if (path := p.with_name(f"{p.name}.yaml")).is_file()]
    if not files or Path(name).is_absolute() or ".." in Path(name).parts:
        known = options(group)
        asked = re.sub(r"^sweeps/|^conf/\w+/|\.yaml$", "", name)
        hint = did_you_mean(MEANT.get(asked.lower(), asked), known)
        raise ConfigError(f"{group}={name}: no such file; {hint}{group} can be {', '.join(known)}")
    return files


def read_preset(group: str, name: str, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a preset of conf/, merged over those of the same group that its `defaults` name. Raises ConfigError.

    `inside` are the files that inherit this one; a file may extend one of its own name in a later folder.
    """
    path = next((p for p in files_of(group, name) if p not in inside), None)
    if path is None:
        raise ConfigError(f"{shown(inside[-1])}: its defaults lead back to itself")
    own = load_yaml(path)
    defaults = own.pop("defaults", [])
    if not isinstance(defaults, list) or not all(isinstance(x, str) for x in defaults):
        raise ConfigError(f"{shown(path)}: defaults must list names of conf/{group}, as in [{options(group)[0]}]")
    if group == "optimizer":
        own.setdefault("name", name)
    parts = [own if x == "_self_" else read_preset(group, x.removeprefix(f"/{group}/"), (*inside, path)) for x in defaults]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*parts, *([] if "_self_" in defaults else [own])))
    if group in NAMED_BY_FILE:
        merged.setdefault(NAMED_BY_FILE[group], name)
    return merged


def _loader() -> Any:
    """Return OmegaConf's YAML loader, changed to read 4:00:00 and 012345 as text: in YAML 1.1 they are 14400 and 5349."""
    loader: Any = get_yaml_loader()
    number = "tag:yaml.org,2002:int"
    for first, known in loader.yaml_implicit_resolvers.items():
        loader.yaml_implicit_resolvers[first] = [(tag, pattern) for tag, pattern in known if tag != number]
    loader.add_implicit_resolver(number, re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
    return loader


def load_yaml(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file, not interpolated. Raises ConfigError, which names the file."""
    try:
        plain = OmegaConf.to_container(OmegaConf.create(yaml.load(path.read_text("utf-8"), Loader=_loader()) or {}))
    except RecursionError:
        raise ConfigError(f"{shown(path)}: nested without end, as by an alias of what it stands in; write it out") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"{shown(path)}{where}: not valid YAML: {problem}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{shown(path)}: must hold lines of the form key: value")
    return {str(key): value for key, value in plain.items()}


def default_results() -> str:
    """Return paths.results as the package's config.yaml has it."""
    return load_yaml(package_root() / "conf" / "config.yaml")["paths"]["results"]


def shown(path: Path) -> str:
    """Return a path for messages: relative to the working directory if it lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
