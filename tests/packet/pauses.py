"""Tests that say how much time passes between two packets, on a host that is busy.

Such a test is repeated if it failed and the host has paused in it. It can wrongly fail, then, only
if that happens in each attempt; it cannot wrongly pass, for a failure without a pause stands.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable

from tests.packet.harness import Rig

SLACK_NS = 3_000_000  # between two packets; the tests leave more than twice that to each limit
ATTEMPTS = 200


def packet_sent(rig: Rig, since_ns: int) -> int:
    """Note whether the host has paused since the packet before, or since a time was set; now."""
    now_ns = time.monotonic_ns()
    rig.has_paused |= now_ns - since_ns > SLACK_NS
    return now_ns


def undisturbed[**P](test: Callable[P, None]) -> Callable[P, None]:
    """Repeat a test that failed while the host paused between two packets of a ``Wire``, or a tick
    of the flow table's clock fell behind ``avoid_tick``. Such a test keeps nothing but its rig.
    """

    @functools.wraps(test)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> None:
        rig = _rig_of((*args, *kwargs.values()))
        for _ in range(ATTEMPTS - 1):
            rig.begin()
            try:
                return test(*args, **kwargs)
            except AssertionError:
                if not rig.is_disturbed:
                    raise
                rig.reset()
        return test(*args, **kwargs)

    return repeated


def _rig_of(arguments: Iterable[object]) -> Rig:
    return next(each for each in arguments if isinstance(each, Rig))
