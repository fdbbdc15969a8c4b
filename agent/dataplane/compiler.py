"""Owns BCC, in a process of its own: ``python -m agent.dataplane.compiler SOCKET``.

``compile`` starts it for one program and then loads no library of the compiler itself. This process
can reach no network and start no other program, and has only the capabilities that loading a
program needs. If the compiler crashes or runs out of memory, the agent goes on. The memory that the
compiler needs is free again when this process ends.

It reads a request in JSON from its standard input. Its answer, on the socket, is a line of JSON
followed by the machine code; the descriptors of the program and of its maps come with the line. The
compiler's and the verifier's own messages go to stderr. No other module imports bcc.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# linux/capability.h: NET_ADMIN, PERFMON and BPF to load programs of every type; SYS_ADMIN because
# BCC opens pinned maps by their ids; DAC_READ_SEARCH (which the unit does not give) to read the
# kernel's headers below somebody's home folder.
_KEPT_CAPABILITIES = 1 << 2 | 1 << 12 | 1 << 21 | 1 << 38 | 1 << 39
_CAPABILITY_VERSION = 0x20080522  # two words of 32 bits

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2

# The system calls that are refused: their numbers on x86-64 and on arm64. With io_uring a process
# can open sockets too.
_REFUSED_CALLS = {
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "setns": (308, 268),
    "unshare": (272, 97),
    "mount": (165, 40),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
}
# By architecture: its number in linux/audit.h, its place above, and the number from which on all
# calls are refused (x86-64 has a second set of numbers there).
_ARCHITECTURES = {"x86_64": (0xC000003E, 0, 0x40000000), "aarch64": (0xC00000B7, 1, 0xFFFFFFFF)}
_STEP = struct.Struct("@HBBI")  # struct sock_filter: code, jumps if true and if false, operand
_LD_W, _JEQ, _JGE, _RET = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM


def main() -> None:
    """Answer one request."""
    answer = socket.socket(fileno=int(sys.argv[1]))
    request = json.load(sys.stdin)
    _die_with(request["parent"])
    try:
        from bcc import BPF  # takes 60 ms
    except ImportError:
        _send(answer, {"missing": True})
        return
    try:
        confine()
        fds, tables, code = _made(BPF, request)
        _send(answer, {"tables": tables}, [*fds, *tables], code)
    except Exception as error:  # noqa: BLE001 (BCC raises plain Exception)
        _send(answer, {"error": str(error)})


def _made(bpf: Any, request: dict[str, Any]) -> tuple[list[int], list[int], bytes]:
    """Return the descriptors of the program, if it is to be loaded, and of its maps; and its
    machine code, which names the maps by these descriptors.
    """
    handle = bpf(text=request["text"].encode(), cflags=request["flags"])
    function = request["function"].encode()
    fds = [] if request["kind"] is None else [handle.load_func(function, request["kind"]).fd]
    return fds, _tables(handle), handle.dump_func(function)


def _tables(handle: Any) -> list[int]:
    """Return the descriptors of the maps that BCC has opened or created for a program."""
    from bcc import lib

    module = ctypes.c_void_p(handle.module)  # BCC's own bindings may not declare it a pointer
    count = lib.bpf_num_tables(module)
    return [lib.bpf_table_fd_id(module, ctypes.c_size_t(number)) for number in range(count)]


def _send(
    to: socket.socket, header: dict[str, Any], fds: Sequence[int] = (), code: bytes = b""
) -> None:
    header |= {"size": len(code), "fds": len(fds)}
    socket.send_fds(to, [json.dumps(header).encode() + b"\n"], fds)
    to.sendall(code)
    to.close()


def _die_with(parent: int) -> None:
    """End this process when the agent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def confine() -> None:
    """Give up, for good, what compiling and loading do not need. Raises OSError.

    From now on this process opens no socket, starts no program, reads and traces no other process,
    mounts nothing, joins no namespace, and has at most the capabilities that are listed above.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    architecture, place, end = _ARCHITECTURES[platform.machine()]
    tests = [(_JGE, end), *((_JEQ, numbers[place]) for numbers in _REFUSED_CALLS.values())]
    steps = [
        _STEP.pack(_LD_W, 0, 0, _ARCHITECTURE),
        _STEP.pack(_JEQ, 0, len(tests) + 2, architecture),  # if false: to the refusal
        _STEP.pack(_LD_W, 0, 0, _NUMBER),
        *(_STEP.pack(code, len(tests) - at, 0, value) for at, (code, value) in enumerate(tests)),
        _STEP.pack(_RET, 0, 0, _ALLOW),
        _STEP.pack(_RET, 0, 0, _REFUSE),
    ]
    filter_ = ctypes.create_string_buffer(b"".join(steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(filter_))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program))


def _drop_capabilities() -> None:
    found = re.search(
        r"^CapPrm:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    kept = (int(found[1], 16) if found else 0) & _KEPT_CAPABILITIES
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    sets = struct.pack("=6I", low, low, 0, high, high, 0)  # effective, permitted, inheritable
    _checked(ctypes.CDLL(None, use_errno=True).capset(header, sets))


def _prctl(option: int, value: int, argument: object = 0) -> None:
    zero = ctypes.c_ulong(0)
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.prctl(option, ctypes.c_ulong(value), argument or zero, zero, zero))


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # BCC and LLVM have nothing to tidy up that the kernel does not
