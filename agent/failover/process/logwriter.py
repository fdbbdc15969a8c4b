"""Owns how log lines get to standard error: a reader that is slow, or stuck, delays nothing."""

from __future__ import annotations

import io
import queue
import threading
from types import TracebackType
from typing import Self, TextIO

from agent.failover.times import LOG_CLOSE_S

MAX_LINES = 1_000
_STACK_BYTES = 256 * 1024


class LogWriter(io.StringIO):
    """A stream whose lines a thread writes to another stream; use it in a ``with`` statement.

    Lines that the thread cannot keep up with are lost. It runs in real time if the thread that
    creates it does, so that it never holds the interpreter lock while it waits for a CPU.
    """

    def __init__(self, target: TextIO) -> None:
        super().__init__()
        self._target = target
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._lost = 0
        before = threading.stack_size(_STACK_BYTES)  # small, because all of it is locked memory
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        threading.stack_size(before)

    def write(self, text: str) -> int:
        """Queue a line without waiting."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._lost += 1
        return len(text)

    def isatty(self) -> bool:
        """Return whether the other stream is a terminal."""
        return self._target.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._lines.put(None, timeout=LOG_CLOSE_S)
        except queue.Full:
            return
        self._thread.join(LOG_CLOSE_S)

    def _run(self) -> None:
        while (text := self._lines.get()) is not None:
            lost, self._lost = self._lost, 0
            if lost:
                text += f"{lost} more lines were lost: nobody read them\n"
            try:
                self._target.write(text)
                self._target.flush()
            except (OSError, ValueError):
                continue  # the stream is closed, or its reader is gone
