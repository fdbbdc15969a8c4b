"""Turns counters into events per second and into shares of the last minute.

Everything is pure. ``at`` is the time of any clock that only goes forward, in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from agent.model import BackendRef
from agent.state.snapshot import Rates

WINDOW_S = 60.0
WINDOW_SAMPLES = 30  # a window keeps no more, however often it is fed


@dataclass(frozen=True, slots=True)
class Counters:
    """The totals from which rates are computed."""

    packets: int = 0
    bytes: int = 0
    new_flows: int = 0
    drops: int = 0


def increase(previous: int, current: int) -> int:
    """Return what was added between two readings; a counter that went back restarted at 0."""
    return current - previous if current >= previous else current


def rates(previous: Counters | None, current: Counters, seconds: float) -> Rates:
    """Return the rates between two readings ``seconds`` apart; all 0 for a first reading."""
    if previous is None or seconds <= 0:
        return Rates()
    return Rates(
        new_flows_per_s=increase(previous.new_flows, current.new_flows) / seconds,
        packets_per_s=increase(previous.packets, current.packets) / seconds,
        bits_per_s=increase(previous.bytes, current.bytes) * 8 / seconds,
        drops_per_s=increase(previous.drops, current.drops) / seconds,
    )


def total(parts: Iterable[Rates]) -> Rates:
    """Return the sum of several rates."""
    new_flows = packets = bits = drops = 0.0
    for part in parts:
        new_flows += part.new_flows_per_s
        packets += part.packets_per_s
        bits += part.bits_per_s
        drops += part.drops_per_s
    return Rates(new_flows, packets, bits, drops)


@dataclass(frozen=True, slots=True)
class _Sample:
    """``opened`` per backend since it was first seen, with counter restarts taken out."""

    at: float
    opened: Mapping[BackendRef, int]


@dataclass(frozen=True, slots=True)
class OpenedWindow:
    """New flows per backend over the last ``span_s``; feed it with ``add``.

    Samples are at least ``span_s / WINDOW_SAMPLES`` apart, but the newest is always exact.
    """

    span_s: float = WINDOW_S
    samples: tuple[_Sample, ...] = ()  # oldest first; the first may be older than the span
    raw: Mapping[BackendRef, int] = field(default_factory=dict)  # the counters as last read

    def add(self, at: float, opened: Mapping[BackendRef, int]) -> Self:
        """Return the window with the counters read at ``at``; backends not named are forgotten.

        A backend's first reading adds no flows, because what came before it is unknown.
        """
        before = self.samples[-1].opened if self.samples else {}
        adjusted = {
            ref: before.get(ref, 0) + increase(self.raw.get(ref, count), count)
            for ref, count in opened.items()
        }
        kept = self.samples
        if len(kept) >= 2 and kept[-1].at - kept[-2].at < self.span_s / WINDOW_SAMPLES:
            kept = kept[:-1]
        # The newest sample that is outside the window is where the window starts.
        outside = sum(1 for sample in kept if sample.at <= at - self.span_s)
        kept = kept[max(0, outside - 1) :]
        return type(self)(self.span_s, (*kept, _Sample(at, adjusted)), dict(opened))

    def increases(self) -> dict[BackendRef, int]:
        """Return the new flows in the window, per backend."""
        if not self.samples:
            return {}
        first, last = self.samples[0].opened, self.samples[-1].opened
        # A backend that was removed and added again may have a lower count than before.
        return {ref: max(0, count - first.get(ref, 0)) for ref, count in last.items()}

    def shares(self) -> dict[BackendRef, float]:
        """Return each backend's share of its service's new flows, 0 to 1; 0 if there are none."""
        grown = self.increases()
        by_service: Counter[str] = Counter()
        for ref, count in grown.items():
            by_service[ref.service] += count
        return {
            ref: count / by_service[ref.service] if count else 0.0 for ref, count in grown.items()
        }
