"""Owns how the event loop waits: to the microsecond, where asyncio rounds up to milliseconds.

A backup's wait ends half a millisecond late at the median otherwise, which all clients wait too.
"""

from __future__ import annotations

import asyncio
import select
import selectors

_FD_SETSIZE = 1024  # select knows no descriptors from here on


class _Selector(selectors.EpollSelector):
    """epoll_wait counts in milliseconds, select in microseconds; an epoll can be selected on."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0 and self.fileno() < _FD_SETSIZE:
            select.select((self.fileno(),), (), (), timeout)
            timeout = 0
        return super().select(timeout)


def new_loop() -> asyncio.SelectorEventLoop:
    """An event loop whose timers are on time."""
    return asyncio.SelectorEventLoop(_Selector())
