"""A terminal that is not ours, with ``lbctl top`` on it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Self

import pyte

from tests.polling import readable


class Terminal:
    """``lbctl top`` on a terminal of its own."""

    def __init__(self, socket: str, *words: str, size: tuple[int, int], **more: str) -> None:
        self.shown = pyte.Screen(size[0], size[1])
        self._stream = pyte.ByteStream(self.shown)
        self._fd, theirs = pty.openpty()
        self.resize(*size, tell=False)
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **more}
        for name in ("COLUMNS", "LINES"):  # of pytest's own terminal, which curses would believe
            environment.pop(name, None)
        command = [sys.executable, "-m", "lbctl.main", "--socket", socket, "top", *words]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def resize(self, columns: int, lines: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if tell:
            self.shown.resize(lines, columns)
            self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def read(self, seconds: float) -> None:
        while readable(self._fd, seconds):
            try:
                self._stream.feed(os.read(self._fd, 65_536))
            except OSError:  # it has ended
                return
            seconds = 0

    def text(self) -> str:
        return "\n".join(self.shown.display)

    def until(self, what: str | Callable[[], object]) -> None:
        """Read until this is shown; fail with the screen if it never is."""
        until_s = time.monotonic() + 60
        while not (what in self.text() if isinstance(what, str) else what()):
            assert time.monotonic() < until_s, f"{what!r} never came:\n{self.text()}"
            self.read(0.1)

    def end(self) -> int:
        until_s = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < until_s:
            self.read(0.1)
        code = self.process.wait(1)
        self.read(0)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
