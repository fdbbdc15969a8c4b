"""Decides when a command reacts to a signal to end, so that every clean-up is complete."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

type _Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end; the text is the signal's name."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Guard:
    """While entered, signals wait; only within ``interruptible`` does the first one raise.

    So an impatient second Ctrl-C does not cut the clean-up short, and there is no gap between the
    two in which a signal could do harm. A signal that still waits at the end is sent again, unless
    it only repeats one that was handled.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, _Handler] = {}
        self._heeding = False
        self._heeded = False
        self._waiting: int | None = None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Enter a section that Interrupted may leave at any point."""
        try:
            self._heeding = True
            if self._waiting is not None:
                self._heed(self._waiting)
            yield
        finally:
            self._heeding = False

    def __enter__(self) -> Self:
        for number in LEAVING:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._waiting is not None:
            signal.raise_signal(self._waiting)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._heeding:
            self._heed(number)
        elif not self._heeded:
            self._waiting = number

    def _heed(self, number: int) -> None:
        self._heeding, self._heeded, self._waiting = False, True, None
        raise Interrupted(number)
