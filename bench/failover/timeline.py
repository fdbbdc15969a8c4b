"""Computes outages from a client's records: pure functions over arrays of events and times."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# As struct record in records.h.
RECORD = np.dtype(
    [("at_ns", "<u8"), ("number", "<u4"), ("kind", "u1"), ("node", "u1"), ("pad", "<u2")]
)
type Records = npt.NDArray[np.void]

# A later answer is none: a queue that is released after an outage does not shorten it.
LATE_NS = 10_000_000
MS = 1e6
NOBODY = -1


class Kind(enum.IntEnum):
    """The kind of a record."""

    SENT = 1
    ANSWERED = 2
    TAKEN = 3  # the node has added the VIP
    DROPPED = 4
    HEARD = 5  # an advert has reached the node
    ANNOUNCED = 6  # a gratuitous ARP or unsolicited NA of the node has reached the client


@dataclass(frozen=True, slots=True)
class Hole:
    """Consecutive probes without an answer in time, from the first one to the next answered one."""

    start_ns: int
    end_ns: int

    @property
    def ms(self) -> float:
        """Its length in ms."""
        return (self.end_ns - self.start_ns) / MS


@dataclass(frozen=True, slots=True)
class Probes:
    """The probes in order, and the node that answered each in time (NOBODY: none)."""

    sent_ns: npt.NDArray[np.int64]
    answered_by: npt.NDArray[np.int64]

    def between(self, start_ns: int, end_ns: int) -> Probes:
        """Return the probes sent in this interval."""
        first = int(np.searchsorted(self.sent_ns, start_ns))
        within = slice(first, int(np.searchsorted(self.sent_ns, end_ns)))
        return Probes(self.sent_ns[within], self.answered_by[within])

    def all_by(self, node: int) -> bool:
        """Return whether there were probes and this node answered all of them."""
        return bool(len(self.sent_ns) and (self.answered_by == node).all())

    def holes(self) -> list[Hole]:
        """Return the holes; one that has not ended ends with the last probe."""
        lost = self.answered_by == NOBODY
        if not lost.any():
            return []
        edges = np.diff(np.concatenate(([0], lost.astype(np.int64), [0])))
        starts = np.flatnonzero(edges == 1)
        ends = np.minimum(np.flatnonzero(edges == -1), len(lost) - 1)
        pairs = zip(self.sent_ns[starts].tolist(), self.sent_ns[ends].tolist(), strict=True)
        return [Hole(start_ns, end_ns) for start_ns, end_ns in pairs]


def probes(records: Records) -> Probes:
    """Return the probes in the records, with their answers."""
    sent = records[records["kind"] == Kind.SENT]
    at_ns = sent["at_ns"].astype(np.int64)
    by = np.full(len(sent), NOBODY, dtype=np.int64)
    if len(sent):
        answers = records[records["kind"] == Kind.ANSWERED]
        index = answers["number"].astype(np.int64) - int(sent["number"][0])
        known = (index >= 0) & (index < len(sent))
        answers, index = answers[known], index[known]
        in_time = answers["at_ns"].astype(np.int64) - at_ns[index] <= LATE_NS
        by[index[in_time]] = answers["node"][in_time]
    return Probes(at_ns, by)


def first(records: Records, kind: Kind, node: int, since_ns: int) -> int | None:
    """Return when that first happened at or after ``since_ns``."""
    of = records[(records["kind"] == kind) & (records["node"] == node)]
    later = of["at_ns"][of["at_ns"] >= since_ns]
    return int(later[0]) if len(later) else None


def last(records: Records, kind: Kind, node: int, until_ns: int | None) -> int | None:
    """Return when that last happened before ``until_ns``; None if never, or if that is None."""
    of = records[(records["kind"] == kind) & (records["node"] == node)]
    earlier = of["at_ns"][of["at_ns"] < (until_ns or 0)]
    return int(earlier[-1]) if len(earlier) else None


def owners(records: Records, before: Iterable[int]) -> frozenset[int]:
    """Return the nodes that have the VIP at the end of the records."""
    spans = ownership(records, frozenset(before))
    return spans[-1][1]


def ownership(records: Records, before: frozenset[int]) -> list[tuple[int, frozenset[int]]]:
    """Return from when on which nodes had the VIP; ``before``: those before the records."""
    spans = [(0, before)]
    changes = records[(records["kind"] == Kind.TAKEN) | (records["kind"] == Kind.DROPPED)]
    for change in changes:
        now, node = spans[-1][1], {int(change["node"])}
        after = now | node if change["kind"] == Kind.TAKEN else now - node
        if after != now:
            spans.append((int(change["at_ns"]), after))
    return spans


def longest_together_ns(spans: list[tuple[int, frozenset[int]]], since_ns: int, end_ns: int) -> int:
    """Return the longest uninterrupted time in this interval in which two nodes had the VIP."""
    ends = [start for start, _ in spans[1:]] + [end_ns]
    shared = [
        min(end, end_ns) - max(start, since_ns)
        for (start, nodes), end in zip(spans, ends, strict=True)
        if len(nodes) > 1
    ]
    return max([0, *shared])


@dataclass(frozen=True, slots=True)
class Moments:
    """When the fault was made and undone, and all was well again (or the wait for that ended)."""

    fault_ns: int
    back_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one repetition, in ms. ``None``: it did not happen."""

    takeover_ms: float | None  # from the fault to the first answer of the other node
    from_advert_ms: float | None  # the same, from the last advert that the backup heard
    outage_ms: float  # without answers, because of the fault
    back_outage_ms: float  # without answers, after the fault was undone
    hole_ms: float  # the longest of those, uninterrupted
    two_owners_ms: float | None  # at most, after the backup heard the master again
    announced_ms: float | None  # from then to the master's gratuitous ARP at the client


def outcome(
    records: Records, moments: Moments, master: int, backup: int, from_first_loss: bool
) -> Outcome:
    """Compute the outcome of a fault from records that begin while only ``master`` has the VIP.

    ``from_first_loss``: the time of the fault is not known; it is that of the first lost probe.
    """
    asked = probes(records).between(moments.fault_ns, moments.end_ns)
    holes = asked.holes()
    during = [hole for hole in holes if hole.start_ns < moments.back_ns]
    after = [hole for hole in holes if hole.start_ns >= moments.back_ns]
    began_ns = during[0].start_ns if from_first_loss and during else moments.fault_ns
    other_ns = first(records, Kind.ANSWERED, backup, began_ns)
    if other_ns is not None and other_ns >= moments.back_ns:
        other_ns = None
    spans = ownership(records, frozenset({master}))
    met_ns = first(records, Kind.HEARD, backup, moments.back_ns)
    together_ms = announced_ns = None
    if met_ns is not None:
        together_ms = longest_together_ns(spans, met_ns, moments.end_ns) / MS
        announced_ns = first(records, Kind.ANNOUNCED, master, met_ns)
    return Outcome(
        takeover_ms=_since(began_ns, other_ns),
        from_advert_ms=_since(last(records, Kind.HEARD, backup, other_ns), other_ns),
        outage_ms=sum(hole.ms for hole in during),
        back_outage_ms=sum(hole.ms for hole in after),
        hole_ms=max((hole.ms for hole in after), default=0.0),
        two_owners_ms=together_ms,
        announced_ms=_since(met_ns, announced_ns),
    )


def _since(start_ns: int | None, end_ns: int | None) -> float | None:
    return None if start_ns is None or end_ns is None else (end_ns - start_ns) / MS
