"""Owns the part of a ledger that outlives the agent; it is pinned beside the tables it is about.

Without it, a restarted agent could not distinguish its own flows from flows that it received from
a peer and that have ended there since, and it would send the latter back to the peer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from agent.dataplane import libbpf
from agent.dataplane.pins import Pins
from agent.dataplane.survey import Slots
from agent.dataplane.tables import Table, mapped
from agent.failover.model import Address

_PREFIX = "peer_"
_MOST_BYTES = 256  # of the name of the peer's tables
_ROW = np.dtype([("received", "u8"), ("holder", "u4"), ("pad", "u4")])
_NAME = np.dtype([("name", "u1", (_MOST_BYTES,))])


@dataclass(frozen=True, slots=True)
class Kept:
    """Two arrays of the ledger with one peer, and the name of the peer's tables (in UTF-8)."""

    received: Slots
    holder: npt.NDArray[np.uint32]
    name: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, pins: Pins, peer: Address, slots: int) -> Self:
        """Return what the last agent left, or an empty one."""
        rows_name, tables_name = _names(peer)
        rows = _pinned(pins.table(rows_name), _ROW, slots)
        tables = _pinned(pins.table(tables_name), _NAME, 1)
        return cls(rows["received"], rows["holder"], tables["name"][0])

    @classmethod
    def nowhere(cls, slots: int) -> Self:
        """Return one that is not pinned and lives only as long as the process."""
        return cls(
            np.zeros(slots, dtype=np.uint64),
            np.zeros(slots, dtype=np.uint32),
            np.zeros(_MOST_BYTES, dtype=np.uint8),
        )

    @property
    def tables(self) -> str:
        """The name of the peer's tables that the arrays are about."""
        return self.name.tobytes().rstrip(b"\0").decode()

    def meet(self, tables: str) -> None:
        """Empty the arrays and use them for these tables of the peer."""
        self.name[:] = 0  # an agent that is killed here leaves arrays that are about no tables
        self.received[:] = 0
        self.holder[:] = 0
        text = np.frombuffer(tables.encode()[:_MOST_BYTES], dtype=np.uint8)
        self.name[: len(text)] = text


def forget_all_but(pins: Pins, peers: Iterable[Address]) -> None:
    """Unpin what was kept about balancers that are no longer peers."""
    wanted = {name for peer in peers for name in _names(peer)}
    for path in pins.folder.glob(f"{_PREFIX}*"):
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def _names(peer: Address) -> tuple[str, str]:
    """Return the names of the two pinned maps; bpffs allows no dots in names."""
    name = f"{_PREFIX}{int(peer):x}"
    return name, f"{name}_tables"


def _pinned(path: Path, dtype: np.dtype[np.void], entries: int) -> Table:
    if path.exists():
        fd = libbpf.object_get(path)
    else:
        fd = libbpf.array_create("peer", dtype.itemsize, entries, libbpf.BPF_F_MMAPABLE)
        libbpf.object_pin(fd, path)
    try:
        return mapped(fd, dtype, entries)[1]
    finally:
        os.close(fd)
