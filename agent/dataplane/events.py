"""Decodes events of the ring buffer: ids and numbers become names and words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import numpy as np

from agent.dataplane import abi
from agent.dataplane.flows import STATE_NAMES
from agent.dataplane.tables import Table
from agent.model import Address, Backend, NoBackend, Protocol, Service
from agent.state.events import Event, EventKind, Fate
from agent.state.situation import Situation

_KINDS = {int(abi.EventKind[kind.name]): kind for kind in EventKind}
_FLAGS = "FSRP.UEW"  # from the lowest bit, as tcpdump writes them


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The services and backends that the ids in events stand for."""

    services: Mapping[int, Service]
    backends: Mapping[int, Backend]


def lexicon(now: Situation) -> Lexicon:
    """Return the lexicon of a situation."""
    services, backends = {}, {}
    for service in now.config.services:
        services[now.ids.service_id(service)] = service
        for backend in service.backends:
            backends[now.ids.backend_id(service, backend)] = backend
    return Lexicon(services, backends)


def lexicon_of(situation: Callable[[], Situation]) -> Callable[[], Lexicon]:
    """Return a function that returns the current lexicon and rebuilds it only when needed."""
    made: list[tuple[Situation, Lexicon]] = []

    def current() -> Lexicon:
        now = situation()
        if not made or made[0][0] is not now:
            made[:] = [(now, lexicon(now))]
        return made[0][1]

    return current


def kinds_mask(kinds: frozenset[EventKind]) -> int:
    """Return the bits of ``trace_control.kinds``."""
    return sum(1 << abi.EventKind[kind.name] for kind in kinds)


def read(samples: Sequence[bytes]) -> Table:
    """Return the samples of a ring as rows, without kinds that this agent does not know."""
    rows = np.frombuffer(b"".join(samples), dtype=abi.EVENT)
    return rows[np.isin(rows["kind"], list(_KINDS))]


def decode(rows: Table, words: Lexicon, epoch_ns: int) -> Iterator[Event]:
    """Yield an event for each row of ``read``.

    ``epoch_ns``: what to add to monotonic nanoseconds to get nanoseconds since the epoch. An id
    whose service or backend has been removed meanwhile has no name.
    """
    clients, vips = rows["client"].tobytes(), rows["vip"].tobytes()
    for i, row in enumerate(rows):
        kind = _KINDS[int(row["kind"])]
        answer, pick = kind is EventKind.ANSWER, kind is EventKind.PICK
        drop = kind is EventKind.DROP
        protocol, family = int(row["l4_proto"]), int(row["family"])
        service = words.services.get(int(row["service"]))
        backend = words.backends.get(int(row["backend"]))
        yield Event(
            at=(int(row["time"]) + epoch_ns) / 1_000_000_000,
            kind=kind,
            protocol=protocol,
            client=_address(clients[16 * i : 16 * i + 16], family),
            client_port=int(row["client_port"]) or None,
            vip=_address(vips[16 * i : 16 * i + 16], family),
            port=int(row["vip_port"]) or None,
            length=int(row["len"]),
            service=service.name if service else None,
            backend=backend.name if backend else None,
            backend_address=backend.address if backend else None,
            scheduler=service.scheduler.value if service and pick else None,
            reason=_reason(int(row["reason"])) if drop else None,
            fate=_fate(int(row["reason"]), service) if drop else None,
            tcp_flags=(
                tcp_flags(int(row["tcp_flags"])) if protocol == Protocol.TCP.number else None
            ),
            state=STATE_NAMES.get(int(row["state"])),
            waited_bytes=int(row["waited_bytes"]) if answer else None,
            waited_us=int(row["waited_us"]) if answer else None,
        )


def tcp_flags(bits: int) -> str:
    """Return TCP flags as tcpdump writes them: ``S.`` for SYN and ACK."""
    return "".join(letter for i, letter in enumerate(_FLAGS) if bits >> i & 1) or "none"


def _address(packed: bytes, family: int) -> Address:
    return IPv6Address(packed) if family == 6 else IPv4Address(packed[:4])


def _reason(number: int) -> str:
    try:
        return abi.Reason(number).label
    except ValueError:  # a newer program's
        return f"reason-{number}"


def _fate(reason: int, service: Service | None) -> Fate:
    if reason < abi.FIRST_DROP:
        return Fate.PASSED
    replied = reason in (abi.Reason.TTL_EXCEEDED, abi.Reason.TOO_BIG)
    if reason == abi.Reason.NO_BACKEND and service is not None:
        replied = service.no_backend is NoBackend.RESET
    return Fate.REFUSED if replied else Fate.DROPPED
