"""Loads Katran's program beside ours, from a prebuilt object, with the services and servers of
``setting``; Katran forwards by IP-in-IP.

The maps and their layouts are those of balancer_maps.h and balancer_structs.h at commit 19f08fec of
facebookincubator/katran. The object is loaded through libbpf, as Katran itself does.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import numpy as np

from agent.dataplane import libbpf
from agent.dataplane.program import possible_cpus
from agent.dataplane.tables import mapped
from agent.errors import DataplaneError
from agent.model import Address
from bench import setting

_RING = 65_537  # RING_SIZE
_VIPS = 512  # MAX_VIPS
_IS_IPV6 = 1  # F_IPV6
_FLOW_KEY_BYTES, _FLOW_BYTES = 40, 16  # struct flow_key, struct real_pos_lru
_MAC = bytes.fromhex("020000000101")  # of the next hop; the map's value has 8 bytes
# Elements of a BPF array are at multiples of 8 bytes.
_RING_SLOT = np.dtype([("real", "u4"), ("pad", "u4")])


class Katran:
    """The loaded program. ``fd``: its descriptor."""

    def __init__(self, path: Path, slots: int) -> None:
        self._lib = _library()
        self._object = self._lib.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise _unusable(path, "libbpf cannot open it")
        self._resize("ch_rings", flags=libbpf.BPF_F_MMAPABLE)
        program = self._lib.bpf_object__next_program(self._object, None)
        if not program:
            raise _unusable(path, "there is no program in it")
        # The same as that of the wrapper, which calls it; 0 means none in particular.
        self._lib.bpf_program__set_expected_attach_type(program, 0)
        if self._lib.bpf_object__load(self._object):
            raise _unusable(path, "the kernel does not accept it")
        self.fd: int = self._lib.bpf_program__fd(program)
        self._fill(slots)

    def close(self) -> None:
        """Free the program and its tables."""
        self._lib.bpf_object__close(self._object)

    def _resize(self, name: str, flags: int) -> None:
        found = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found or self._lib.bpf_map__set_map_flags(found, flags):
            raise _unusable(Path(name), "there is no such map in the object")

    def _map(self, name: str) -> int:
        found = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        fd: int = self._lib.bpf_map__fd(found) if found else -1
        if fd < 0:
            raise _unusable(Path(name), "there is no such map in the object")
        return fd

    def _fill(self, slots: int) -> None:
        libbpf.map_update(self._map("ctl_array"), _index(0), _MAC.ljust(8, b"\0"))
        reals = {4: list[int](), 6: list[int]()}
        for number, address in enumerate(_servers(), start=1):
            is_six = address.version == 6
            value = address.packed.ljust(16, b"\0") + bytes((is_six * _IS_IPV6, 0, 0, 0))
            libbpf.map_update(self._map("reals"), _index(number), value)
            reals[address.version].append(number)
        self._memory, rings = mapped(self._map("ch_rings"), _RING_SLOT, _VIPS * _RING)
        draw = np.random.default_rng(1)
        keys = [s.key for s in setting.services().values() if s.key.port]
        for number, key in enumerate(keys):
            vip = struct.pack("=16sHBx", key.vip.packed.ljust(16, b"\0"),
                              int.from_bytes(key.port.to_bytes(2), "little"),
                              key.protocol.number)  # fmt: skip
            libbpf.map_update(self._map("vip_map"), vip, struct.pack("=II", 0, number))
            ring = slice(number * _RING, (number + 1) * _RING)
            rings["real"][ring] = draw.choice(reals[key.vip.version], _RING)
        for cpu in range(possible_cpus()):
            wanted = libbpf.MapInfo(
                libbpf.MAP_TYPE_LRU_HASH, 0, _FLOW_KEY_BYTES, _FLOW_BYTES, slots, 0, "katran_lru"
            )
            fd = libbpf.map_create(wanted)
            libbpf.map_update(self._map("lru_mapping"), _index(cpu), struct.pack("=i", fd))
            os.close(fd)


def _servers() -> list[Address]:
    found = {b.address: None for s in setting.services().values() for b in s.backends}
    wanted: list[Address] = []
    for version in (4, 6):
        wanted += [a for a in found if a.version == version][: setting.BACKENDS]
    return wanted


def _index(number: int) -> bytes:
    return struct.pack("=I", number)


def _unusable(what: Path, why: str) -> DataplaneError:
    return DataplaneError(
        f"this object of Katran's cannot be measured: {why}",
        where=str(what),
        remedy="build the object that KATRAN_OBJECT names from katran/lib/bpf/balancer.bpf.c; see "
        "docs/benchmarks.md",
    )


def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("bpf_object__open_file", pointer, (ctypes.c_char_p, pointer)),
        ("bpf_object__next_program", pointer, (pointer, pointer)),
        ("bpf_program__set_expected_attach_type", ctypes.c_int, (pointer, ctypes.c_int)),
        ("bpf_object__load", ctypes.c_int, (pointer,)),
        ("bpf_program__fd", ctypes.c_int, (pointer,)),
        ("bpf_object__find_map_by_name", pointer, (pointer, ctypes.c_char_p)),
        ("bpf_map__set_map_flags", ctypes.c_int, (pointer, ctypes.c_uint32)),
        ("bpf_map__fd", ctypes.c_int, (pointer,)),
        ("bpf_object__close", None, (pointer,)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
