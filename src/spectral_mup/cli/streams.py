"""What a command prints on: a file, a terminal or a pipe, of any encoding. That it cannot be written ends no work."""

import io
import os
import sys
from typing import Any


class Output(io.FileIO):
    """A descriptor that takes whatever is printed; `lost` is the error after which nothing of it arrived."""

    lost: OSError | None = None

    def write(self, data) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:  # head has read what it wants, the terminal is gone, the disk is full
                self.lost = error
        return len(data)


def open_outputs() -> list[Output]:
    """Make stdout and stderr such; others than the process began with, as those of a test or a notebook, stay."""
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
    """A stream to print on, with the encoding and the buffering of another; `unprintable` characters are replaced so."""
    buffer: Any = output if like.write_through else io.BufferedWriter(output)  # as under python -u
    return io.TextIOWrapper(
        buffer, like.encoding, unprintable, line_buffering=like.line_buffering, write_through=like.write_through
    )
