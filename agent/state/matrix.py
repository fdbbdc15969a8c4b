"""Decides what the map of servers and services shows: a cell for each backend. Pure.

There may be thousands of cells every two seconds, so a cell holds no more than its colour needs.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agent.model import Address, BackendRef, BackendState
from agent.state.ranking import Figures
from agent.state.situation import Situation


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A backend. ``server`` and ``service`` are its row and column in the matrix.

    ``load`` is from 0 to 1, relative to the busiest backend of the service.
    """

    server: int
    service: int
    backend: str
    state: BackendState
    load: float


@dataclass(frozen=True, slots=True)
class Matrix:
    """The map. A server is an address with the name that most of its backends have, or two
    addresses of different families if both have the same name. Servers and services are sorted by
    name.
    """

    servers: tuple[tuple[str, tuple[Address, ...]], ...]
    services: tuple[str, ...]
    cells: tuple[MatrixCell, ...]


def matrix(now: Situation, figures: Figures) -> Matrix:
    """Return all backends by server and service.

    The load is the waiting request bytes, or the flows if no request waits in the service.
    """
    names: dict[Address, Counter[str]] = {}
    address_of: dict[BackendRef, Address] = {}
    for service in now.config.services:
        for backend in service.backends:
            names.setdefault(backend.address, Counter())[backend.name] += 1
            address_of[BackendRef(service.name, backend.name)] = backend.address
    servers = _servers({a: found.most_common(1)[0][0] for a, found in names.items()})
    services = sorted(now.roster.names, key=natural)
    row = {address: n for n, (_, addresses) in enumerate(servers) for address in addresses}
    column = {name: n for n, name in enumerate(services)}
    loads = _loads(now, figures)
    cells = (
        MatrixCell(
            row[address_of[ref]],
            column[ref.service],
            ref.backend,
            now.verdicts[ref].state,
            loads[place],
        )
        for place, ref in enumerate(now.roster.refs)
    )
    by_place = sorted(cells, key=lambda cell: (cell.service, cell.server, cell.backend))
    return Matrix(servers, tuple(services), tuple(by_place))


def _servers(names: Mapping[Address, str]) -> tuple[tuple[str, tuple[Address, ...]], ...]:
    by_name: dict[str, list[Address]] = {}
    for address, name in names.items():
        by_name.setdefault(name, []).append(address)
    found: list[tuple[str, tuple[Address, ...]]] = []
    for name in sorted(by_name, key=natural):
        own = sorted(by_name[name], key=lambda address: (address.version, int(address)))
        is_one = len({address.version for address in own}) == len(own)
        found += [(name, tuple(own))] if is_one else [(name, (address,)) for address in own]
    return tuple(found)


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """Return a sort key that puts gpu-10 after gpu-9: words, each with the number after it."""
    parts = [*re.split("([0-9]+)", name), "-1"]  # a word, a number, a word, ... and no number
    return tuple((word, int(number)) for word, number in itertools.batched(parts, 2))


def _loads(now: Situation, figures: Figures) -> list[float]:
    """Return the loads, from 0 to 1, by place in the roster."""
    known = now.roster
    waits = known.by_service(figures.waiting)[known.service] > 0
    work = np.where(waits, figures.waiting, figures.flows)
    most = np.zeros(len(known.names), np.int64)
    np.maximum.at(most, known.service, work)
    found: list[float] = (work / np.maximum(most[known.service], 1)).round(3).tolist()
    return found
