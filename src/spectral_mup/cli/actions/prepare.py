"""action=prepare: tokenize a text into a folder for data=prepared."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral_mup.cli.bars import progress_bars
from spectral_mup.cli.context import Context
from spectral_mup.cli.exit_codes import INTERRUPTED, OK
from spectral_mup.util.text import table


def prepare(context: Context) -> int:
    """Tokenize a text into a folder for data=prepared, and print what it became."""
    from spectral_mup.data.prepare.write import prepare as write

    settings = context.config.prepare
    out = Path(settings.out or "").expanduser().absolute()
    try:
        with progress_bars() as show:

            def on_text(work: str, done: int, total: int, tokens: int) -> None:
                note = f"{done / 1e6:.1f}/{total / 1e6:.1f} MB"
                show(work, done, total, note + (f", {tokens / 1e6:.1f}M tokens" if tokens else ""))

            meta, already = write(settings, on_text)
    except KeyboardInterrupt:
        print("Stopped: nothing was written.")
        return INTERRUPTED
    print(f"{out} {'was already prepared' if already else 'prepared'}: {meta['tokenizer']}, {meta['vocab_size']} ids")
    print("\n".join(format_splits(meta)))
    print(f"Split: {meta['split']}.")
    if not meta["lossless"]:
        print("note: decoding does not give the text back: the tokenizer's model normalises or drops some of it")
    overrides = shlex.join(["data=prepared", f"data.path={out}", f"sweep.name={out.name}"])
    print(f"Next: {context.program.launch} {overrides}")
    return OK


def format_splits(meta: Mapping[str, Any]) -> list[str]:
    """What a prepared text is, one row per split."""
    rows = []
    for split, name in (("train", "training"), ("val", "validation")):
        shards = [shard for shard in meta["shards"] if shard["split"] == split]
        tokens = meta["n_tokens"][split]
        per_token = f"{meta['n_bytes'][split] / tokens:.2f}"
        megabytes = f"{sum(shard['bytes'] for shard in shards) / 1e6:.1f}"
        rows.append([name, f"{meta['documents'][split]:,}", f"{tokens:,}", per_token, str(len(shards)), megabytes])
    return table(rows, header=["split", "documents", "tokens", "bytes/token", "shards", "MB"], right=range(1, 6))
