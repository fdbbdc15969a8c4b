"""Owns the bpf() system calls, through libbpf: objects, maps, programs, test runs.

libbpf comes with BCC (libbpfcc depends on it). Every failure is an OSError.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BPF_ANY = 0
BPF_F_MMAPABLE = 0x400
MAP_TYPE_HASH = 1
MAP_TYPE_ARRAY = 2
PROG_TYPE_XDP = 6
XDP_UPDATE_IF_NOEXIST = 0x1
XDP_SKB_MODE = 0x2
XDP_DRV_MODE = 0x4
XDP_REPLACE = 0x10
_HELPER_JIFFIES64 = 118


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program; ``instructions`` after verification."""

    type: int
    id: int
    tag: str
    instructions: int
    jited_bytes: int
    btf_id: int
    name: str


@dataclass(frozen=True, slots=True)
class XdpAttachment:
    """The XDP programs of an interface, by mode; id 0 is none."""

    native: int
    generic: int
    offloaded: int

    @property
    def id(self) -> int:
        return self.native or self.generic or self.offloaded


@dataclass(frozen=True, slots=True)
class TestRun:
    """Outcome of BPF_PROG_TEST_RUN; ``duration_ns`` is the mean per repeat."""

    __test__ = False  # not a test class

    verdict: int
    data: bytes
    duration_ns: int


class _MapCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _XdpAttachOpts(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("old_prog_fd", ctypes.c_int))


class _XdpQueryOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_id", ctypes.c_uint32),
        ("drv_prog_id", ctypes.c_uint32),
        ("hw_prog_id", ctypes.c_uint32),
        ("skb_prog_id", ctypes.c_uint32),
        ("attach_mode", ctypes.c_uint8),
    )


class _TestRunOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


@functools.cache
def _lib() -> ctypes.CDLL:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    lib.libbpf_set_print(None)  # it would write to stderr what we raise
    return lib


def _checked(result: int, what: str) -> int:
    """libbpf 1.x returns -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def object_get(path: Path) -> int:
    """A new file descriptor of a pinned map or program."""
    return _checked(_lib().bpf_obj_get(os.fsencode(path)), str(path))


def object_pin(fd: int, path: Path) -> None:
    _checked(_lib().bpf_obj_pin(fd, os.fsencode(path)), str(path))


def _info(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    length = ctypes.c_uint32(size)
    _checked(_lib().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(length)), f"fd {fd}")
    return buffer.raw


def map_info(fd: int) -> MapInfo:
    raw = _info(fd, 88)
    kind, ident, key, value, entries, flags = struct.unpack_from("=6I", raw)
    return MapInfo(kind, ident, key, value, entries, flags, _name(raw[24:40]))


def program_info(fd: int) -> ProgramInfo:
    # struct bpf_prog_info: type, id, tag[8], jited_len, xlated_len, ...
    raw = _info(fd, 232)
    kind, ident, tag, jited, xlated = struct.unpack_from("=II8sII", raw)
    (btf_id,) = struct.unpack_from("=I", raw, 128)
    return ProgramInfo(kind, ident, tag.hex(), xlated // 8, jited, btf_id, _name(raw[64:80]))


def _name(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode()


def btf_data(btf_id: int) -> bytes:
    """The raw BTF with that id."""
    fd = _checked(_lib().bpf_btf_get_fd_by_id(btf_id), f"BTF {btf_id}")
    try:
        size = struct.unpack_from("=QI", _info(fd, 32))[1]
        data = ctypes.create_string_buffer(size)
        info = ctypes.create_string_buffer(struct.pack("=QI", ctypes.addressof(data), size), 32)
        length = ctypes.c_uint32(32)
        _checked(_lib().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(length)), f"BTF {btf_id}")
        return data.raw
    finally:
        os.close(fd)


def program_load(name: str, instructions: bytes) -> int:
    """Load an XDP program given as machine code."""
    fd: int = _lib().bpf_prog_load(
        PROG_TYPE_XDP, name.encode(), b"GPL", instructions, len(instructions) // 8, None
    )
    return _checked(fd, name)


def _instruction(code: int, immediate: int) -> bytes:
    return struct.pack("=BBhi", code, 0, 0, immediate)


def load_pass_program() -> int:
    """``return XDP_PASS``: what the far end of a veth needs to receive what XDP sends."""
    return program_load("steelyard_pass", _instruction(0xB7, 2) + _instruction(0x95, 0))


def load_clock_program() -> int:
    """Returns the low 32 bits of jiffies, which nothing else tells user space."""
    return program_load(
        "steelyard_clock", _instruction(0x85, _HELPER_JIFFIES64) + _instruction(0x95, 0)
    )


def test_run(fd: int, data: bytes, *, repeat: int = 1) -> TestRun:  # noqa: PT028 (no test)
    """Run an XDP program on one frame (at least 14 bytes) in the kernel."""
    source = ctypes.create_string_buffer(data, len(data))
    out = ctypes.create_string_buffer(len(data) + 512)
    opts = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.addressof(source),
        data_out=ctypes.addressof(out),
        data_size_in=len(data),
        data_size_out=len(out),
        repeat=repeat,
    )
    _checked(_lib().bpf_prog_test_run_opts(fd, ctypes.byref(opts)), "BPF_PROG_TEST_RUN")
    return TestRun(opts.retval, out.raw[: opts.data_size_out], opts.duration)


test_run.__test__ = False  # type: ignore[attr-defined]


def array_create(name: str, value_size: int, entries: int, flags: int) -> int:
    """A new array map with 4-byte keys."""
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=flags)
    fd: int = _lib().bpf_map_create(
        MAP_TYPE_ARRAY, name.encode(), 4, value_size, entries, ctypes.byref(opts)
    )
    return _checked(fd, name)


def map_update(fd: int, key: bytes, value: bytes) -> None:
    _checked(_lib().bpf_map_update_elem(fd, key, value, ctypes.c_uint64(BPF_ANY)), "map update")


def map_delete(fd: int, key: bytes) -> None:
    """Remove a key; one that is not there is no error."""
    result: int = _lib().bpf_map_delete_elem(fd, key)
    if result != -2:  # ENOENT
        _checked(result, "map delete")


def map_items(fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a hash map."""
    key: bytes | None = None
    following = ctypes.create_string_buffer(key_size)
    value = ctypes.create_string_buffer(value_size)
    while _lib().bpf_map_get_next_key(fd, key, following) == 0:
        key = following.raw
        if _lib().bpf_map_lookup_elem(fd, key, value) == 0:
            yield key, value.raw


def program_fd(ident: int) -> int:
    """A new file descriptor of a loaded program."""
    return _checked(_lib().bpf_prog_get_fd_by_id(ident), f"program {ident}")


def xdp_attach(ifindex: int, fd: int, flags: int, old_fd: int | None = None) -> None:
    """Attach (fd -1: detach); with ``old_fd`` only in the place of that program."""
    if old_fd is None:
        _checked(_lib().bpf_xdp_attach(ifindex, fd, flags, None), f"interface {ifindex}")
        return
    opts = _XdpAttachOpts(sz=ctypes.sizeof(_XdpAttachOpts), old_prog_fd=old_fd)
    result = _lib().bpf_xdp_attach(ifindex, fd, flags | XDP_REPLACE, ctypes.byref(opts))
    _checked(result, f"interface {ifindex}")


def xdp_query(ifindex: int) -> XdpAttachment:
    opts = _XdpQueryOpts(sz=ctypes.sizeof(_XdpQueryOpts))
    _checked(_lib().bpf_xdp_query(ifindex, 0, ctypes.byref(opts)), f"interface {ifindex}")
    return XdpAttachment(opts.drv_prog_id, opts.skb_prog_id, opts.hw_prog_id)
