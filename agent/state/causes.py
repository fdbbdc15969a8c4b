"""Decides which troubles there are: what is not up, by server and cause, worst first. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.model import Address, BackendRef, BackendState, NoBackend, ServiceState
from agent.state.situation import Situation, state_of
from agent.state.slo import Watch

_BAD = (BackendState.DOWN, BackendState.EJECTED, BackendState.UNREACHABLE)
_TOOK = re.compile(r" in \d+(?:\.\d+)? m?s\b")  # the duration of a check is not part of the cause
_TOGETHER = 4  # from so many servers on, the same trouble is shown as one


@dataclass(frozen=True, slots=True)
class Server:
    """A server: its addresses, and the name that most of its backends have."""

    name: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Cause:
    """Servers with the same trouble; ``since`` (Unix time) is when their first backend got it.

    ``backends`` are those affected; ``others`` is the number of backends on the same servers that
    are not.
    """

    servers: tuple[Server, ...]
    state: BackendState
    reason: str
    since: float
    backends: tuple[BackendRef, ...]
    others: int

    @property
    def services(self) -> tuple[str, ...]:
        """The services that are affected."""
        return tuple(dict.fromkeys(ref.service for ref in self.backends))


@dataclass(frozen=True, slots=True)
class Unserved:
    """A service without a backend that takes new flows, and what its clients get instead."""

    service: str
    reason: str
    since: float
    clients: NoBackend


@dataclass(frozen=True, slots=True)
class Unconnected:
    """A service to which no client gets a connection.

    ``begun``: connections that clients began in the last half minute; ``up``: backends that are up.
    """

    service: str
    begun: int
    up: int


@dataclass(frozen=True, slots=True)
class Late:
    """A service whose answers begin later than its objective allows."""

    service: str
    watch: Watch


@dataclass(frozen=True, slots=True)
class Troubles:
    """Everything that is wrong now."""

    unserved: tuple[Unserved, ...] = ()
    unconnected: tuple[Unconnected, ...] = ()
    late: tuple[Late, ...] = ()
    causes: tuple[Cause, ...] = ()


def troubles(
    seen: Situation,
    unconnected: Mapping[str, int],
    watches: Mapping[str, tuple[Watch, ...]],
) -> Troubles:
    """Return what is wrong; causes that affect the most backends come first.

    ``unconnected``: for services to which no client gets a connection, how many were begun in the
    last half minute; ``watches``: the watches of each service's objectives.
    """
    held = Counter[Address]()
    bad: dict[tuple[Address, BackendState, str], list[BackendRef]] = defaultdict(list)
    for service in seen.config.services:
        for backend in service.backends:
            held[backend.address] += 1
            ref = BackendRef(service.name, backend.name)
            verdict = seen.verdicts[ref]
            if verdict.state in _BAD:
                reason = _bare(verdict.reason, backend.address, service.key.vip)
                bad[backend.address, verdict.state, reason].append(ref)
    found = sorted(_causes(seen, bad, held), key=lambda c: (-len(c.backends), c.servers[0].name))
    silent = tuple(_unconnected(seen, unconnected))
    late = tuple(
        Late(service.name, each)
        for service in seen.config.services
        for each in watches.get(service.name, ())
        if each.is_missed and each.objective in service.slo
    )
    return Troubles(tuple(_unserved(seen)), silent, late, tuple(found))


def _bare(reason: str, address: Address, vip: Address) -> str:
    """Return the reason without the parts that differ between servers and services."""
    at_vip = rf"(?<![\w.:])\[?{re.escape(str(vip))}\]?(:\d+)?(?![\w.:])"
    bare = re.sub(at_vip, "the VIP", _TOOK.sub("", reason))
    return bare.replace(f" from {address}", "").replace(str(address), "it")


def _causes(
    seen: Situation,
    bad: Mapping[tuple[Address, BackendState, str], list[BackendRef]],
    held: Mapping[Address, int],
) -> Iterator[Cause]:
    """Yield a cause per server, over all its addresses, or one for all servers if many have it."""
    alike: dict[tuple[BackendState, str], dict[str, list[tuple[Address, list[BackendRef]]]]] = {}
    for (address, state, reason), refs in bad.items():
        name = Counter(ref.backend for ref in refs).most_common(1)[0][0]
        alike.setdefault((state, reason), {}).setdefault(name, []).append((address, refs))
    for (state, reason), by_name in alike.items():
        groups = [by_name] if len(by_name) >= _TOGETHER else [{n: f} for n, f in by_name.items()]
        for group in groups:
            servers = tuple(
                Server(name, tuple(address for address, _ in found))
                for name, found in group.items()
            )
            refs = [ref for found in group.values() for _, some in found for ref in some]
            since = min(seen.backends[ref].since for ref in refs)
            total = sum(held[address] for server in servers for address in server.addresses)
            yield Cause(servers, state, reason, since, tuple(refs), total - len(refs))


def _unconnected(seen: Situation, begun: Mapping[str, int]) -> Iterator[Unconnected]:
    for service in seen.config.services:
        if service.name in begun:
            states = [
                seen.verdicts[BackendRef(service.name, b.name)].state for b in service.backends
            ]
            yield Unconnected(service.name, begun[service.name], states.count(BackendState.UP))


def _unserved(seen: Situation) -> Iterator[Unserved]:
    down = {n for n, tracked in seen.services.items() if tracked.state is ServiceState.DOWN}
    for service in seen.config.services:
        if service.name not in down:
            continue
        found = [seen.verdicts[BackendRef(service.name, b.name)] for b in service.backends]
        if not any(verdict.usable for verdict in found):
            _, reason = state_of(service, seen.verdicts)
            since = seen.services[service.name].since
            yield Unserved(service.name, reason, since, service.no_backend)
