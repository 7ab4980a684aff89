"""Sweeps by name: a bare word on the command line, the config launched under a name, and when the name may be used again."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from spectral_mup.cli.context import SWITCHES, Context, without_this_command
from spectral_mup.config.compose import load_config
from spectral_mup.config.credentials import refuse_in_overrides
from spectral_mup.config.deciding import decides, differences, resumed
from spectral_mup.config.overrides import bare, known_keys
from spectral_mup.config.parse import key_of, typed
from spectral_mup.config.presets import default_results, options
from spectral_mup.config.schema import to_plain
from spectral_mup.config.validate import SAFE_NAME
from spectral_mup.errors import ConfigError, RecordError, Refusal
from spectral_mup.runs.sweep_record import SweepRecord, read_record, recorded_names, write_record
from spectral_mup.util.registry import nearest

SHOWN = 8  # differing keys listed at most
TRAINING = ("run", "retry", "extend")  # actions that train
FLAGS = ("--check", "--summary")  # options of analyze


def context_of(argv: Sequence[str], program: str, flags: Collection[str] = (), actions: Collection[str] = ()) -> Context:
    """Return the context of a command line: KEY=VALUEs, and perhaps the name of a sweep, which is resumed as it was launched.

    `flags` are the options that the command knows, `actions` the words for which it suggests action=NAME. Raises ConfigError.
    """
    words = [SWITCHES.get(word, word) for word in argv]
    refuse_in_overrides(words)
    if dashed := [word for word in words if word.startswith("-")]:
        known = [*flags, "--help", "--version"]
        found = nearest(dashed[0], {*known, *FLAGS})
        hint = f"did you mean {'' if found in known else 'analyze '}{found}? " if found else ""
        raise ConfigError(f"{dashed[0]}: no such option; {hint}known: {', '.join(known)}; all else is KEY=VALUE")
    names = [word for word in words if "=" not in word and not word.startswith("~")]
    if not names:
        return Context(load_config(words), words, program)
    more = [word for word in words if word not in names]
    results = Path(
        next((word.partition("=")[2] for word in reversed(more) if key_of(word) == "paths.results"), default_results())
    )
    if len(names) > 1:
        raise ConfigError(f"{' '.join(names)}: give one sweep, and settings as KEY=VALUE; quote what has spaces in it")
    name = names[0].rstrip("/").removeprefix(f"{results}/")  # a shell completes results/NAME/
    record = read_record(results, name) if SAFE_NAME.fullmatch(name) else None
    if record is None:
        if name not in options("sweep"):
            raise ConfigError(_unknown(name, results, actions))
        words = [f"sweep={name}", *more]
        return Context(load_config(words), words, program)
    renamed = [f"sweep.name={name}"] * (record.config["sweep"]["name"] != name)  # its folder, by hand
    words = merged(merged(record.words, renamed), more)
    changed = any(decides(key_of(word)) for word in more)
    return Context(load_config(words, None if changed else record.config), words, program)


def merged(words: Sequence[str], more: Sequence[str]) -> list[str]:
    """Return overrides followed by further ones, which replace those of the same key."""
    keys = {key_of(word) for word in more}
    return [*(word for word in words if key_of(word) not in keys), *more]


def _unknown(name: str, results: Path, actions: Collection[str]) -> str:
    """Return the message about a word that does not name a sweep."""
    if name in known_keys():
        return f"{name}: {bare(name)}"
    meant = {**{a: f"action={a}" for a in actions}, **{s: f"sweep={s}" for s in options("sweep")}, **dict.fromkeys(SWITCHES)}
    meant |= {recorded: recorded for recorded in recorded_names(results)}
    found = nearest(name, meant)
    hint = f"did you mean {meant[found] or found}? " if found else ""
    here = f"no sweep of this name was launched into {results}, and sweeps/{name}.yaml does not exist"
    return f"{name}: {here}; {hint}ls lists sweeps"


def check_name(context: Context) -> None:
    """Raise Refusal if the sweep's name was launched with another config, whose results would be replaced; `yes` allows it."""
    record = context.record
    changed = differences(record.config, context.config) if record else []
    if not record or not changed or context.config.yes or not _has_results(context, record):
        return
    name = context.config.sweep.name
    shown = [f"  {key}: {_shown(old)} → {_shown(now)}" for key, old, now in changed[:SHOWN]]
    shown += [f"  … and {len(changed) - SHOWN} more keys"] * (len(changed) > SHOWN)
    raise Refusal(
        "\n".join([
            f"{name} was launched with another config, and {context.folder} holds its results:",
            *shown,
            f"To resume it as it was launched: {context.by_name('launch')}",
            "To keep both: add sweep.name=OTHER",
            f"To change {name}: add yes=true; no run is lost, and none that both have is trained again",
        ])
    )  # fmt: skip


def note_name(context: Context) -> None:
    """Say on stderr if the sweep's name was launched with another config, so that what follows is not about that launch."""
    record = context.record
    if record and (changed := differences(record.config, context.config)):
        keys = ", ".join(key for key, _, _ in changed[:SHOWN]) + " …" * (len(changed) > SHOWN)
        name = context.config.sweep.name
        print(f"note: {name} was launched with another config; differing: {keys}", file=sys.stderr)
        print(f"note: as it was launched: {context.by_name('launch', context.config.action)}", file=sys.stderr)


def keep_name(context: Context, launched: bool = True) -> None:
    """Let the sweep's name stand for this config from now on. Raises Refusal (see `check_name`).

    With `launched=False`, as where the sweep is only judged, a record of the same config stays as its launch wrote it.
    """
    check_name(context)
    record = context.record
    if launched or record is None or differences(record.config, context.config):
        write_record(context.config, without_this_command(context.argv))


def recorded_context(name: str, record: SweepRecord, like: Context) -> Context:
    """Return the context of a sweep as it was launched; keys newer than its record are those of `like`. Raises ConfigError."""
    config = resumed(record.config, to_plain(like.config)) | {part: record.config[part] for part in ("cluster", "paths")}
    config["sweep"]["name"] = name
    config["paths"] = config["paths"] | {"results": like.config.paths.results}
    return Context(typed(config), record.words, like.program)


def _has_results(context: Context, record: SweepRecord) -> bool:
    """Return whether anything was trained or judged under a record; True where that is unknown."""
    if (context.folder / "verdicts.json").exists():
        return True
    try:
        plan = recorded_context(context.config.sweep.name, record, context).plan
    except (ValueError, RecordError, OSError):
        return True
    return len(plan.todo) < len(plan.runs)


def _shown(value: Any) -> str:
    """Return a value as one would type it on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
