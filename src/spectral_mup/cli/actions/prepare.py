"""action=prepare: from a text to tokens on disk."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral_mup.cli.context import INTERRUPTED, OK, Context
from spectral_mup.util.text import progress_bars, table


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
    print("\n".join(_format_splits(meta)))
    print(f"Split: {meta['split']}.")
    if not meta["lossless"]:
        print("note: decoding does not give the text back: the tokenizer's model normalises or drops some of it")
    overrides = shlex.join(["data=prepared", f"data.path={out}", f"sweep.name={out.name}"])
    print(f"Next: {context.program.format('launch')} {overrides}")
    return OK


def _format_splits(meta: Mapping[str, Any]) -> list[str]:
    """Return a table of a prepared text, one row per split."""
    rows = []
    for split, name in (("train", "training"), ("val", "validation")):
        sizes = [shard["bytes"] for shard in meta["shards"] if shard["split"] == split]
        documents, tokens = meta["documents"][split], meta["n_tokens"][split]
        per_token = f"{meta['n_bytes'][split] / tokens:.2f}"
        rows.append([name, f"{documents:,}", f"{tokens:,}", per_token, str(len(sizes)), f"{sum(sizes) / 1e6:.1f}"])
    return table(rows, header=["split", "documents", "tokens", "bytes/token", "shards", "MB"], right=range(1, 6))
