"""Decides which troubles there are: what is not up, by server and cause, the worst first. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.model import Address, BackendRef, BackendState, NoBackend, ServiceState
from agent.state.situation import Situation, state_of
from agent.state.slo import Watch

_BAD = (BackendState.DOWN, BackendState.EJECTED, BackendState.UNREACHABLE)
_TOOK = re.compile(r" in \d+(?:\.\d+)? m?s\b")  # how long a check took is no cause
_TOGETHER = 4  # servers with one trouble are one trouble


@dataclass(frozen=True, slots=True)
class Server:
    """Backends of one address, by the name that most of them have."""

    name: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Cause:
    """Servers with the same trouble; ``since`` (Unix time) is when the first of their backends had
    it. ``backends`` have it, ``others`` of the same servers do not.
    """

    servers: tuple[Server, ...]
    state: BackendState
    reason: str
    since: float
    backends: tuple[BackendRef, ...]
    others: int

    @property
    def services(self) -> tuple[str, ...]:
        """The services that it is in."""
        return tuple(dict.fromkeys(ref.service for ref in self.backends))


@dataclass(frozen=True, slots=True)
class Unserved:
    """A service without a backend that takes new flows, and what becomes of its clients."""

    service: str
    reason: str
    since: float
    clients: NoBackend


@dataclass(frozen=True, slots=True)
class Unconnected:
    """A service to which nobody gets a connection: ``begun`` of late, with ``up`` backends."""

    service: str
    begun: int
    up: int


@dataclass(frozen=True, slots=True)
class Late:
    """A service whose answers begin later than it promises."""

    service: str
    watch: Watch


@dataclass(frozen=True, slots=True)
class Troubles:
    """What is wrong now."""

    unserved: tuple[Unserved, ...] = ()
    unconnected: tuple[Unconnected, ...] = ()
    late: tuple[Late, ...] = ()
    causes: tuple[Cause, ...] = ()


def troubles(
    seen: Situation,
    unconnected: Mapping[str, int],
    watches: Mapping[str, tuple[Watch, ...]],
) -> Troubles:
    """What is wrong; of the causes, those of most backends come first. ``unconnected``: how many
    connections were begun in the last half minute, of services to which nobody gets one;
    ``watches``: of the objectives that services have.
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
    """The reason, without what differs between servers and services with the same trouble."""
    at_vip = rf"(?<![\w.:])\[?{re.escape(str(vip))}\]?(:\d+)?(?![\w.:])"
    told = re.sub(at_vip, "the VIP", _TOOK.sub("", reason))
    return told.replace(f" from {address}", "").replace(str(address), "it")


def _causes(
    seen: Situation,
    bad: Mapping[tuple[Address, BackendState, str], list[BackendRef]],
    held: Mapping[Address, int],
) -> Iterator[Cause]:
    """One for each server, whatever its addresses are; or for all, where many have the same."""
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
            there = sum(held[address] for server in servers for address in server.addresses)
            yield Cause(servers, state, reason, since, tuple(refs), there - len(refs))


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
