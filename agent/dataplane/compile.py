"""Owns BCC: compiles C text and loads the program. No other module imports bcc."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import platform
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.dataplane import btf, libbpf, sources
from agent.dataplane.libbpf import ProgramType
from agent.errors import DataplaneError
from agent.model import KernelHeaders

_BCC_REMEDY = (
    "apt-get install python3-bpfcc, and make the virtual environment from /usr/bin/python3 with "
    "--system-site-packages (the package that indexes list as bcc is another project)"
)


class Origin(StrEnum):
    """Where a loaded program comes from."""

    COMPILED = "compiled"
    KEPT = "kept"  # compiled at an earlier start, and loaded from what was kept
    RUNNING = "running"  # loaded by an earlier agent, and taken over


@dataclass(frozen=True, slots=True)
class Compiled:
    """A loaded program. It lives until it is closed and no attachment or pin holds it.

    ``tables``: the descriptors of the maps that it uses, by name. ``code``: the instructions as the
    compiler made them; empty if the program was not compiled just now. ``key``: names everything
    that it is made of (``objects.key_of``); empty if it is not kept.
    """

    fd: int
    tables: Mapping[str, int]
    info: libbpf.ProgramInfo
    layout: btf.Btf
    compile_s: float
    kind: ProgramType
    release: Callable[[], None]
    origin: Origin = Origin.COMPILED
    code: bytes = b""
    key: str = ""

    def close(self) -> None:
        """Close its descriptors, and free what the compiler needed for it.

        A program that is attached or pinned keeps running in the kernel.
        """
        self.release()


def _give_back_memory() -> None:
    """Give memory that LLVM has freed back to the kernel.

    The allocator would keep it, which is tens of megabytes for each program.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _bcc() -> Any:
    try:
        from bcc import BPF  # not at the top: it takes 60 ms and is rarely needed
    except ImportError as error:
        raise DataplaneError("BCC is not installed", where="bcc", remedy=_BCC_REMEDY) from error
    return BPF


def check_host_headers(modules: Path) -> None:
    """Raise DataplaneError if the running kernel's module folder leads to no headers."""
    if not (modules / "build").exists():
        raise DataplaneError(
            "this host has no headers of the running kernel",
            where=str(modules / "build"),
            remedy=f"apt-get install linux-headers-{modules.name}, or leave out "
            "`--kernel-headers` and `kernel_headers: host`: the shipped headers serve every kernel",
        )


def compile_program(
    text: str,
    function: str,
    definitions: Mapping[str, str],
    headers: KernelHeaders = KernelHeaders.SHIPPED,
    kind: ProgramType = ProgramType.XDP,
) -> Compiled:
    """Compile ``text`` and load its function ``function`` as a program of type ``kind``.

    Raises DataplaneError if the compiler or the verifier refuses it; their messages go to stderr.
    """
    started = time.monotonic()
    handle = _compiled(text, function, definitions, headers)
    try:
        fd = handle.load_func(function.encode(), int(kind)).fd
        code = handle.dump_func(function.encode())
    except Exception as error:
        raise _refused(function, error) from error
    info = libbpf.program_info(fd)
    if not info.btf_id:
        raise DataplaneError(
            "the kernel has no BTF of the program, so its layout cannot be checked",
            where=function,
            remedy="use a kernel with CONFIG_DEBUG_INFO_BTF (Debian 13, Ubuntu 24.04 have it)",
        )
    layout = btf.parse(libbpf.btf_data(info.btf_id))
    tables = {libbpf.map_info(table).name: table for table in _tables(handle)}
    seconds = time.monotonic() - started
    return Compiled(fd, tables, info, layout, seconds, kind, _release(handle), code=code)


def compile_calling(
    text: str,
    function: str,
    definitions: Mapping[str, str],
    kind: ProgramType,
    calls: Mapping[int, str],
) -> Compiled:
    """Compile and load a program that calls functions of the kernel (kfuncs).

    BCC cannot compile such calls. The text therefore calls helpers by numbers that no helper has;
    ``calls`` maps these to the names of functions, which are then put into the machine code. Apart
    from that it works as ``compile_program`` does, but the result has no layout.
    """
    started = time.monotonic()
    handle = _compiled(text, function, definitions, KernelHeaders.SHIPPED)
    try:
        code = with_kfuncs(
            handle.dump_func(function.encode()),
            {number: libbpf.kernel_function(name) for number, name in calls.items()},
        )
        fd = libbpf.program_load(function, code, kind)
    except OSError as error:
        raise _refused(function, error) from error
    tables = {libbpf.map_info(table).name: table for table in _tables(handle)}
    release = _release(handle)

    def close() -> None:
        os.close(fd)
        release()

    nothing = btf.Btf({}, {}, {})
    seconds = time.monotonic() - started
    return Compiled(fd, tables, libbpf.program_info(fd), nothing, seconds, kind, close, code=code)


_CALL = 0x85  # BPF_JMP | BPF_CALL
_KFUNC = 2  # BPF_PSEUDO_KFUNC_CALL
_INSTRUCTION_BYTES = 8


def with_kfuncs(code: bytes, functions: Mapping[int, int]) -> bytes:
    """Return machine code in which calls of helpers with these numbers are kfunc calls.

    ``functions``: the BTF ids of the kernel's functions, by number of the helper
    (Documentation/bpf/standardization/instruction-set.rst).
    """
    changed = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION_BYTES):
        op, registers, _, number = struct.unpack_from("=BBhi", code, at)
        if op == _CALL and number in functions:
            source = registers & 0x0F | _KFUNC << 4
            struct.pack_into("=BBhi", changed, at, op, source, 0, functions[number])
    return bytes(changed)


def _compiled(
    text: str, function: str, definitions: Mapping[str, str], headers: KernelHeaders
) -> Any:
    """Return BCC's handle of a program that is compiled but not loaded yet."""
    bpf = _bcc()
    if headers is KernelHeaders.SHIPPED:
        os.environ["BCC_KERNEL_SOURCE"] = str(sources.header_tree())
    else:
        check_host_headers(Path("/lib/modules") / platform.release())
        os.environ.pop("BCC_KERNEL_SOURCE", None)  # BCC looks below /lib/modules
    if platform.machine() == "aarch64":
        os.environ.setdefault("ARCH", "arm64")
    flags = [
        "-Wall",
        "-Werror",
        "-fno-strict-aliasing",
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]
    try:
        return bpf(text=text.encode(), cflags=flags)
    except Exception as error:
        raise _refused(function, error) from error


def _refused(function: str, error: Exception) -> DataplaneError:
    return DataplaneError(
        f"the program does not compile or load: {error}",
        where=function,
        remedy="`lbctl doctor` checks the kernel and BCC; the compiler's messages are above",
    )


def _release(handle: Any) -> Callable[[], None]:
    def release() -> None:
        # BCC keeps every program until the process exits, in order to detach probes then.
        atexit.unregister(handle.cleanup)
        handle.cleanup()
        _give_back_memory()

    return release


def _tables(handle: Any) -> list[int]:
    """Return the descriptors of the maps that BCC has opened or created for a program."""
    from bcc import lib

    module = ctypes.c_void_p(handle.module)  # BCC's own bindings may not declare it a pointer
    count = lib.bpf_num_tables(module)
    return [lib.bpf_table_fd_id(module, ctypes.c_size_t(number)) for number in range(count)]
