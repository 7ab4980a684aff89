"""Standard output and error: what they cannot encode is replaced, and what cannot be written does not end the command."""

import io
import os
import sys
from typing import Any


class Output(io.FileIO):
    """A file descriptor to which every write succeeds; `lost` is the error after which output was dropped."""

    lost: OSError | None = None

    def write(self, data) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:  # head has read what it wants, the terminal is gone, the disk is full
                self.lost = error
        return len(data)


def open_outputs() -> list[Output]:
    """Put such outputs under stdout and stderr and return them; streams that a test or notebook has put there stay."""
    outputs = []
    for name, unprintable in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:  # closed by a shell's >&-
            setattr(sys, name, open(os.devnull, "w"))
        elif stream is getattr(sys, f"__{name}__"):
            outputs.append(Output(stream.fileno(), "w", closefd=False))
            setattr(sys, name, as_text(outputs[-1], stream, unprintable))
    return outputs


def as_text(output: Output, like: Any, unprintable: str) -> io.TextIOWrapper:
    """Return a text stream on `output`, encoded and buffered as another is; `unprintable` says how to replace characters."""
    buffer: Any = output if like.write_through else io.BufferedWriter(output)  # as under python -u
    return io.TextIOWrapper(
        buffer, like.encoding, unprintable, line_buffering=like.line_buffering, write_through=like.write_through
    )
