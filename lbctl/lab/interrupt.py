"""Owns the signals that ask a command to leave, so that leaving cleans up exactly once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Somebody asked us to leave; ``number`` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Guard:
    """While entered, the first signal raises Interrupted and all further ones wait for the end.

    So a clean-up in an ``except`` or ``finally`` is not cut short by an impatient second Ctrl-C.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, object] = {}
        self._closed = False

    def close(self) -> None:
        """From here on no signal raises: the clean-up has begun."""
        self._closed = True

    def __enter__(self) -> Self:
        for number in LEAVING:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._closed:
            self._closed = True
            raise Interrupted(number)
