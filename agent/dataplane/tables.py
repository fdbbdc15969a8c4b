"""Owns the shared tables: the pinned maps, mapped into memory as NumPy arrays."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, libbpf
from agent.dataplane.constants import Clock, HashKeys, Sizes
from agent.dataplane.pins import Pins
from agent.errors import DataplaneError
from agent.state.tables import ServiceSlot

type Table = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class TableShape:
    """What a pinned map must be."""

    kind: int
    key: int
    value: int
    entries: int


def shapes(size: Sizes) -> dict[str, TableShape]:
    """The pinned tables of ``bpf/maps.h``, by name."""

    def array(dtype: np.dtype[np.void], entries: int) -> TableShape:
        return TableShape(libbpf.MAP_TYPE_ARRAY, 4, dtype.itemsize, entries)

    def by_key(dtype: np.dtype[np.void]) -> TableShape:
        return TableShape(
            libbpf.MAP_TYPE_HASH, dtype.itemsize, abi.SERVICE.itemsize, size.service_keys
        )

    return {
        "services4": by_key(abi.SERVICE_KEY4),
        "services6": by_key(abi.SERVICE_KEY6),
        "flows": array(abi.FLOW_BUCKET, size.flow_buckets),
        "flows_cold": array(abi.FLOW_COLD, size.flow_buckets * abi.FLOW_WAYS),
        "rings": array(abi.RING_LINE, size.ring_lines),
        "backends": array(abi.BACKEND, size.backends),
        "backend_count": array(abi.BACKEND_COUNTERS, size.backends * size.rows),
        "service_count": array(abi.SERVICE_COUNTERS, size.services * size.rows),
        "settings": array(abi.SETTINGS, 1),
    }


def check_pinned(pins: Pins, size: Sizes) -> None:
    """Refuse tables that were pinned with other sizes: BCC would open them silently."""
    for name, shape in shapes(size).items():
        path = pins.table(name)
        if not path.exists():
            continue
        fd = libbpf.object_get(path)
        try:
            info = libbpf.map_info(fd)
        finally:
            os.close(fd)
        found = TableShape(info.type, info.key_size, info.value_size, info.max_entries)
        if found != shape:
            raise DataplaneError(
                f"the pinned table has {found.entries} elements of {found.value} bytes, the "
                f"configuration asks for {shape.entries} of {shape.value}",
                where=str(path),
                remedy="restore the old `tables:` section, or give up the recorded flows with "
                "`lb-agent detach` and start again",
            )


def _map(fd: int, dtype: np.dtype[np.void], entries: int) -> tuple[mmap.mmap, Table]:
    length = -(-entries * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return memory, np.frombuffer(memory, dtype=dtype, count=entries)


class SharedTables:
    """The tables of one instance, open.

    Arrays are views of the kernel's memory: reading one is reading the data plane's state, and
    a store to an aligned element of 8 bytes or fewer is atomic.
    """

    def __init__(self, pins: Pins, size: Sizes) -> None:
        self.size = size
        self._fds = {name: libbpf.object_get(pins.table(name)) for name in shapes(size)}
        self._memory: list[mmap.mmap] = []
        self.flows = self._array("flows", abi.FLOW_BUCKET, size.flow_buckets)["slot"].reshape(-1)
        self.flows_cold = self._array(
            "flows_cold", abi.FLOW_COLD, size.flow_buckets * abi.FLOW_WAYS
        )
        self.rings = self._array("rings", abi.RING_LINE, size.ring_lines)["backend"].reshape(-1)
        self.backends = self._array("backends", abi.BACKEND, size.backends)
        self.backend_count = self._array(
            "backend_count", abi.BACKEND_COUNTERS, size.backends * size.rows
        ).reshape(size.rows, size.backends)
        self.service_count = self._array(
            "service_count", abi.SERVICE_COUNTERS, size.services * size.rows
        ).reshape(size.rows, size.services)

    def _array(self, name: str, dtype: np.dtype[np.void], entries: int) -> Table:
        memory, array = _map(self._fds[name], dtype, entries)
        self._memory.append(memory)
        return array

    def put_service(self, key: ServiceSlot, value: Table) -> None:
        """Insert or replace; a packet sees the old value or the new one."""
        libbpf.map_update(self._fds[_map_name(key)], _packed(key), value.tobytes())

    def delete_service(self, key: ServiceSlot) -> None:
        libbpf.map_delete(self._fds[_map_name(key)], _packed(key))

    def services(self) -> Iterator[tuple[ServiceSlot, Table]]:
        """Every key of both service maps, the marks of the VIPs included."""
        for table, dtype in (("services4", abi.SERVICE_KEY4), ("services6", abi.SERVICE_KEY6)):
            items = libbpf.map_items(self._fds[table], dtype.itemsize, abi.SERVICE.itemsize)
            for key, value in items:
                yield _slot_of(key), np.frombuffer(value, dtype=abi.SERVICE)[0]

    def close(self) -> None:
        """Close the descriptors; the arrays stay valid as long as somebody holds them."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def _map_name(slot: ServiceSlot) -> str:
    return f"services{slot.vip.version}"


def _packed(slot: ServiceSlot) -> bytes:
    return slot.vip.packed + slot.port.to_bytes(2, "big") + bytes((slot.protocol, 0))


def _slot_of(packed: bytes) -> ServiceSlot:
    raw = packed[:-4]
    vip = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
    return ServiceSlot(vip, int.from_bytes(packed[-4:-2], "big"), packed[-2])


@dataclass(frozen=True, slots=True)
class BootSettings:
    """What is drawn or measured once per set of tables."""

    keys: HashKeys
    clock: Clock


def boot_settings(pins: Pins, make: Callable[[], BootSettings]) -> BootSettings:
    """The settings of the pinned tables; ``make`` draws them for fresh ones.

    The program has them compiled in, so this table exists before BCC makes the others.
    """
    path = pins.table("settings")
    if path.exists():
        fd = libbpf.object_get(path)
    else:
        size = abi.SETTINGS.itemsize
        fd = libbpf.array_create("settings", size, 1, libbpf.BPF_F_MMAPABLE)
        libbpf.object_pin(fd, path)
    try:
        _, table = _map(fd, abi.SETTINGS, 1)
    finally:
        os.close(fd)
    row = table[0:1]
    if not row["abi"][0]:
        boot = make()
        row["flow_key"] = boot.keys.key
        row["flow_mul0"], row["flow_mul1"] = boot.keys.mul0, boot.keys.mul1
        row["hz"], row["tick_shift"] = boot.clock.hz, boot.clock.shift
        row["abi"] = abi.ABI_VERSION  # last: it says that the rest is there
    keys = HashKeys(int(row["flow_key"][0]), int(row["flow_mul0"][0]), int(row["flow_mul1"][0]))
    return BootSettings(keys, Clock(int(row["hz"][0]), int(row["tick_shift"][0])))


def fresh_keys() -> HashKeys:
    """Secret keys for the flow table's hash."""
    return HashKeys(secrets.randbits(64), secrets.randbits(64) | 1, secrets.randbits(64) | 1)
