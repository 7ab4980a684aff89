"""What a command prints on: a file, a terminal or a pipe, of any encoding. That it cannot be written ends no work."""

import io
import os
import sys


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
            setattr(sys, name, as_text(outputs[-1], stream.encoding, unprintable, stream.line_buffering))
    return outputs


def as_text(output: Output, encoding: str, unprintable: str, line_buffering: bool) -> io.TextIOWrapper:
    """The stream to print on; `unprintable` says what becomes of characters that the encoding lacks."""
    return io.TextIOWrapper(io.BufferedWriter(output), encoding, unprintable, line_buffering=line_buffering)
