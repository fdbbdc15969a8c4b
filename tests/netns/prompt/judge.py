"""Decides whether what the kernel counted is what happened.

What happened: what taps saw before and behind the balancer (``wire``), and the server's own log.
For each moment they say how many bytes wait; every reading must agree. Pure.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tests.netns.prompt.wire import Pair

# After the balancer has seen the answer. Delays are chosen longer.
CLEAR_NS = 250_000_000
# Taps say by another clock when they saw a packet, and the kernel counts time by its ticks.
SKEW_NS = 30_000_000
_LATENCY_FLOOR_US = 64
_LATENCY_BUCKETS = 44
_NEVER_NS = 1 << 62
# What is no answer comes so soon, if it is not read what it is; acknowledgements may be delayed.
# (The packet path waits 50 and 90 ms.)
_GRACE_NS, _GRACE_ACK_NS = 30_000_000, 70_000_000
_GRACE_MOST_NS = 100_000_000  # besides one and a half times the handshake
_CONTINUE = 25
_NEAR_NS = 60_000_000  # a delayed acknowledgement, and some more
_GAP_BELIEVED = 1 << 16  # bytes: of a larger gap in what a client sends, so much is counted

type Reading = tuple[int, int, int]  # from, to (ns), waiting bytes
type Span = tuple[float, float]  # microseconds, at least and at most


@dataclass(frozen=True, slots=True)
class Answered:
    """What the server says of a request; ``first_ns`` None: it never answered."""

    received_ns: int
    first_ns: int | None
    done_ns: int | None = None


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A request on its connection."""

    begun_ns: int  # its first byte was sent
    over_ns: int  # answered, or broken off
    cleared_ns: int  # nothing of it waits any more
    asked: int  # bytes of the stream before it
    whole: int


class Story:
    """How many bytes of a connection wait at any moment; its requests follow one another.

    ``seen_late``: the balancer sees only what the client acknowledges of an answer. ``broke_ns``:
    when a connection ended, at the earliest and at the latest, whose last request has no answer.
    ``control``: segments of the client with no more bytes are no requests; so many bytes may also
    be missing or too many where they cannot be told from a request.
    """

    def __init__(
        self,
        pair: Pair,
        requests: Sequence[Answered],
        seen_late: bool,
        control: int = 0,
        broke_ns: tuple[int, int] | None = None,
    ) -> None:
        self._sent, self._arrived, self._tolerance = pair.client, pair.server, 2 * control
        self._stretches: list[_Stretch] = []
        over_ns = 0
        for request in requests:
            begun = self._sent.next_request(over_ns, control)
            if begun is None:
                raise ValueError("the tap did not see the request")
            begun_ns, asked = begun
            if self._stretches:
                # What begins the next request also acknowledges the last answer.
                last = self._stretches[-1]
                cleared_ns = min(last.cleared_ns, self._arrived.reached_ns(asked) + SKEW_NS)
                self._stretches[-1] = replace(last, cleared_ns=cleared_ns)
            over_ns, gone_ns = broke_ns or (_NEVER_NS, _NEVER_NS)
            late_ns = max(gone_ns, self._arrived.reset_ns)
            if request.first_ns:
                seen_ns = pair.answered_ns(request.first_ns, acknowledged=seen_late)
                over_ns, late_ns = request.first_ns, seen_ns or _NEVER_NS
            whole = self._sent.bytes_at(over_ns) - asked
            self._stretches.append(_Stretch(begun_ns, over_ns, late_ns + CLEAR_NS, asked, whole))

    def range_at(self, at_ns: int) -> tuple[int, int]:
        """At least and at most so many bytes wait."""
        ranges = [self._of_stretch(stretch, at_ns) for stretch in self._stretches]
        least = max((low for low, _ in ranges), default=0)
        most = max((high for _, high in ranges), default=0)
        headless_until_ns = max(self._sent.headless_until_ns, self._arrived.headless_until_ns)
        if at_ns < headless_until_ns + SKEW_NS:
            # Nobody can know yet whether what has come is of a handshake.
            most = max(most, self._sent.bytes_at(at_ns + SKEW_NS))
        return least, most

    def _of_stretch(self, stretch: _Stretch, at_ns: int) -> tuple[int, int]:
        if at_ns < stretch.begun_ns - SKEW_NS or at_ns >= stretch.cleared_ns:
            return 0, 0
        if at_ns >= stretch.over_ns:
            return 0, stretch.whole + self._tolerance
        low = self._arrived.bytes_at(at_ns - SKEW_NS) - stretch.asked
        high = self._sent.bytes_at(at_ns + SKEW_NS) - stretch.asked
        # A segment of control frames alone does not count, one that has others as well does.
        low -= self._sent.control_in(stretch.asked, stretch.asked + low)
        # A busy host can drop or delay more than that of one burst before the balancer sees it.
        gaps = self._arrived.gaps(at_ns + SKEW_NS)
        low -= sum(max(0, size - _GAP_BELIEVED) for size in gaps)
        return max(0, low - self._tolerance), min(high, stretch.whole) + self._tolerance


def is_too_slow(
    pair: Pair, request: Answered, seen_late: bool, control: int = 0, after_ns: int = 0
) -> bool:
    """Whether a head, tickets or the like came so late that nothing but an answer is, or an answer
    within the time of a handshake that took long, because the host was busy: that says nothing
    about what is counted. The time runs from what the client has sent of the request, which is the
    first after ``after_ns``; segments of ``control`` bytes begin nothing anew.
    """
    begun = pair.client.next_request(after_ns, control)
    if begun is None:
        raise ValueError("the tap did not see the request")
    begun_ns, _ = begun
    first_ns = request.first_ns or 0
    answered_ns = pair.answered_ns(first_ns, acknowledged=seen_late) or first_ns
    stirred_ns = pair.server.stirred_ns(answered_ns, control)
    if first_ns < stirred_ns + pair.handshake_ns * 3 // 2 + _GRACE_MOST_NS:
        return True
    grace_ns = _GRACE_ACK_NS if seen_late else _GRACE_NS
    heard = pair.acknowledged(control) if seen_late else pair.replied(control)
    return any(
        one.size != _CONTINUE and one.latest_ns > max(begun_ns, one.asked_ns) + grace_ns
        for one in heard
        if begun_ns < (one.earliest_ns if seen_late else one.latest_ns)
        and one.earliest_ns < first_ns
    )


def time_of(pair: Pair, request: Answered, seen_late: bool, control: int = 0) -> Span | None:
    """How long the balancer saw a request wait, at least and at most, whatever stood still before
    the server noted anything down; None: the taps did not see its answer.
    """
    first_ns = request.first_ns or 0
    answered_ns = pair.answered_ns(first_ns, acknowledged=seen_late)
    if answered_ns is None:
        return None
    least_ns = first_ns - pair.server.stirred_ns(answered_ns, control)
    most_ns = answered_ns - pair.client.complete_ns(request.received_ns, control)
    return max(0, least_ns - SKEW_NS) / 1000, (most_ns + SKEW_NS) / 1000


def complaints(readings: Iterable[Reading], stories: Sequence[Story]) -> list[str]:
    """The readings that cannot be, of all connections to one backend; empty: all is well."""
    wrong = []
    for from_ns, to_ns, waiting in readings:
        least = most = 0
        for story in stories:
            ranges = story.range_at(from_ns), story.range_at(to_ns)
            least += min(low for low, _ in ranges)
            most += max(high for _, high in ranges)
        if not least <= waiting <= most:
            wrong.append(f"{waiting} bytes wait at {from_ns / 1e9:.4f} s, not {least} to {most}")
    return wrong


def seen_while_computing(readings: Iterable[Reading], requests: Sequence[Answered]) -> list[int]:
    """How many readings fell into each request's time of computing."""
    counts = [0] * len(requests)
    for from_ns, to_ns, _ in readings:
        for place, request in enumerate(requests):
            if request.first_ns and request.received_ns <= from_ns and to_ns <= request.first_ns:
                counts[place] += 1
    return counts


def bucket(microseconds: float) -> int:
    """The half octave of a time: the number of edges at or below it (abi.h)."""
    edges = [_LATENCY_FLOOR_US * 2**octave * step for octave in range(22) for step in (1, 1.5)]
    return bisect.bisect_right(edges[: _LATENCY_BUCKETS - 1], microseconds)


def errors_ms(times_us: Sequence[float], requests: Sequence[Answered]) -> list[float]:
    """By how much the kernel's times, in the order of the answers, are beyond the server's; empty:
    they are not of the same requests. Answers at nearly one moment can have changed places, and
    are left out.
    """
    firsts = sorted((r.first_ns or 0, r.received_ns) for r in requests)
    if not firsts or len(times_us) != len(firsts):
        return []
    gaps_ns = [after - before for (before, _), (after, _) in itertools.pairwise(firsts)]
    return [
        (time_us - (first_ns - received_ns) / 1000) / 1000
        for time_us, (first_ns, received_ns), gap_before, gap_after in zip(
            times_us, firsts, [_NEVER_NS, *gaps_ns], [*gaps_ns, _NEVER_NS], strict=True
        )
        if min(gap_before, gap_after) > _NEAR_NS
    ]


def misplaced(histogram: Sequence[int], times: Sequence[Span]) -> list[str]:
    """The counted requests that stand in a bucket in which none of these times can be.

    Each time takes one of them: of those that can take it, the one that can take the fewest more.
    """
    buckets = [place for place, count in enumerate(histogram) for _ in range(count)]
    if len(buckets) != len(times):
        return [f"{len(buckets)} requests are counted, not {len(times)}"]
    left = sorted((bucket(most), bucket(least)) for least, most in times)
    wrong = []
    for found in buckets:
        fitting = [one for one in left if one[1] <= found <= one[0]]
        if fitting:
            left.remove(fitting[0])
        else:
            wrong.append(found)
    ranges = ", ".join(f"{low} to {high}" for high, low in left)
    return [f"a request stands in bucket {found}, not {ranges}" for found in wrong]
