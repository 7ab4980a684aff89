"""What a program leaves on a terminal of a given size, as an emulator shows it."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pyte

from support import ROOT


def screen_of(code: str, columns: int, rows: int, **environment: str) -> pyte.Screen:
    """The screen once this Python has run on it."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))
    env = inherited | {"TERM": "xterm-256color", "PYTHONPATH": path} | environment
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    with subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=True, **streams) as process:
        os.close(slave)
        screen = pyte.Screen(columns, rows)
        stream = pyte.ByteStream(screen)
        try:
            while piece := os.read(master, 65536):
                stream.feed(piece)
        except OSError:
            pass  # its last process has ended
        finally:
            os.close(master)
    assert process.returncode == 0, "\n".join(screen.display)
    return screen
