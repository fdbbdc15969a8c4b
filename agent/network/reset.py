"""Owns the raw sockets, which send frames and packets that belong to no socket of the host."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from agent.errors import NetworkError
from agent.model import Address


class RawSender:
    """Sends frames and packets as given. Use it with ``with``. NetworkError if sending fails."""

    def __init__(self) -> None:
        _raw(socket.AF_PACKET, 0).close()  # finds out now whether this is allowed
        self._frames: dict[int, socket.socket] = {}  # by interface, opened when needed
        self._packets: dict[int, socket.socket] = {}  # by IP version, opened when needed

    def frame(self, ifindex: int, data: bytes) -> None:
        """Send a whole frame out of an interface."""
        try:
            try:
                self._frames[ifindex].send(data)
            except (KeyError, OSError):
                # There is no socket yet, or its interface has gone; there may be a new one.
                if (stale := self._frames.pop(ifindex, None)) is not None:
                    stale.close()
                self._frames[ifindex] = _bound(ifindex)
                self._frames[ifindex].send(data)
        except OSError as error:
            raise NetworkError(f"a frame cannot be sent: {error}", where="resets") from error

    def packet(self, to: Address, data: bytes) -> None:
        """Send a whole IP packet by the host's routes."""
        where = (str(to), 0) if isinstance(to, IPv4Address) else (str(to), 0, 0, 0)
        if to.version not in self._packets:
            family = socket.AF_INET if to.version == 4 else socket.AF_INET6
            self._packets[to.version] = _raw(family, socket.IPPROTO_RAW)
        try:
            self._packets[to.version].sendto(data, where)
        except OSError as error:
            raise NetworkError(
                f"a packet to {to} cannot be sent: {error}", where="resets"
            ) from error

    def close(self) -> None:
        for each in (*self._frames.values(), *self._packets.values()):
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


def _bound(ifindex: int) -> socket.socket:
    """Return a packet socket that sends by one interface.

    An unbound one needs the interface's name for each frame, which takes four system calls.
    """
    opened = _raw(socket.AF_PACKET, 0)  # 0: receives nothing
    try:
        opened.bind((socket.if_indextoname(ifindex), 0))
    except OSError:
        opened.close()
        raise
    return opened


def _raw(family: socket.AddressFamily, protocol: int) -> socket.socket:
    try:
        opened = socket.socket(family, socket.SOCK_RAW, protocol)
    except OSError as error:
        raise NetworkError(
            f"no raw socket: {error}",
            where="resets",
            remedy="run the agent as root, or with CAP_NET_RAW",
        ) from error
    opened.setblocking(False)
    return opened
