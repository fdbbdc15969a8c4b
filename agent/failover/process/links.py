"""Knows the interfaces of this host that matter for failover: asks the kernel after each event.

An event only says that something has changed. What has changed comes from asking, so no change is
missed for long if events are lost.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from agent.failover.host.addresses import PROTO
from agent.failover.host.kernel import RECEIVE_BYTES, Kernel, open_socket
from agent.model import Address

_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that exists. ``addresses``: the usable ones, without the VIPs that we added."""

    ifindex: int
    up: bool
    carrier: bool
    program: int  # id of the XDP program on it; 0: none
    addresses: tuple[Address, ...] = ()


class Links:
    """Interfaces and their events; ``fileno`` is readable when one or an address has changed."""

    def __init__(self) -> None:
        self._events = open_socket(_GROUPS)
        self._kernel = Kernel()
        self._one = threading.Lock()  # a thread asks too, and each caller must get its own answer

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are events."""
        return self._events.fileno()

    def drain(self) -> None:
        """Read all events; the caller asks for everything afterwards."""
        while True:
            try:
                self._events.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # some events were lost
                continue

    def interface(self, name: str) -> Interface | None:
        """Return an interface as it is now; None if there is none of that name.

        Raises OSError if the kernel does not say.
        """
        with self._one:
            link = self._kernel.link(name)
            if link is None:
                return None
            addresses = self._addresses(link.ifindex)
        return Interface(link.ifindex, link.up, link.carrier, link.program, addresses)

    def close(self) -> None:
        self._events.close()
        self._kernel.close()

    def _addresses(self, ifindex: int) -> tuple[Address, ...]:
        entries = self._kernel.addresses(ifindex)
        return tuple(each.address for each in entries if each.usable and each.proto != PROTO)
