"""Decides which of our services, backends and source addresses a sender's ids stand for.

Each node numbers its own in the order in which they appear. They are matched between nodes by the
same identity that keeps an id over a restart (``agent.state.identities``): a service by its first
address, first port and protocol, a backend by its service, address and port.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.model import Address
from agent.state.tables import ServiceSlot, TableContents

_IDS = 1 << 16  # how many ids a record can name
_NUMBERS = 1 << 8
_MOST_SLOTS = 1 << 28

type Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Identities:
    """What the ids in a node's tables stand for, as plain data for its peer.

    ``services``: slot by id; ``backends``: service id, address and port (0: the packet's) by id;
    ``nat_sources``: address by number; ``slots``: the size of its flow table; ``tables``: a name
    that distinguishes its tables from those that it had before.
    """

    tables: str
    slots: int
    services: dict[int, ServiceSlot]
    backends: dict[int, tuple[int, Address, int]]
    nat_sources: dict[int, Address]


def identities_of(held: TableContents, tables: str, slots: int) -> Identities:
    """Return the identities of tables with this name, these contents and so many flow slots."""
    return Identities(
        tables,
        slots,
        services={entry.id: slot for slot, entry in held.services.items()},
        backends={ident: entry.identity for ident, entry in held.backends.items()},
        nat_sources=dict(held.nat_sources),
    )


def to_plain(ids: Identities) -> dict[str, Any]:
    """Return the identities as plain data for JSON: lists of numbers, and addresses as text."""
    return {
        "tables": ids.tables,
        "slots": ids.slots,
        "services": [[i, str(s.vip), s.port, s.protocol] for i, s in ids.services.items()],
        "backends": [[i, owner, str(a), port] for i, (owner, a, port) in ids.backends.items()],
        "nat_sources": [[number, str(a)] for number, a in ids.nat_sources.items()],
    }


def from_plain(plain: Any) -> Identities:
    """Return the identities that ``to_plain`` was given. ValueError if this is not its output."""
    try:
        return Identities(
            tables=str(plain["tables"]),
            slots=_number(plain["slots"], _MOST_SLOTS),
            services={
                _number(i, _IDS): ServiceSlot(
                    ip_address(str(vip)), _number(port, _IDS), _number(protocol, _NUMBERS)
                )
                for i, vip, port, protocol in plain["services"]
            },
            backends={
                _number(i, _IDS): (_number(owner, _IDS), ip_address(str(a)), _number(port, _IDS))
                for i, owner, a, port in plain["backends"]
            },
            nat_sources={
                _number(number, _NUMBERS): ip_address(str(a)) for number, a in plain["nat_sources"]
            },
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"malformed identities: {error}") from error


def _number(value: Any, end: int) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(f"not a number from 0 to {end - 1}: {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class IdMap:
    """Arrays that give our id for each id of the sender.

    ``services`` and ``backends`` have shape (65536,), with 0 for what we do not have;
    ``nat_sources`` gives our number for the sender's number of a fullnat source address, with
    shape (256,), and -1 for none.
    """

    services: Ids
    backends: Ids
    nat_sources: Ids
    tables: str  # the sender's, as in Identities
    slots: int  # of the sender's flow table

    def has_more_than(self, other: IdMap) -> bool:
        """Return whether an id means something here that meant nothing, or something else, in the
        other map.
        """
        return bool(
            ((self.services != other.services) & (self.services != 0)).any()
            or ((self.backends != other.backends) & (self.backends != 0)).any()
            or ((self.nat_sources != other.nat_sources) & (self.nat_sources >= 0)).any()
        )


def id_map(theirs: Identities, ours: Identities) -> IdMap:
    """Return the map from the sender's ids to ours."""
    our_services = {slot: ident for ident, slot in ours.services.items()}
    our_backends = {place: ident for ident, place in ours.backends.items()}
    our_sources = {address: number for number, address in ours.nat_sources.items()}
    services = np.zeros(_IDS, dtype=np.int64)
    backends = np.zeros(_IDS, dtype=np.int64)
    nat_sources = np.full(_NUMBERS, -1, dtype=np.int64)
    for ident, slot in theirs.services.items():
        services[ident] = our_services.get(slot, 0)
    for ident, (owner, address, port) in theirs.backends.items():
        place = (int(services[owner]), address, port)
        backends[ident] = our_backends.get(place, 0) if place[0] else 0
    for number, address in theirs.nat_sources.items():
        nat_sources[number] = our_sources.get(address, -1)
    return IdMap(services, backends, nat_sources, theirs.tables, theirs.slots)
