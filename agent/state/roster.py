"""Holds the backends of a configuration in a fixed order, with their ids in arrays.

Work on all backends at the same time is then a few array operations, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.model import BackendRef, Config, Service
from agent.state.identities import Identities

type Numbers = npt.NDArray[np.int64]
type Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """Backends, grouped by service; ``place``: the index of each backend.

    ``refs``, ``ids`` and ``service`` (the index of the backend's service in ``names``) have one
    element per backend; ``names`` and ``service_ids`` have one per service.
    """

    refs: tuple[BackendRef, ...]
    ids: Numbers
    service: Numbers
    names: tuple[str, ...]
    service_ids: Numbers
    place: dict[BackendRef, int]

    def those(self, flags: Flags) -> list[BackendRef]:
        """Return the backends whose flag is set; ``flags`` has one element per backend."""
        return [self.refs[at] for at in np.flatnonzero(flags).tolist()]

    def services_of(self, flags: Flags) -> frozenset[str]:
        """Return the services with a backend whose flag is set."""
        return frozenset(self.names[n] for n in np.unique(self.service[flags]).tolist())

    def by_service(self, values: Numbers) -> Numbers:
        """Sum one value per backend over each service; the result is in the order of ``names``."""
        sums = np.zeros(len(self.names), np.int64)
        np.add.at(sums, self.service, values)
        return sums


def roster(services: Sequence[Service], ids: Identities) -> Roster:
    """Return the roster of the backends of these services."""
    refs = tuple(BackendRef(s.name, b.name) for s in services for b in s.backends)
    numbers = [number for s in services for number in ids.backend_ids(s)]
    own = [n for n, s in enumerate(services) for _ in s.backends]
    return Roster(
        refs,
        np.array(numbers, np.int64),
        np.array(own, np.int64),
        tuple(service.name for service in services),
        np.array([ids.service_id(service) for service in services], np.int64),
        {ref: at for at, ref in enumerate(refs)},
    )


def same_backends(old: Config, new: Config) -> bool:
    """Return whether both have the same services and backends, by name and in the same order."""
    if old is new:
        return True
    return len(old.services) == len(new.services) and all(
        before is after or _names(before) == _names(after)
        for before, after in zip(old.services, new.services, strict=True)
    )


def _names(service: Service) -> tuple[str, ...]:
    return service.name, *(backend.name for backend in service.backends)
