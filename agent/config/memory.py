"""Decides how much memory the tables of a configuration take, and whether the host has enough.

The kernel allocates all of it when the tables are made, however full they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.errors import ConfigError
from agent.model import Nat, Tables

# Bytes of one element, summed over all arrays (agent/dataplane/tables.py). Hash tables are left
# out, because they grow with their content.
_FLOW = 136
_SERVICE, _SERVICE_ROW = 592, 448  # a row has the counters of one CPU
_BACKEND, _BACKEND_ROW = 1728, 64
_RING_SLOT = 2
_PORT = 64
_GUARD_NODE = 64
_SPARE_RINGS = 2
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Part:
    """The memory that one or several keys of the configuration take."""

    keys: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The most memory that the tables may take, and what sets that limit."""

    size: int  # bytes
    what: str


def parts(tables: Tables, nat: Nat, cpus: int) -> tuple[Part, ...]:
    """Return the memory of the tables on a host with ``cpus`` CPUs, the largest part first."""
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


def refuse_too_much(needed: Iterable[Part], room: MemoryLimit) -> None:
    """Raise ConfigError if the tables need more memory than there is."""
    needed = tuple(needed)
    total = sum(part.size for part in needed)
    if total > room.size:
        raise too_much(needed, f"{room.what} is {shown(room.size)}")


def too_much(needed: Iterable[Part], why: str) -> ConfigError:
    """Return the error that says what the tables take, part by part, and which keys to lower."""
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
    """Return a number of bytes as text for people, such as 36.5 GB."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}"
