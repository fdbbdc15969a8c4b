"""Reads the tables that an agent of another ABI, or with other sizes, has left pinned.

The BTF of the program that is pinned beside them describes their layout. Fields are found by name,
so every ABI can be read in which the same names have the same meaning.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, btf, hold, libbpf
from agent.dataplane.btf import Btf
from agent.dataplane.constants import Clock, HashKeys, Sizes
from agent.dataplane.pins import Pins
from agent.dataplane.survey import Slots
from agent.dataplane.tables import BootSettings, Table, mapped, shape_of
from agent.errors import DataplaneError
from agent.logs import get_logger
from agent.model import Nat

log = get_logger()

_SERVICES = ("services4", "services6")
_NEEDED = {
    "flow_bucket": ("slot",),
    "flow_cold": ("saddr", "daddr", "sport", "dport", "service", "l4_proto", "family", "start"),
    "flow_warm": ("nat", "mac", "source_mac", "ifindex"),
    "nat_slot": ("owner", "client", "vip", "client_port", "vip_port", "service", "l4_proto",
                 "family"),
    "backend": ("flags", "service", "port", "family", "addr", "timeout_ticks"),
    "service": ("id", "flow_salt", "flags"),
    "settings": ("flow_key", "flow_mul0", "flow_mul1", "tick_shift", "hz"),
}  # fmt: skip


class OldTables:
    """The flows in such tables and what belongs to them, in the form of ``contents.read``."""

    def __init__(self, pins: Pins, size: Sizes, nat: Nat) -> None:
        """Open the tables; ``size`` and ``nat`` are as configured now.

        DataplaneError: they cannot be read.
        """
        self.pins = pins
        self._layout = _layout(pins)
        _check(self._layout, pins)
        self._fds = {
            name: libbpf.object_get(pins.table(name))
            for name in ("flows", "flows_cold", "flows_warm", "nat_slots", "nat_sources",
                         "backends", "backend_load", "settings", *_SERVICES)
            if pins.table(name).exists()
        }  # fmt: skip
        self.flows: Slots = self._array("flows", "flow_bucket")["slot"].reshape(-1)
        self.flows_cold = self._array("flows_cold", "flow_cold")
        self.flows_warm = self._array("flows_warm", "flow_warm")
        self.nat_slots = self._array("nat_slots", "nat_slot")
        first_port, ports = self._ports(nat)
        if not first_port:
            self.nat_slots = np.zeros(len(self.nat_slots), dtype=abi.NAT_SLOT)  # owned by no flow
        self._backends = self._array("backends", "backend")
        self.backends = _as_now(self._backends, abi.BACKEND)
        self.backend_load = _as_now(self._array("backend_load", "backend_load"), abi.BACKEND_LOAD)
        self.nat_sources = _as_now(self._array("nat_sources", "nat_source"), abi.NAT_SOURCE)
        self.service_load = np.zeros(1 << 16, dtype=abi.SERVICE_LOAD)
        self.rings = np.zeros(0, dtype=np.uint16)
        self.size = replace(
            size,
            flow_buckets=len(self.flows) // abi.FLOW_WAYS,
            nat_ports=ports,
            nat_first_port=first_port,
            nat_blocks=len(self.nat_slots) // max(ports, 1),
        )

    @property
    def ident(self) -> str:
        return str(self.pins.folder)

    def nat_sources_of(self, nat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers of the source addresses whose ports these NAT slots are.

        Before ABI 4, each source address had a block of its own.
        """
        if "source" in (self.nat_slots.dtype.names or ()):
            return self.nat_slots["source"][nat].astype(np.int64)
        return nat // self.size.nat_ports

    def _ports(self, nat: Nat) -> tuple[int, int]:
        """Return the first port of fullnat and the number of ports in a block.

        Before ABI 4 the tables do not hold the first port. It is then taken as configured now, or
        else as it is by default; 0: it is not known.
        """
        row = self._array("settings", "settings")[0]
        if "nat_ports" in (row.dtype.names or ()):
            return int(row["nat_first_port"]), int(row["nat_ports"])
        slots = len(self.nat_slots)
        return _first_port(slots, nat) or 0, max(slots // (2 * abi.NAT_SOURCES), 1)

    @property
    def boot(self) -> BootSettings:
        """The keys under which the flows are hashed, and the clock by which they are stamped."""
        row = self._array("settings", "settings")[0]
        keys = HashKeys(int(row["flow_key"]), int(row["flow_mul0"]), int(row["flow_mul1"]))
        return BootSettings(keys, Clock(int(row["hz"]), int(row["tick_shift"])))

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield the services as they would be written now; other tables by key yield nothing."""
        for key, value in self._raw(table):
            row = np.frombuffer(value, dtype=self._like("service", abi.SERVICE))
            yield key, _as_now(row, abi.SERVICE).tobytes()

    @contextlib.contextmanager
    def new_flows_held(self) -> Iterator[Callable[[], object]]:
        """Have the old program accept no new flow and send no reply, until a deadline that the
        yielded function moves (``hold.Hold.renew``).

        A program of an ABI before 4 knows no such deadline; its backends become unusable instead.
        """
        settings = self._array("settings", "settings")
        if "held_until" not in (settings.dtype.names or ()):
            with self._backends_unusable():
                yield lambda: None
            return
        with hold.new_flows_held(settings) as held:
            yield held.renew

    @contextlib.contextmanager
    def _backends_unusable(self) -> Iterator[None]:
        """Make every backend unusable for new flows.

        No other agent may run: its passes would undo it.
        """
        kind, flags = self._like("service", abi.SERVICE), self._backends["flags"]
        before, silenced = flags.copy(), []
        for table in _SERVICES:
            for key, value in self._raw(table):
                row = np.frombuffer(bytearray(value), dtype=kind)
                row["flags"] &= np.uint8(~abi.SERVICE_F_RESET & 0xFF)
                libbpf.map_update(self._fds[table], key, row.tobytes())
                silenced.append((table, key, value))
        flags &= np.uint32(~abi.BACKEND_F_USABLE & 0xFFFFFFFF)
        try:
            yield
        finally:
            flags[:] = before
            for table, key, value in silenced:
                libbpf.map_update(self._fds[table], key, value)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _raw(self, table: str) -> list[tuple[bytes, bytes]]:
        if table not in _SERVICES or table not in self._fds:
            return []
        shape = shape_of(self.pins.table(table))
        return libbpf.map_items(self._fds[table], shape.key, shape.value)

    def _like(self, struct: str, dtype: np.dtype[np.void]) -> np.dtype[np.void]:
        """Return ``dtype`` at the old struct's offsets, with the fields that the struct has."""
        layout = self._layout.structs[struct]
        names = [
            name for name in dtype.names or () if layout.sizes.get(name) == dtype[name].itemsize
        ]
        return np.dtype(
            {
                "names": names,
                "formats": [dtype[name] for name in names],
                "offsets": [layout.offsets[name] for name in names],
                "itemsize": layout.size,
            }
        )

    def _array(self, name: str, struct: str) -> Table:
        if name not in self._fds:
            return np.zeros(0, dtype=abi.STRUCTS[struct])
        entries = libbpf.map_info(self._fds[name]).max_entries
        return mapped(self._fds[name], self._like(struct, abi.STRUCTS[struct]), entries)[1]


def find(pins: Pins, size: Sizes, nat: Nat) -> OldTables | None:
    """Return the tables that the last program of an instance has used, if these are other tables
    than those that will be used.

    None: there are none, or they cannot be read, which is logged.
    """
    # Tables without a program are from an agent that never got as far as balancing.
    found = [old for old in pins.of_other_versions() if old.last_program is not None]
    for old in sorted(found, key=_program_id, reverse=True):
        try:
            return OldTables(old, size, nat)
        except (DataplaneError, OSError, ValueError) as error:
            log.warning("flows are not carried over", tables=str(old.folder), problem=str(error))
    return None


def _program_id(pins: Pins) -> int:
    """Return the program's id; of two programs, the newer one has the higher id."""
    return _program(pins).id


def _program(pins: Pins) -> libbpf.ProgramInfo:
    path = pins.last_program
    if path is None:
        raise FileNotFoundError(pins.program)
    fd = libbpf.object_get(path)
    try:
        return libbpf.program_info(fd)
    finally:
        os.close(fd)


def _layout(pins: Pins) -> Btf:
    return btf.parse(libbpf.btf_data(_program(pins).btf_id))


def _check(layout: Btf, pins: Pins) -> None:
    """Raise DataplaneError if something is missing without which flows mean nothing."""
    for struct, fields in _NEEDED.items():
        found = layout.structs.get(struct)
        for name in fields:
            if found is None or found.sizes.get(name) != abi.STRUCTS[struct][name].itemsize:
                raise DataplaneError(
                    f"the last agent's flows cannot be read: struct {struct} has another {name}",
                    where=str(pins.folder),
                )
    states = {f"FLOW_{state.name}": int(state) for state in abi.FlowState}
    theirs = layout.enums.get("flow_state", {})
    if any(theirs.get(name) != value for name, value in states.items()):
        raise DataplaneError(
            "the last agent's flows cannot be read: their states are different",
            where=str(pins.folder),
        )


def _as_now(rows: Table, dtype: np.dtype[np.void]) -> Table:
    """Return a copy with today's fields; those that the old rows do not have are 0."""
    found = np.zeros(len(rows), dtype=dtype)
    for name in rows.dtype.names or ():
        found[name] = rows[name]
    return found


def _first_port(nat_slots: int, nat: Nat) -> int | None:
    """Return the first port of fullnat, which the tables do not hold: as configured now, or else as
    it is by default.

    None: it is not known, because neither has as many ports as the tables.
    """
    for known in (nat, Nat()):
        if nat_slots == 2 * abi.NAT_SOURCES * (known.last_port - known.first_port + 1):
            return known.first_port
    return None
