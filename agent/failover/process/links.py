"""Knows the interfaces of this host that matter for failover: by events, and asked anew after one.

Events only say that something is new. What it is comes from asking, so none can be lost for long.
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
    """An interface that exists. ``addresses``: usable, and not put there as VIPs by us."""

    ifindex: int
    up: bool
    carrier: bool
    program: int  # id of the XDP program on it; 0: none
    addresses: tuple[Address, ...] = ()


class Links:
    """Readable (``fileno``) when an interface or an address has changed."""

    def __init__(self) -> None:
        self._events = open_socket(_GROUPS)
        self._kernel = Kernel()
        self._one = threading.Lock()  # asked from a thread too: each gets its own answer

    def fileno(self) -> int:
        """To wait for events with."""
        return self._events.fileno()

    def drain(self) -> None:
        """Read all events: ask for everything afterwards."""
        while True:
            try:
                self._events.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # some were lost
                continue

    def interface(self, name: str) -> Interface | None:
        """An interface as it is now; None if there is none. OSError if it cannot be told."""
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
