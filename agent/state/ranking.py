"""Decides which backends, or services, a page of a list shows, and in which order. Pure.

There may be thousands, several times a second. So the values needed for all of them are kept in
arrays, and full details are put together only for the ones shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from agent.model import BackendRef, BackendState, ServiceState
from agent.state.queries import ListQuery, SortBy
from agent.state.roster import Flags, Numbers, Roster
from agent.state.situation import Situation

# The worst for clients first.
BACKEND_STATES = (
    BackendState.DOWN,
    BackendState.UNREACHABLE,
    BackendState.EJECTED,
    BackendState.CHECKING,
    BackendState.MAINTENANCE,
    BackendState.DRAIN,
    BackendState.UP,
)
SERVICE_STATES = (ServiceState.DOWN, ServiceState.DEGRADED, ServiceState.UP)


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of all backends, or of all services, as arrays with one element each.

    ``first_byte`` is the number of a time bucket, or -1 if there was no answer in the last minute.
    """

    new: Numbers
    flows: Numbers
    waiting: Numbers
    first_byte: Numbers

    def by_service(self, known: Roster) -> Figures:
        """Return the figures by service: sums, and for ``first_byte`` the longest time."""
        longest = np.full(len(known.names), -1, np.int64)
        np.maximum.at(longest, known.service, self.first_byte)
        return Figures(
            known.by_service(self.new),
            known.by_service(self.flows),
            known.by_service(self.waiting),
            longest,
        )

    def of(self, sort: SortBy) -> Numbers | None:
        """Return the figure to sort by; None: the sort key is not a figure."""
        return {
            SortBy.NEW: self.new,
            SortBy.FLOWS: self.flows,
            SortBy.WAITING: self.waiting,
            SortBy.FIRST_BYTE: self.first_byte,
        }.get(sort)


def backends(now: Situation, figures: Figures, query: ListQuery) -> tuple[list[BackendRef], int]:
    """Return the backends on the page, and how many match."""
    known = now.roster
    found = _matching_backends(now, query)
    order = _ordered(
        found,
        figures,
        query.sort,
        lambda at: BACKEND_STATES.index(now.verdicts[known.refs[at]].state),
        lambda at: (known.refs[at].service, known.refs[at].backend),
    )
    return [known.refs[at] for at in order[query.offset :][: query.limit]], len(order)


def services(now: Situation, figures: Figures, query: ListQuery) -> tuple[list[str], int]:
    """Return the services on the page, and how many match. ``figures`` are those of backends."""
    known = now.roster
    part = query.match.lower()
    vips = {each.name: str(each.key.address) for each in now.config.services}

    def fits(name: str) -> bool:
        state = now.services[name].state.value
        return (
            (not query.service or name == query.service)
            and (not query.states or state in query.states)
            and (not part or part in name.lower() or part in vips[name])
        )

    found = np.array([fits(name) for name in known.names], bool)
    order = _ordered(
        found,
        figures.by_service(known),
        query.sort,
        lambda at: SERVICE_STATES.index(now.services[known.names[at]].state),
        lambda at: (known.names[at],),
    )
    return [known.names[at] for at in order[query.offset :][: query.limit]], len(order)


def _ordered(
    found: Flags,
    figures: Figures,
    sort: SortBy,
    state: Callable[[int], int],
    name: Callable[[int], tuple[str, ...]],
) -> list[int]:
    """Return the sorted places of the elements flagged in ``found``.

    Equal elements are sorted by name, so that rows keep their places while nothing changes.
    """
    places = sorted(np.flatnonzero(found).tolist(), key=name)
    if sort is SortBy.STATE:
        return sorted(places, key=state)
    values = figures.of(sort)
    if values is None:
        return places
    chosen = values[places]
    return [places[at] for at in np.argsort(-chosen, kind="stable").tolist()]


def _matching_backends(now: Situation, query: ListQuery) -> Flags:
    known = now.roster
    if not (query.service or query.backend or query.states or query.match):
        return np.ones(len(known.refs), bool)
    part = query.match.lower()
    addresses = _addresses(now) if part else {}

    def fits(ref: BackendRef) -> bool:
        return (
            (not query.service or ref.service == query.service)
            and (not query.backend or ref.backend == query.backend)
            and (not query.states or now.verdicts[ref].state.value in query.states)
            and (not part or part in str(ref).lower() or part in addresses[ref])
        )

    return np.array([fits(ref) for ref in known.refs], bool)


def _addresses(now: Situation) -> Mapping[BackendRef, str]:
    return {
        BackendRef(service.name, backend.name): str(backend.address)
        for service in now.config.services
        for backend in service.backends
    }
