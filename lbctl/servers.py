"""Decides what a server is: the backends of all services at one address. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import ApiError
from lbctl.suggest import did_you_mean

type Row = Mapping[str, Any]

# The worst first.
STATES = (
    "down",
    "unreachable",
    "ejected",
    "degraded",
    "checking",
    "maintenance",
    "drain",
    "up",
)


@dataclass(frozen=True, slots=True)
class Server:
    """``name``: the name that most of its backends have."""

    name: str
    address: str
    backends: tuple[Row, ...]

    @property
    def refs(self) -> tuple[str, ...]:
        """Its backends as SERVICE/BACKEND."""
        return tuple(f"{row['service']}/{row['name']}" for row in self.backends)

    @property
    def worst(self) -> str:
        """The worst state of its backends."""
        return min((str(row["state"]) for row in self.backends), key=STATES.index)

    @property
    def reason(self) -> str:
        """The reason of its worst state: the most frequent one, and how many others there are."""
        found = Counter(row["reason"] for row in self.backends if row["state"] == self.worst)
        reason = found.most_common(1)[0][0]
        return f"{reason}; and {len(found) - 1} more" if len(found) > 1 else str(reason)

    def total(self, key: str) -> int:
        """Return the sum of a figure over its backends; a figure that is not counted is 0."""
        return sum(row[key] or 0 for row in self.backends)


def servers(services: Iterable[Row]) -> list[Server]:
    """Return the servers behind these services, in the order in which they appear."""
    by_address: dict[str, list[Row]] = {}
    for service in services:
        for backend in service["backends"]:
            by_address.setdefault(backend["address"], []).append(backend)
    return [
        Server(Counter(row["name"] for row in rows).most_common(1)[0][0], address, tuple(rows))
        for address, rows in by_address.items()
    ]


def find(known: Sequence[Server], word: str) -> list[Server]:
    """Return the servers that a word names: an address, or the name of backends that are all at
    one address, or at one of each family. Raises ApiError.
    """
    found = [server for server in known if server.address == word]
    if found:
        return found
    found = [s for s in known if any(row["name"] == word for row in s.backends)]
    if not found:
        names = [server.name for server in known]
        raise ApiError(f"there is no server {word}", remedy=did_you_mean(word, names, what="there"))
    families = Counter(":" in server.address for server in found)
    if max(families.values()) > 1:
        addresses = ", ".join(server.address for server in found)
        raise ApiError(
            f"{word} is the name of backends on {len(found)} servers",
            remedy=f"name one by its address: {addresses}",
        )
    return found
