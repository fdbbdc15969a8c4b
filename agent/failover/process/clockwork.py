"""Owns how the event loop waits: to the microsecond, where asyncio rounds up to milliseconds.

Otherwise a backup would take over half a millisecond late at the median, and all clients would wait
for that long.
"""

from __future__ import annotations

import asyncio
import select
import selectors

_FD_SETSIZE = 1024  # select cannot watch descriptors from this one on


class _Selector(selectors.EpollSelector):
    """A selector that waits with select, in microseconds; epoll_wait counts in milliseconds.

    An epoll descriptor can be watched with select.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0 and self.fileno() < _FD_SETSIZE:
            select.select((self.fileno(),), (), (), timeout)
            timeout = 0
        return super().select(timeout)


def new_loop() -> asyncio.SelectorEventLoop:
    """Return an event loop whose timers are on time."""
    return asyncio.SelectorEventLoop(_Selector())
