"""Defines what a metric consists of: its name, its kind, and how its samples come from a
snapshot.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.state.snapshot import BackendSnapshot, Latency, ServiceSnapshot, Snapshot

type Sample = tuple[
    tuple[str, ...], float | Latency
]  # label values, and the value; for a histogram, its times
type Samples = Callable[[Snapshot], Iterable[Sample]]


class Kind(enum.Enum):
    """The types in use. INFO is a gauge that is always 1 and has its information in its labels."""

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
        """Whether it has a sample for each single backend."""
        return "backend" in self.labels


def one(value: Callable[[Snapshot], float]) -> Samples:
    """Return the single sample of a metric without labels."""
    return lambda snapshot: [((), value(snapshot))]


def each_service(value: Callable[[ServiceSnapshot], float | None]) -> Samples:
    """Return a sample for every service that has the value."""

    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for each in snapshot.services:
            found = value(each)
            if found is not None:
                yield (each.service.name,), found

    return samples


def backends(snapshot: Snapshot) -> Iterator[tuple[tuple[str, str], BackendSnapshot]]:
    """Yield every backend, with the labels that name it."""
    for service in snapshot.services:
        for backend in service.backends:
            yield (service.service.name, backend.backend.name), backend


def each_backend(value: Callable[[BackendSnapshot], float | Latency | None]) -> Samples:
    """Return a sample for every backend that has the value."""

    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for names, backend in backends(snapshot):
            found = value(backend)
            if found is not None:
                yield names, found

    return samples
