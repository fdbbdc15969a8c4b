"""Knows the interfaces of this host that matter for failover: by events, and asked anew after one.

Events only say that something is new. What it is comes from asking, so none can be lost for long.
"""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct
import threading
from dataclasses import dataclass

from agent.failover.host import rtnetlink
from agent.failover.host.addresses import PROTO
from agent.failover.host.kernel import RECEIVE_BYTES, Kernel, open_socket
from agent.failover.host.rtnetlink import Answer
from agent.model import Address

_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_ANSWER_TIMEOUT_MS = 1000

_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, ifindex, flags, change
_IFLA_IFNAME, _IFLA_XDP, _IFLA_XDP_PROG_ID = 3, 43, 4
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that exists. ``addresses``: usable, and not put there as VIPs by us."""

    ifindex: int
    up: bool
    carrier: bool
    program: int  # id of the XDP program on it; 0: none
    addresses: tuple[Address, ...] = ()

    def trouble(self, name: str) -> str:
        """Why it carries nothing; empty: it does."""
        if not self.up:
            return f"{name} is down"
        return "" if self.carrier else f"{name} has no carrier"


class Links:
    """Readable (``fileno``) when an interface or an address has changed."""

    def __init__(self) -> None:
        self._events = open_socket(_GROUPS)
        self._asking = open_socket()
        self._kernel = Kernel()
        self._ready = select.poll()
        self._ready.register(self._asking, select.POLLIN)
        self._sequence = itertools.count(1)
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
            return self._ask(name)

    def _ask(self, name: str) -> Interface | None:
        number = next(self._sequence)
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        body += rtnetlink.attribute(_IFLA_IFNAME, name.encode() + b"\0")
        self._asking.send(rtnetlink.message(_RTM_GETLINK, 0, number, body))
        while True:
            data = self._receive()
            _, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence != number:
                continue  # the late answer to a question that was given up
            if kind == _RTM_NEWLINK:
                return self._read(data[_HEADER.size :])
            for answer in rtnetlink.parse(data):
                if isinstance(answer, Answer) and answer.error != errno.ENODEV:
                    raise OSError(answer.error, rtnetlink.reason(answer.error, name))
            return None

    def close(self) -> None:
        self._events.close()
        self._asking.close()
        self._kernel.close()

    def _read(self, body: bytes) -> Interface:
        _, _, ifindex, flags, _ = _LINK.unpack_from(body)
        xdp = _attributes(_attributes(body[_LINK.size :]).get(_IFLA_XDP, b""))
        program = xdp.get(_IFLA_XDP_PROG_ID, b"\0\0\0\0")
        return Interface(
            ifindex=ifindex,
            up=bool(flags & _IFF_UP),
            carrier=bool(flags & _IFF_LOWER_UP),
            program=struct.unpack("=I", program)[0],
            addresses=self._addresses(ifindex),
        )

    def _addresses(self, ifindex: int) -> tuple[Address, ...]:
        entries = self._kernel.addresses(ifindex)
        return tuple(each.address for each in entries if each.usable and each.proto != PROTO)

    def _receive(self) -> bytes:
        # The kernel answers within the call that asks: to wait at all is out of the ordinary.
        if not self._ready.poll(_ANSWER_TIMEOUT_MS):
            raise TimeoutError("the kernel does not answer on netlink")
        return self._asking.recv(RECEIVE_BYTES)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found
