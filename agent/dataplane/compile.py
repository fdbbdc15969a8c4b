"""Has C text compiled by a process of its own (``compiler``), and takes over what that loaded."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
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

_LONGEST_S = 600.0  # under emulation, compiling every feature takes minutes
_MOST_FDS = 253  # SCM_MAX_FD of the kernel: as many as one message can bring

INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn: op, two registers, offset, number
LOAD_64 = 0x18  # BPF_LD_IMM64, which takes two instructions; its src_reg says what is loaded:
MAP = 1  # a map, by its descriptor (BPF_PSEUDO_MAP_FD)
_CALL = 0x85  # BPF_JMP | BPF_CALL
_KFUNC = 2  # BPF_PSEUDO_KFUNC_CALL


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
        """Close its descriptors.

        A program that is attached or pinned keeps running in the kernel.
        """
        self.release()


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
    (fd, *tables), code = _compiled(text, function, definitions, headers, kind)
    info = libbpf.program_info(fd)
    if not info.btf_id:
        _close([fd, *tables])
        raise DataplaneError(
            "the kernel has no BTF of the program, so its layout cannot be checked",
            where=function,
            remedy="use a kernel with CONFIG_DEBUG_INFO_BTF (Debian 13, Ubuntu 24.04 have it)",
        )
    layout = btf.parse(libbpf.btf_data(info.btf_id))
    return _of(fd, tables, code, kind, started, layout)


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
    tables, code = _compiled(text, function, definitions, KernelHeaders.SHIPPED)
    try:
        numbers = {number: libbpf.kernel_function(name) for number, name in calls.items()}
        code = with_kfuncs(code, numbers)
        fd = libbpf.program_load(function, code, kind)
    except OSError as error:
        _close(tables)
        raise _refused(function, error) from error
    return _of(fd, tables, code, kind, started, btf.Btf({}, {}, {}))


def _of(
    fd: int, tables: list[int], code: bytes, kind: ProgramType, started: float, layout: btf.Btf
) -> Compiled:
    return Compiled(
        fd,
        {libbpf.map_info(table).name: table for table in tables},
        libbpf.program_info(fd),
        layout,
        time.monotonic() - started,
        kind,
        partial(_close, [fd, *tables]),
        code=code,
    )


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def with_maps(code: bytes, descriptors: Mapping[int, int]) -> bytes:
    """Return machine code that names maps by this process's descriptors.

    ``descriptors``: by those of the process that made the code.
    """
    changed = bytearray(code)
    at = 0
    while at < len(code):
        op, registers, _, number = INSTRUCTION.unpack_from(code, at)
        if op == LOAD_64 and registers >> 4 == MAP:
            INSTRUCTION.pack_into(changed, at, op, registers, 0, descriptors[number])
        at += INSTRUCTION.size * (2 if op == LOAD_64 else 1)
    return bytes(changed)


def with_kfuncs(code: bytes, functions: Mapping[int, int]) -> bytes:
    """Return machine code in which calls of helpers with these numbers are kfunc calls.

    ``functions``: the BTF ids of the kernel's functions, by number of the helper
    (Documentation/bpf/standardization/instruction-set.rst).
    """
    changed = bytearray(code)
    for at in range(0, len(code), INSTRUCTION.size):
        op, registers, _, number = INSTRUCTION.unpack_from(code, at)
        if op == _CALL and number in functions:
            source = registers & 0x0F | _KFUNC << 4
            INSTRUCTION.pack_into(changed, at, op, source, 0, functions[number])
    return bytes(changed)


def _compiled(
    text: str,
    function: str,
    definitions: Mapping[str, str],
    headers: KernelHeaders,
    kind: ProgramType | None = None,
) -> tuple[list[int], bytes]:
    """Have the compiler's process compile a program, and load it unless ``kind`` is None.

    Returns the descriptors of the program, if it is loaded, and of its maps, and its machine code.
    """
    flags = [
        "-Wall",
        "-Werror",
        "-fno-strict-aliasing",
        *(f"-D{name}={value}" for name, value in definitions.items()),
    ]
    request = {
        "text": text,
        "flags": flags,
        "function": function,
        "kind": None if kind is None else int(kind),
        "parent": os.getpid(),
    }
    try:
        header, fds, code = _asked(request, _environment(headers), function)
    except OSError as error:  # too few processes or descriptors, or it takes too long
        raise _refused(function, error) from error
    if header.get("missing"):
        raise DataplaneError("BCC is not installed", where="bcc", remedy=_BCC_REMEDY)
    if "error" in header:
        raise _refused(function, header["error"])
    tables = fds[len(fds) - len(header["tables"]) :]  # the program's own comes before them
    return fds, with_maps(code, dict(zip(header["tables"], tables, strict=True)))


def _environment(headers: KernelHeaders) -> dict[str, str]:
    """Return the variables of the compiler's process, by which BCC finds the kernel's headers."""
    variables = dict(os.environ)
    if headers is KernelHeaders.SHIPPED:
        variables["BCC_KERNEL_SOURCE"] = str(sources.header_tree())
    else:
        check_host_headers(Path("/lib/modules") / platform.release())
        variables.pop("BCC_KERNEL_SOURCE", None)  # BCC looks below /lib/modules
    if platform.machine() == "aarch64":
        variables.setdefault("ARCH", "arm64")
    return variables


def _asked(
    request: Mapping[str, object], environment: Mapping[str, str], function: str
) -> tuple[dict[str, Any], list[int], bytes]:
    """Return what a process of the compiler answers (``compiler``): header, descriptors and code.

    Raises DataplaneError if it ends without an answer, and OSError.
    """
    ours, theirs = socket.socketpair()
    # -P: modules are imported from where this one is, not from the working folder.
    command = [sys.executable, "-P", "-m", "agent.dataplane.compiler", str(theirs.fileno())]
    with ours:
        with theirs:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                env=environment,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for the agent, with which this process ends
            )
        assert child.stdin is not None  # noqa: S101 (it is a pipe)
        data, fds = b"", list[int]()
        try:
            # The request is not among the arguments, because there are secrets in it.
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(request).encode())
            ours.settimeout(_LONGEST_S)
            data, fds, _, _ = socket.recv_fds(ours, 65536, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
            while part := ours.recv(1 << 20):
                data += part
        except BaseException as error:
            child.kill()
            child.wait()
            _close(fds)
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"it takes more than {_LONGEST_S:g} s") from None
            raise
    status = child.wait()
    head, _, code = data.partition(b"\n")
    header = json.loads(head) if head else {}
    if len(code) != header.get("size"):
        _close(fds)
        raise _ended(function, status)
    if len(fds) != header["fds"]:  # the kernel delivers as many as there is room for
        _close(fds)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return header, fds, code


def _ended(function: str, status: int) -> DataplaneError:
    """Return the error for a compiler that ended without an answer."""
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return DataplaneError(
        f"the compiler ended with {how} and made no program",
        where=function,
        remedy="its messages are above; after SIGKILL, give the host more memory (`dmesg` says "
        "whether it ran out)",
    )


def _refused(function: str, problem: str | Exception) -> DataplaneError:
    return DataplaneError(
        f"the program does not compile or load: {problem}",
        where=function,
        remedy="`lbctl doctor` checks the kernel and BCC; the compiler's messages are above",
    )
