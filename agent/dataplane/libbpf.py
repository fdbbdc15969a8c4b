"""Owns the bpf() system calls, through libbpf: objects, maps, programs, test runs.

libbpf comes with BCC (libbpfcc depends on it). Every failure is an OSError.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import functools
import os
import struct
from dataclasses import dataclass
from pathlib import Path

BPF_ANY = 0
BPF_F_MMAPABLE = 0x400
MAP_TYPE_HASH = 1
MAP_TYPE_ARRAY = 2
MAP_TYPE_PROG_ARRAY = 3
MAP_TYPE_LRU_HASH = 9
MAP_TYPE_LPM_TRIE = 11
XDP_UPDATE_IF_NOEXIST = 0x1
XDP_SKB_MODE = 0x2
XDP_DRV_MODE = 0x4
XDP_REPLACE = 0x10
PASSING = "steelyard_pass"  # the name of the program that load_pass_program loads
_HELPER_JIFFIES64 = 118
_TC_INGRESS = 1
_BTF_KIND_FUNC = 12
_PROG_INFO_BYTES = 232
_READS = 5  # attempts at a table that changes while it is read


class ProgramType(enum.IntEnum):
    """``enum bpf_prog_type``: the types that we load."""

    SCHED_CLS = 3
    XDP = 6


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel reports of a map."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel reports of a program.

    ``instructions``: their number after verification; ``verified_insns``: how many the verifier
    went through.
    """

    type: int
    id: int
    tag: str
    instructions: int
    jited_bytes: int
    btf_id: int
    name: str
    verified_insns: int


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
    """The outcome of BPF_PROG_TEST_RUN; ``duration_ns`` is the mean per repeat.

    ``verdict`` has 32 bits, unsigned; ``context`` is the context as the program left it.
    """

    __test__ = False  # not a test class

    verdict: int
    data: bytes
    duration_ns: int
    context: bytes = b""


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


class _ProgramLoadOpts(ctypes.Structure):
    """The first fields of the struct; ``sz`` tells libbpf that the rest is missing."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Types:
    """The raw BTF of a program that is one function, and the type id of that function."""

    btf: bytes
    function: int


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


class _TcHook(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    )


class _TcOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
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
    lib.libbpf_set_print(None)  # otherwise it prints to stderr what we raise
    return lib


def _checked(result: int, what: str) -> int:
    """Return a result of libbpf 1.x, or raise OSError if it is -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def object_get(path: Path) -> int:
    """Return a new file descriptor of a pinned map or program."""
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
    raw = _info(fd, _PROG_INFO_BYTES)
    kind, ident, tag, jited, xlated = struct.unpack_from("=II8sII", raw)
    (btf_id,) = struct.unpack_from("=I", raw, 128)
    (verified,) = struct.unpack_from("=I", raw, 216)
    name = _name(raw[64:80])
    return ProgramInfo(kind, ident, tag.hex(), xlated // 8, jited, btf_id, name, verified)


def program_maps(fd: int) -> tuple[int, ...]:
    """Return the ids of the maps that a program uses."""
    (count,) = struct.unpack_from("=I", _info(fd, _PROG_INFO_BYTES), 52)
    idents = (ctypes.c_uint32 * count)()
    asked = bytearray(_PROG_INFO_BYTES)
    struct.pack_into("=IQ", asked, 52, count, ctypes.addressof(idents))
    buffer = ctypes.create_string_buffer(bytes(asked), len(asked))
    length = ctypes.c_uint32(len(asked))
    _checked(_lib().bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(length)), f"fd {fd}")
    return tuple(idents)


def _name(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode()


def btf_data(btf_id: int) -> bytes:
    """Return the raw BTF with this id."""
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


def kernel_function(name: str) -> int:
    """Return the BTF id of a function of the running kernel; OSError: none has that name."""
    lib = _lib()
    lib.btf__load_vmlinux_btf.restype = ctypes.c_void_p
    kernel = lib.btf__load_vmlinux_btf()
    if not kernel:
        raise OSError(errno.ENOENT, "the kernel has no BTF", name)
    try:
        found: int = lib.btf__find_by_name_kind(
            ctypes.c_void_p(kernel), name.encode(), _BTF_KIND_FUNC
        )
        return _checked(found, name)
    finally:
        lib.btf__free(ctypes.c_void_p(kernel))


def program_load(
    name: str, instructions: bytes, kind: ProgramType = ProgramType.XDP, types: Types | None = None
) -> int:
    """Load a program given as machine code; the kernel keeps its ``types``."""
    opts = _ProgramLoadOpts(sz=ctypes.sizeof(_ProgramLoadOpts))
    if types is not None:
        # struct bpf_func_info: the first instruction, the type
        where = ctypes.create_string_buffer(struct.pack("=II", 0, types.function), 8)
        opts.func_info, opts.func_info_cnt = ctypes.addressof(where), 1
        opts.func_info_rec_size = len(where)
        loaded: int = _lib().bpf_btf_load(types.btf, len(types.btf), None)
        opts.prog_btf_fd = _checked(loaded, "BTF")
    try:
        fd: int = _lib().bpf_prog_load(
            kind, name.encode(), b"GPL", instructions, len(instructions) // 8, ctypes.byref(opts)
        )
        return _checked(fd, name)
    finally:
        if types is not None:
            os.close(opts.prog_btf_fd)


def _instruction(code: int, immediate: int) -> bytes:
    return struct.pack("=BBhi", code, 0, 0, immediate)


def load_pass_program() -> int:
    """Load ``return XDP_PASS``: the far end of a veth needs it to receive what XDP sends."""
    return program_load(PASSING, _instruction(0xB7, 2) + _instruction(0x95, 0))


def load_clock_program() -> int:
    """Load a program that returns the low 32 bits of jiffies, which user space cannot read
    otherwise.
    """
    return program_load(
        "steelyard_clock", _instruction(0x85, _HELPER_JIFFIES64) + _instruction(0x95, 0)
    )


def test_run(fd: int, data: bytes, *, repeat: int = 1, context: bytes = b"") -> TestRun:  # noqa: PT028 (no test)
    """Run a program on one frame (at least 14 bytes) in the kernel.

    ``context``: a ``struct __sk_buff`` for a tc program, a ``struct xdp_md`` for an XDP program.
    """
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
    around = ctypes.create_string_buffer(context, len(context)) if context else None
    if around is not None:
        opts.ctx_in = opts.ctx_out = ctypes.addressof(around)
        opts.ctx_size_in = opts.ctx_size_out = len(context)
    _checked(_lib().bpf_prog_test_run_opts(fd, ctypes.byref(opts)), "BPF_PROG_TEST_RUN")
    left = around.raw if around is not None else b""
    return TestRun(opts.retval, out.raw[: opts.data_size_out], opts.duration, left)


test_run.__test__ = False  # type: ignore[attr-defined]


def array_create(name: str, value_size: int, entries: int, flags: int) -> int:
    """Create an array map with 4-byte keys."""
    return map_create(MapInfo(MAP_TYPE_ARRAY, 0, 4, value_size, entries, flags, name))


def program_array_create(name: str, entries: int) -> int:
    """Create a program array, for tail calls."""
    return map_create(MapInfo(MAP_TYPE_PROG_ARRAY, 0, 4, 4, entries, 0, name))


def map_create(wanted: MapInfo) -> int:
    """Create a map; the kernel chooses its id."""
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=wanted.flags)
    fd: int = _lib().bpf_map_create(
        wanted.type,
        wanted.name.encode(),
        wanted.key_size,
        wanted.value_size,
        wanted.max_entries,
        ctypes.byref(opts),
    )
    return _checked(fd, wanted.name)


def map_update(fd: int, key: bytes, value: bytes) -> None:
    _checked(_lib().bpf_map_update_elem(fd, key, value, ctypes.c_uint64(BPF_ANY)), "map update")


def map_delete(fd: int, key: bytes) -> None:
    """Remove a key; a key that does not exist is no error."""
    result: int = _lib().bpf_map_delete_elem(fd, key)
    if result != -errno.ENOENT:
        _checked(result, "map delete")


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Return the value of a key; in a program array, that is the program's id."""
    value = ctypes.create_string_buffer(value_size)
    result: int = _lib().bpf_map_lookup_elem(fd, key, value)
    if result == -errno.ENOENT:
        return None
    _checked(result, "map lookup")
    return value.raw


def map_items(fd: int, key_size: int, value_size: int) -> list[tuple[bytes, bytes]]:
    """Return all keys and values of a hash map, or raise OSError: never only some of them.

    The kernel begins anew at a key that is gone, so a change meanwhile shows as a key that comes
    twice or has no value. The map is then read again.
    """
    for _ in range(_READS):
        found = _read_items(fd, key_size, value_size)
        if found is not None:
            return found
    raise OSError(errno.EAGAIN, "the table changes faster than it can be read", f"fd {fd}")


def _read_items(fd: int, key_size: int, value_size: int) -> list[tuple[bytes, bytes]] | None:
    """Read the map once; None: it changed meanwhile."""
    found: dict[bytes, bytes] = {}
    key: bytes | None = None
    following = ctypes.create_string_buffer(key_size)
    while (result := _lib().bpf_map_get_next_key(fd, key, following)) == 0:
        key = following.raw
        value = map_lookup(fd, key, value_size)
        if value is None or key in found:
            return None
        found[key] = value
    if result != -errno.ENOENT:
        _checked(result, "map keys")
    return list(found.items())


def map_batch(fd: int, key_size: int, value_size: int, room: int) -> tuple[bytes, bytes]:
    """Return the keys and the values, in the same order, of a hash map that changes all the time.

    Keys that come or go meanwhile may be among them or not, and one may come twice. ``room``: how
    many to read at a time, best all that the map can hold. OSError if it cannot be read.
    """
    keys = ctypes.create_string_buffer(key_size * room)
    values = ctypes.create_string_buffer(value_size * room)
    place = ctypes.create_string_buffer(8)  # where the kernel goes on, in its own terms
    found: list[tuple[bytes, bytes]] = []
    after = None
    while True:
        count = ctypes.c_uint32(room)
        result = _lib().bpf_map_lookup_batch(
            fd, after, place, keys, values, ctypes.byref(count), None
        )
        if result != -errno.ENOENT:
            _checked(result, "map batch")
        read = count.value
        found.append(
            (ctypes.string_at(keys, key_size * read), ctypes.string_at(values, value_size * read))
        )
        if result == -errno.ENOENT:
            return b"".join(key for key, _ in found), b"".join(value for _, value in found)
        after = place


def program_fd(ident: int) -> int:
    """Return a new file descriptor of a loaded program."""
    return _checked(_lib().bpf_prog_get_fd_by_id(ident), f"program {ident}")


def map_fd(ident: int) -> int:
    """Return a new file descriptor of a map."""
    return _checked(_lib().bpf_map_get_fd_by_id(ident), f"map {ident}")


def program_bind_map(program: int, table: int) -> None:
    """Have a map live as long as a program that does not use it; both are descriptors."""
    _checked(_lib().bpf_prog_bind_map(program, table, None), "bind map")


def xdp_attach(ifindex: int, fd: int, flags: int, old_fd: int | None = None) -> None:
    """Attach a program (fd -1: detach); with ``old_fd``, only in the place of that program."""
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


def tc_query(ifindex: int, handle: int, priority: int) -> int:
    """Return the id of the program in that filter at clsact ingress; 0: no such filter."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=_TC_INGRESS)
    opts = _TcOpts(sz=ctypes.sizeof(_TcOpts), handle=handle, priority=priority)
    result: int = _lib().bpf_tc_query(ctypes.byref(hook), ctypes.byref(opts))
    if result in (-errno.ENOENT, -errno.EINVAL):  # no filter; no qdisc
        return 0
    _checked(result, f"interface {ifindex}")
    return int(opts.prog_id)
