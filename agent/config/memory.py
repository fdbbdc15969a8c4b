"""Decides how much memory the tables of a configuration take, and whether there is as much.

The kernel takes it all when the tables are made, whatever is in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.errors import ConfigError
from agent.model import Nat, Tables

# Bytes of one element, all arrays together (agent/dataplane/tables.py). Tables by key are left
# out: they grow with what is in them.
_FLOW = 136
_SERVICE, _SERVICE_ROW = 592, 448  # a row: counters of one CPU
_BACKEND, _BACKEND_ROW = 1728, 64
_RING_SLOT = 2
_PORT = 64
_GUARD_NODE = 64
_SPARE_RINGS = 2
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Part:
    """What one key of the configuration, or several, costs."""

    keys: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Room:
    """The most that there can be, and by whose word."""

    size: int  # bytes
    what: str


def parts(tables: Tables, nat: Nat, cpus: int) -> tuple[Part, ...]:
    """The memory of the tables on a host with so many CPUs, the largest part first."""
    rings = tables.services + tables.zone_rings + _SPARE_RINGS
    rows = cpus + 1
    found = (
        Part("tables.flows", tables.flows * _FLOW),
        Part(
            "tables.ring_slots (for each of tables.services and tables.zone_rings)",
            tables.ring_slots * rings * _RING_SLOT,
        ),
        Part("tables.services", tables.services * (_SERVICE + rows * _SERVICE_ROW)),
        Part("tables.guard_nodes", tables.guard_nodes * _GUARD_NODE),
        Part("tables.backends", tables.backends * (_BACKEND + rows * _BACKEND_ROW)),
        Part(
            "tables.nat_blocks (for each of nat.ports)",
            tables.nat_blocks * (nat.last_port - nat.first_port + 1) * _PORT,
        ),
    )
    return tuple(sorted(found, key=lambda part: -part.size))


def refuse_too_much(needed: Iterable[Part], room: Room) -> None:
    """Raises ConfigError if the tables need more than there is."""
    needed = tuple(needed)
    total = sum(part.size for part in needed)
    if total > room.size:
        raise too_much(needed, f"{room.what} is {shown(room.size)}")


def too_much(needed: Iterable[Part], why: str) -> ConfigError:
    """The error that names what the tables take, part by part, and the keys to lower."""
    needed = tuple(needed)
    total = sum(part.size for part in needed)
    large = [part for part in needed if 10 * part.size >= total]
    listed = ", ".join(f"{part.keys} {shown(part.size)}" for part in large)
    return ConfigError(
        f"the tables take {shown(total)} of memory, and {why}: {listed}",
        where="tables",
        remedy=f"lower {', '.join(part.keys.split()[0] for part in large)}",
    )


def shown(size: int) -> str:
    """A number of bytes for people: 36.5 GB."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}"
