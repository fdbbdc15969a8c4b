"""What a metric is made of: its name, its kind, and how its samples come from a snapshot."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.state.snapshot import BackendSnapshot, Latency, ServiceSnapshot, Snapshot

type Sample = tuple[tuple[str, ...], float | Latency]  # label values; of a histogram, times
type Samples = Callable[[Snapshot], Iterable[Sample]]


class Kind(enum.Enum):
    """Types that are used; INFO is a gauge that is always 1, its facts are its labels."""

    COUNTER = "counter"
    GAUGE = "gauge"
    INFO = "info"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its full name, what it means, and its samples."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    samples: Samples

    @property
    def is_of_backends(self) -> bool:
        """It has a sample for each single backend."""
        return "backend" in self.labels


def one(value: Callable[[Snapshot], float]) -> Samples:
    """The one sample of a metric without labels."""
    return lambda snapshot: [((), value(snapshot))]


def each_service(value: Callable[[ServiceSnapshot], float]) -> Samples:
    """A sample for every service."""
    return lambda snapshot: [((s.service.name,), value(s)) for s in snapshot.services]


def backends(snapshot: Snapshot) -> Iterator[tuple[tuple[str, str], BackendSnapshot]]:
    """Every backend, with the labels that name it."""
    for service in snapshot.services:
        for backend in service.backends:
            yield (service.service.name, backend.backend.name), backend


def each_backend(value: Callable[[BackendSnapshot], float | Latency | None]) -> Samples:
    """A sample for every backend that has that value."""

    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for names, backend in backends(snapshot):
            found = value(backend)
            if found is not None:
                yield names, found

    return samples
