"""The XDP hooks: a program on one interface, in the driver or in the kernel's network stack."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from agent.dataplane import libbpf
from agent.model import Hook

FLAGS = {Hook.NATIVE: libbpf.XDP_DRV_MODE, Hook.GENERIC: libbpf.XDP_SKB_MODE}
_KNOWN = {
    errno.EOPNOTSUPP: "the driver has no native XDP",
    errno.EBUSY: "another program came first",
    errno.EEXIST: "another program came first",
    errno.EINVAL: "refused, often because of the MTU (native XDP needs a packet to fit a page)",
    errno.ERANGE: "the MTU is too large",
    errno.ENOMEM: "too few queues or too little memory",
}


@dataclass(frozen=True, slots=True)
class XdpPlace:
    """One XDP mode of one interface. The kernel allows one mode at a time."""

    ifindex: int
    mode: Hook

    @property
    def other(self) -> XdpPlace:
        """The other mode, which must be free."""
        mode = Hook.GENERIC if self.mode is Hook.NATIVE else Hook.NATIVE
        return XdpPlace(self.ifindex, mode)

    def current(self) -> int:
        found = libbpf.xdp_query(self.ifindex)
        return found.native if self.mode is Hook.NATIVE else found.generic

    def put(self, fd: int, over: int) -> None:
        if over:
            self._replace(fd, over)
        else:
            flags = FLAGS[self.mode] | libbpf.XDP_UPDATE_IF_NOEXIST
            libbpf.xdp_attach(self.ifindex, fd, flags)

    def clear(self, ident: int) -> None:
        self._replace(-1, ident)

    def _replace(self, fd: int, over: int) -> None:
        old = libbpf.program_fd(over)
        try:
            libbpf.xdp_attach(self.ifindex, fd, FLAGS[self.mode], old)
        finally:
            os.close(old)

    def why(self, error: OSError) -> str:
        return explain(error)


def explain(error: OSError) -> str:
    """Return what an errno means when an XDP program is attached."""
    return _KNOWN.get(error.errno or 0, os.strerror(error.errno or 0))
