"""Owns the shared tables: the pinned maps, mapped into memory as NumPy arrays."""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, libbpf
from agent.dataplane.constants import FRAGMENTS, LIMITED, PEERS, Clock, HashKeys, Sizes
from agent.dataplane.pins import Pins

type Table = npt.NDArray[np.void]

_SERVICES = ("services4", "services6")


@dataclass(frozen=True, slots=True)
class TableShape:
    """The type and the sizes of a pinned map."""

    kind: int
    key: int
    value: int
    entries: int


def shapes(size: Sizes) -> dict[str, TableShape]:
    """Return the shapes of the pinned tables of ``bpf/maps.h``, by name."""

    hashed, longest = libbpf.MAP_TYPE_HASH, libbpf.MAP_TYPE_LPM_TRIE

    def array(dtype: np.dtype[np.void], entries: int) -> TableShape:
        return TableShape(libbpf.MAP_TYPE_ARRAY, 4, dtype.itemsize, entries)

    def by_key(
        key: np.dtype[np.void], value: np.dtype[np.void], entries: int, kind: int = hashed
    ) -> TableShape:
        return TableShape(kind, key.itemsize, value.itemsize, entries)

    slots = size.flow_buckets * abi.FLOW_WAYS
    return {
        "services4": by_key(abi.SERVICE_KEY4, abi.SERVICE, size.service_keys),
        "services6": by_key(abi.SERVICE_KEY6, abi.SERVICE, size.service_keys),
        "addresses": array(abi.ADDRESS_FILTER, 1),
        "prefixes4": by_key(abi.VIP_PREFIX4, abi.VIP_PREFIX, size.vip_prefixes, longest),
        "prefixes6": by_key(abi.VIP_PREFIX6, abi.VIP_PREFIX, size.vip_prefixes, longest),
        "ranges": by_key(abi.PORT_RANGE_KEY, abi.PORT_RANGE, size.port_ranges, longest),
        "zones4": by_key(abi.ZONE_KEY4, abi.ZONE, size.zone_prefixes, longest),
        "zones6": by_key(abi.ZONE_KEY6, abi.ZONE, size.zone_prefixes, longest),
        "zone_rings": by_key(abi.ZONE_RING_KEY, abi.ZONE_RING, size.zone_rings),
        "origins4": by_key(abi.SERVICE_KEY4, abi.ORIGIN, size.origins),
        "origins6": by_key(abi.SERVICE_KEY6, abi.ORIGIN, size.origins),
        "quic_ids": by_key(abi.QUIC_KEY, abi.QUIC_SERVER, size.quic_ids),
        "fragments": by_key(abi.FRAGMENT_KEY, abi.FRAGMENT, FRAGMENTS, libbpf.MAP_TYPE_LRU_HASH),
        "flows": array(abi.FLOW_BUCKET, size.flow_buckets),
        "flows_cold": array(abi.FLOW_COLD, slots),
        "flows_warm": array(abi.FLOW_WARM, slots),
        "rings": array(abi.RING_LINE, size.ring_lines),
        "backends": array(abi.BACKEND, size.backends + abi.PEER_ROWS),
        "peers": by_key(abi.PEER_KEY, abi.PEER, PEERS),
        "backend_load": array(abi.BACKEND_LOAD, size.backends),
        "backend_samples": array(abi.BACKEND_SAMPLE, size.backends * abi.SAMPLES),
        "sample_sources": array(abi.SAMPLE_SOURCE, size.backends * abi.SAMPLES),
        "service_load": array(abi.SERVICE_LOAD, size.services),
        "service_heads": array(abi.SERVICE_HEADS, size.services),
        "backend_latency": array(abi.BACKEND_LATENCY, size.backends),
        "nat_slots": array(abi.NAT_SLOT, size.nat_slots),
        "nat_sources": array(abi.NAT_SOURCE, 2 * abi.NAT_SOURCES),
        "guard_roots": array(abi.GUARD_ROOTS, 1),
        "guard_nodes": array(abi.GUARD_NODE, size.guard_nodes),
        "guard_policies": array(abi.GUARD_POLICY, size.services),
        "guard_count": array(abi.GUARD_COUNTERS, size.rows),
        "service_limits": array(abi.SERVICE_LIMITS, size.services),
        "limited": by_key(abi.LIMITED_KEY, abi.LIMITED, LIMITED),
        "limit_count": array(abi.LIMIT_COUNTERS, size.services * size.rows),
        "backend_count": array(abi.BACKEND_COUNTERS, size.backends * size.rows),
        "service_count": array(abi.SERVICE_COUNTERS, size.services * size.rows),
        "trace": array(abi.TRACE_CONTROL, 1),
        "sync_count": array(abi.SYNC_COUNTERS, size.rows),
        "cookie_secret": array(abi.COOKIE_SECRET, 1),
        "settings": array(abi.SETTINGS, 1),
    }


def fits_pinned(pins: Pins, size: Sizes) -> bool:
    """Return whether the tables that are pinned, if any, are of these sizes.

    BCC would open tables of other sizes silently.
    """
    for name, shape in shapes(size).items():
        path = pins.table(name)
        if path.exists() and shape_of(path) != shape:
            return False
    return not pins.table("settings").exists() or _has_ports(pins.table("settings"), size)


def _has_ports(path: Path, size: Sizes) -> bool:
    """Return whether the NAT slots are those of the same ports."""
    fd = libbpf.object_get(path)
    try:
        row = mapped(fd, abi.SETTINGS, 1)[1][0]
    finally:
        os.close(fd)
    if not row["abi"]:
        return True  # the tables are still being created
    return (row["nat_first_port"], row["nat_ports"]) == (size.nat_first_port, size.nat_ports)


def room_for(size: Sizes) -> bool:
    """Return whether the kernel has the memory for all arrays at once; they are freed again."""
    made: list[int] = []
    try:
        for name, shape in shapes(size).items():
            if shape.kind == libbpf.MAP_TYPE_ARRAY:
                flags = libbpf.BPF_F_MMAPABLE
                made.append(libbpf.array_create(name, shape.value, shape.entries, flags))
    except OSError as error:
        return error.errno != errno.ENOMEM
    finally:
        for fd in made:
            os.close(fd)
    return True


def shape_of(path: Path) -> TableShape:
    """Return the shape of a pinned map."""
    fd = libbpf.object_get(path)
    try:
        info = libbpf.map_info(fd)
    finally:
        os.close(fd)
    return TableShape(info.type, info.key_size, info.value_size, info.max_entries)


def mapped(fd: int, dtype: np.dtype[np.void], entries: int) -> tuple[mmap.mmap, Table]:
    """Map an array of the kernel; return the memory, and the elements in it."""
    length = -(-entries * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return memory, np.frombuffer(memory, dtype=dtype, count=entries)


class SharedTables:
    """The open tables of one instance.

    Arrays are views of the kernel's memory: reading one is reading the data plane's state, and a
    store to an aligned element of 8 bytes or fewer is atomic.
    """

    def __init__(self, pins: Pins, size: Sizes) -> None:
        self.size = size
        self._shapes = shapes(size)
        self._fds = {name: libbpf.object_get(pins.table(name)) for name in self._shapes}
        self._memory: list[mmap.mmap] = []
        self.flows = self._array("flows", abi.FLOW_BUCKET)["slot"].reshape(-1)
        self.flows_cold = self._array("flows_cold", abi.FLOW_COLD)
        self.flows_warm = self._array("flows_warm", abi.FLOW_WARM)
        self.addresses = self._array("addresses", abi.ADDRESS_FILTER)[0]
        self.rings = self._array("rings", abi.RING_LINE)["backend"].reshape(-1)
        rows = self._array("backends", abi.BACKEND)
        self.backends, self.peers = rows[: size.backends], rows[size.backends :]
        self.backend_load = self._array("backend_load", abi.BACKEND_LOAD)
        self.backend_samples = self._array("backend_samples", abi.BACKEND_SAMPLE).reshape(
            size.backends, abi.SAMPLES
        )
        self.sample_sources = self._array("sample_sources", abi.SAMPLE_SOURCE).reshape(
            size.backends, abi.SAMPLES
        )
        self.service_load = self._array("service_load", abi.SERVICE_LOAD)
        self.service_heads = self._array("service_heads", abi.SERVICE_HEADS)
        self.backend_latency = self._array("backend_latency", abi.BACKEND_LATENCY)
        self.nat_slots = self._array("nat_slots", abi.NAT_SLOT)
        self.nat_sources = self._array("nat_sources", abi.NAT_SOURCE)
        self.guard_roots = self._array("guard_roots", abi.GUARD_ROOTS)[0]
        self.guard_nodes = self._array("guard_nodes", abi.GUARD_NODE)["entry"]
        self.guard_policies = self._array("guard_policies", abi.GUARD_POLICY)
        self.guard_count = self._array("guard_count", abi.GUARD_COUNTERS)
        self.service_limits = self._array("service_limits", abi.SERVICE_LIMITS)
        self.limit_count = self._array("limit_count", abi.LIMIT_COUNTERS).reshape(
            size.rows, size.services
        )
        self.backend_count = self._array("backend_count", abi.BACKEND_COUNTERS).reshape(
            size.rows, size.backends
        )
        self.service_count = self._array("service_count", abi.SERVICE_COUNTERS).reshape(
            size.rows, size.services
        )
        self.trace = self._array("trace", abi.TRACE_CONTROL)
        self.cookie_secret = self._array("cookie_secret", abi.COOKIE_SECRET)
        self.settings = self._array("settings", abi.SETTINGS)
        self.sync_count = self._array("sync_count", abi.SYNC_COUNTERS)

    def _array(self, name: str, dtype: np.dtype[np.void]) -> Table:
        memory, array = mapped(self._fds[name], dtype, self._shapes[name].entries)
        self._memory.append(memory)
        return array

    @property
    def ident(self) -> str:
        """A name that distinguishes these tables from all others, on any host."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{libbpf.map_info(self._fds['flows']).id}"

    def nat_sources_of(self, nat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers of the source addresses whose ports these NAT slots are."""
        return self.nat_slots["source"][nat].astype(np.int64)

    def pin_again(self, pins: Pins) -> list[str]:
        """Pin again the tables that somebody has unpinned; return their names."""
        gone = [name for name in self._fds if not pins.table(name).exists()]
        for name in gone:
            libbpf.object_pin(self._fds[name], pins.table(name))
        return gone

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Insert or replace in a table by key; a packet sees the old value or the new one."""
        libbpf.map_update(self._fds[table], key, value)
        if table in _SERVICES:
            self.services_changed()

    def delete(self, table: str, key: bytes) -> None:
        """Remove a key; a key that does not exist is no error."""
        libbpf.map_delete(self._fds[table], key)
        if table in _SERVICES:
            self.services_changed()

    def services_changed(self) -> None:
        """Have the packet path look services up again: it remembers which ones it has found
        (``bpf/service.h``).
        """
        self.settings["services_version"] += np.uint64(1)

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of a key in a table by key; None: there is none."""
        return libbpf.map_lookup(self._fds[table], key, self._shapes[table].value)

    def items(self, table: str) -> list[tuple[bytes, bytes]]:
        """Return every key and value of a table by key, in any order.

        OSError: it cannot be read completely.
        """
        shape = self._shapes[table]
        return libbpf.map_items(self._fds[table], shape.key, shape.value)

    def close(self) -> None:
        """Close the descriptors; the arrays stay valid as long as something references them."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


@dataclass(frozen=True, slots=True)
class BootSettings:
    """What is drawn at random or measured once for a set of tables."""

    keys: HashKeys
    clock: Clock


def boot_settings(pins: Pins, size: Sizes, make: Callable[[], BootSettings]) -> BootSettings:
    """Return the settings of the pinned tables; ``make`` draws them for new ones.

    The program has them compiled in, so this table exists before BCC creates the others.
    """
    path = pins.table("settings")
    if path.exists():
        fd = libbpf.object_get(path)
    else:
        fd = libbpf.array_create("settings", abi.SETTINGS.itemsize, 1, libbpf.BPF_F_MMAPABLE)
        libbpf.object_pin(fd, path)
    try:
        _, table = mapped(fd, abi.SETTINGS, 1)
    finally:
        os.close(fd)
    row = table[0:1]
    if not row["abi"][0]:
        boot = make()
        row["flow_key"] = boot.keys.key
        row["flow_mul0"], row["flow_mul1"] = boot.keys.mul0, boot.keys.mul1
        row["hz"], row["tick_shift"] = boot.clock.hz, boot.clock.shift
        row["nat_first_port"], row["nat_ports"] = size.nat_first_port, size.nat_ports
        row["abi"] = abi.ABI_VERSION  # last: it says that the rest is complete
    keys = HashKeys(int(row["flow_key"][0]), int(row["flow_mul0"][0]), int(row["flow_mul1"][0]))
    return BootSettings(keys, Clock(int(row["hz"][0]), int(row["tick_shift"][0])))


def fresh_keys() -> HashKeys:
    """Return new secret keys for the flow table's hash."""
    return HashKeys(secrets.randbits(64), secrets.randbits(64) | 1, secrets.randbits(64) | 1)
