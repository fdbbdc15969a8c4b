"""Owns the netlink sockets of failover: sends requests, and reads the answers before it returns.

The kernel answers within the system call that sends the request, so nothing here waits, unless the
kernel itself does.
"""

from __future__ import annotations

import errno
import itertools
import select
import socket
from collections.abc import Callable, Iterable

from agent.errors import NetworkError
from agent.failover.host import rtnetlink
from agent.failover.host.rtnetlink import Answer, Entry, Link
from agent.failover.times import KERNEL_ANSWER_S

RECEIVE_BYTES = 1 << 16

_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK = 10, 12
_BATCH = 64  # requests whose answers fit in the receive buffer
_DUMP_ATTEMPTS = 5

type Request[T] = Callable[[int, T], bytes]  # makes a request from a sequence number and an item


class Kernel:
    """A conversation with rtnetlink. Its calls raise OSError when there is no answer."""

    def __init__(self) -> None:
        self._socket = open_socket()
        # The first leaves out the copy of the request in answers; the second allows dumps of one
        # interface only.
        for option in (_NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._ready = select.poll()
        self._ready.register(self._socket, select.POLLIN)
        self._sequence = itertools.count(1)

    def change[T](self, items: Iterable[T], request: Request[T]) -> dict[T, int]:
        """Make a request for each item, many in one system call.

        Returns the errno of each item, 0 if it was done.
        """
        errors: dict[T, int] = {}
        for batch in itertools.batched(items, _BATCH):
            waiting = {next(self._sequence): item for item in batch}
            self._socket.send(b"".join(request(number, item) for number, item in waiting.items()))
            while waiting:
                for answer in self._receive():
                    if isinstance(answer, Answer) and answer.sequence in waiting:
                        errors[waiting.pop(answer.sequence)] = answer.error
        return errors

    def addresses(self, ifindex: int = 0) -> list[Entry]:
        """Return the addresses of an interface; 0: of all interfaces."""
        for _ in range(_DUMP_ATTEMPTS):
            entries, interrupted = self._dump(ifindex)
            if not interrupted:
                break
        return entries

    def link(self, name: str) -> Link | None:
        """Return an interface; None if there is none of that name."""
        number = next(self._sequence)
        self._socket.send(rtnetlink.get_link(number, name))
        while True:
            for found in self._receive():
                if isinstance(found, Entry) or found.sequence != number:
                    continue  # the late answer to a request that timed out
                if isinstance(found, Link):
                    return found
                if found.error == errno.ENODEV:
                    return None
                raise OSError(found.error, rtnetlink.reason(found.error, name))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _dump(self, ifindex: int) -> tuple[list[Entry], bool]:
        number = next(self._sequence)
        self._socket.send(rtnetlink.dump_addresses(number, ifindex))
        entries: list[Entry] = []
        while True:
            for found in self._receive():
                if isinstance(found, Entry):
                    entries.append(found)
                elif isinstance(found, Answer) and found.sequence == number:
                    if found.error:
                        raise OSError(found.error, "the addresses cannot be read")
                    return entries, found.interrupted

    def _receive(self) -> Iterable[Entry | Link | Answer]:
        if not self._ready.poll(round(KERNEL_ANSWER_S * 1000)):
            raise TimeoutError("the kernel does not answer on netlink")
        return rtnetlink.parse(self._socket.recv(RECEIVE_BYTES))


def open_socket(groups: int = 0) -> socket.socket:
    """Return a netlink socket that also receives the events of these groups."""
    try:
        opened = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        opened.setblocking(False)
        opened.bind((0, groups))
    except OSError as error:
        raise NetworkError(
            f"no netlink socket: {error}", where="failover", remedy="see `ulimit -n`"
        ) from error
    return opened


def index_of(interface: str) -> int:
    """Return the index of an interface; 0 if there is none of that name."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0
