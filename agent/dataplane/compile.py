"""The only module that imports bcc: C text in, loaded program out."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.dataplane import btf, libbpf, sources
from agent.dataplane.libbpf import ProgramType
from agent.errors import DataplaneError
from agent.model import KernelHeaders

_BCC_REMEDY = (
    "apt-get install python3-bpfcc, and make the virtual environment from /usr/bin/python3 with "
    "--system-site-packages (the package that indexes call bcc is another project)"
)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A loaded program. It lives as long as ``handle`` or an attachment or a pin does."""

    fd: int
    handle: Any
    info: libbpf.ProgramInfo
    layout: btf.Btf
    compile_s: float
    kind: ProgramType

    def close(self) -> None:
        """Give back its descriptors, and what the compiler needed for it. A program that is
        attached or pinned goes on in the kernel.
        """
        # BCC keeps every program to the end of the process, for probes that it would detach.
        atexit.unregister(self.handle.cleanup)
        self.handle.cleanup()
        _give_back_memory()


def _give_back_memory() -> None:
    """What LLVM has freed: the allocator would keep it, tens of megabytes for each program."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _bcc() -> Any:
    try:
        from bcc import BPF  # here, because it costs 60 ms and most of the package needs none
    except ImportError as error:
        raise DataplaneError("BCC is not installed", where="bcc", remedy=_BCC_REMEDY) from error
    return BPF


def check_host_headers(modules: Path) -> None:
    """Raise DataplaneError if the folder of the running kernel's modules leads to no headers."""
    if not (modules / "build").exists():
        raise DataplaneError(
            "this host has no headers of the running kernel",
            where=str(modules / "build"),
            remedy=f"apt-get install linux-headers-{modules.name}, or leave `--kernel-headers` and "
            "`kernel_headers: host` out: the shipped headers serve every kernel",
        )


def compile_program(
    text: str,
    function: str,
    definitions: Mapping[str, str],
    headers: KernelHeaders = KernelHeaders.SHIPPED,
    kind: ProgramType = ProgramType.XDP,
) -> Compiled:
    """Compile ``text`` and load its function ``function`` as a program of that type.

    Raises DataplaneError when the compiler or the verifier refuses; their messages go to stderr.
    """
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
    started = time.monotonic()
    try:
        handle = bpf(text=text.encode(), cflags=flags)
        fd = handle.load_func(function.encode(), int(kind)).fd
    except Exception as error:
        raise DataplaneError(
            f"the program does not compile or load: {error}",
            where=function,
            remedy="`lbctl doctor` checks the kernel and BCC; the compiler's messages are above",
        ) from error
    info = libbpf.program_info(fd)
    if not info.btf_id:
        raise DataplaneError(
            "the kernel has no BTF of the program, so its layout cannot be checked",
            where=function,
            remedy="use a kernel with CONFIG_DEBUG_INFO_BTF (Debian 13, Ubuntu 24.04 have it)",
        )
    layout = btf.parse(libbpf.btf_data(info.btf_id))
    return Compiled(fd, handle, info, layout, time.monotonic() - started, kind)
