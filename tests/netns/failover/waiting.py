"""Waiting for what can be read; by poll, since select knows no descriptors beyond 1023."""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Protocol


class Readable(Protocol):
    def fileno(self) -> int: ...


def readable(of: Iterable[Readable], timeout_s: float) -> list[Readable]:
    """Those that can be read, after ``timeout_s`` at the latest."""
    poll, known = select.poll(), {each.fileno(): each for each in of}
    for descriptor in known:
        poll.register(descriptor, select.POLLIN)
    return [known[descriptor] for descriptor, _ in poll.poll(1000 * timeout_s)]
