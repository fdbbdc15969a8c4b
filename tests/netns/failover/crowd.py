"""A crowd of TCP connections that are held open, with data flowing on each, from one thread.

The servers repeat what they are told, after their name; so a client notices a connection that
broke, that lost or changed data, or that somebody else answers on.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from agent.model import Forward
from lbctl.lab import netns
from lbctl.lab.topology import Lab, Role
from tests.netns import peers

PORT = 9100
MESSAGE_BYTES = 96
_NAME_BYTES = 8
_GROUPS = 20  # that take turns to speak
_OPEN_S = 90.0


def ports(lab: Lab) -> dict[int, Forward]:
    """Where the servers listen, and how they are reached: a lab of nat does fullnat, too."""
    both = {PORT + 1: Forward.FULLNAT} if lab.forward is Forward.NAT else {}
    return {PORT: lab.forward} | both


def services(lab: Lab) -> list[dict[str, Any]]:
    """In the configuration; the scheduler is one that would not choose the same backend again."""
    return [
        {
            "name": f"crowd{vip.version}-{forward.value}",
            "vip": str(vip),
            "port": port,
            "forward": forward.value,
            "scheduler": "least-conn",
            "health": {"type": "none"},
            "backends": [
                peers.backend_of(lab, node, vip.version) for node in lab.nodes(Role.BACKEND)
            ],
        }
        for vip in lab.vips
        for port, forward in ports(lab).items()
    ]


@dataclass
class _Line:
    """One connection, as the client has it."""

    number: int
    socket: socket.socket
    backend: bytes = b""
    said: bytes = b""  # what the answer has to be made of
    heard: bytearray = field(default_factory=bytearray)
    rounds: int = 0


class Crowd:
    """So many connections, a message on each in ``period_s``, until the end of ``held``."""

    def __init__(self, lab: Lab, count: int, period_s: float = 0.5) -> None:
        self._lab = lab
        self._first = count
        self._count = 0
        self._period_s = period_s
        self._leaving = threading.Event()
        self._poll = select.epoll()
        self._server_poll = select.epoll()
        self._served: dict[int, tuple[socket.socket, bytes]] = {}
        self._listeners: dict[int, tuple[socket.socket, bytes]] = {}
        self._lines: dict[int, _Line] = {}
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._serve, self._talk)
        ]
        self.broken: list[tuple[int, str]] = []

    def start(self) -> None:
        for node, port in itertools.product(self._lab.nodes(Role.BACKEND), ports(self._lab)):
            with netns.inside(node.namespace):
                listener = socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener, node.name.encode().ljust(_NAME_BYTES)
            self._server_poll.register(listener, select.EPOLLIN)
        self._threads[0].start()
        self.grow(self._first)
        self._threads[1].start()

    def stop(self) -> None:
        self._leaving.set()
        for thread in self._threads:
            thread.join()
        for sock in (
            *(line.socket for line in self._lines.values()),
            *(sock for sock, _ in (*self._served.values(), *self._listeners.values())),
        ):
            sock.close()
        self._poll.close()
        self._server_poll.close()

    @property
    def open(self) -> int:
        """How many have not broken."""
        return self._count - len(self.broken)

    def flows(self) -> dict[str, int]:
        """How many each service has, as they were opened."""
        names = [service["name"] for service in services(self._lab)]
        return {name: self._count // len(names) for name in names}

    def rounds(self) -> int:
        """How many answers the slowest of the open connections has had."""
        return min((line.rounds for line in list(self._lines.values())), default=0)

    def silent(self) -> list[int]:
        """The connections that wait for an answer."""
        return [line.number for line in list(self._lines.values()) if line.said]

    def backends(self) -> set[str]:
        """Who answers."""
        return {line.backend.decode().strip() for line in list(self._lines.values())}

    def grow(self, count: int) -> None:
        """So many more; returns once they are open."""
        targets = itertools.cycle(itertools.product(map(str, self._lab.vips), ports(self._lab)))
        with netns.inside(self._lab.node("client").namespace):
            for number in range(self._count, self._count + count):
                sock = socket.create_connection(next(targets), timeout=_OPEN_S)
                sock.setblocking(False)
                self._lines[sock.fileno()] = _Line(number, sock)
                self._poll.register(sock, select.EPOLLIN)
        self._count += count

    def _serve(self) -> None:
        while not self._leaving.is_set():
            for number, _ in self._server_poll.poll(0.1):
                if number in self._listeners:
                    self._accept(*self._listeners[number])
                else:
                    self._repeat(number)

    def _accept(self, listener: socket.socket, name: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                self._served[sock.fileno()] = sock, name
                self._server_poll.register(sock, select.EPOLLIN)

    def _repeat(self, number: int) -> None:
        sock, name = self._served[number]
        data = b""
        with contextlib.suppress(OSError):
            data = sock.recv(MESSAGE_BYTES)
        if data:
            sock.sendall(name + data)
        else:
            del self._served[number]
            sock.close()

    def _talk(self) -> None:
        pause_s = self._period_s / _GROUPS
        due_s = time.monotonic()
        for turn in itertools.count():
            if self._leaving.is_set():
                return
            self._speak(turn)
            due_s += pause_s
            while (left_s := due_s - time.monotonic()) > 0:
                for number, _ in self._poll.poll(left_s):
                    self._hear(self._lines[number])

    def _speak(self, turn: int) -> None:
        for line in list(self._lines.values()):
            if line.number % _GROUPS == turn % _GROUPS and not line.said:
                line.said = f"{line.number} {turn} ".encode().ljust(MESSAGE_BYTES, b".")
                try:
                    line.socket.send(line.said)
                except OSError as error:
                    self._lost(line, str(error))

    def _hear(self, line: _Line) -> None:
        try:
            data = line.socket.recv(1024)
        except OSError as error:
            self._lost(line, str(error))
            return
        line.heard += data
        if not data:
            self._lost(line, "closed")
        elif len(line.heard) >= _NAME_BYTES + MESSAGE_BYTES:
            name, told = bytes(line.heard[:_NAME_BYTES]), bytes(line.heard[_NAME_BYTES:])
            line.backend = line.backend or name
            if (name, told) != (line.backend, line.said):
                self._lost(line, f"was {line.backend!r}, said {line.said!r}: {name!r} {told!r}")
            line.heard.clear()
            line.said = b""
            line.rounds += 1

    def _lost(self, line: _Line, why: str) -> None:
        self.broken.append((line.number, why))
        self._poll.unregister(line.socket)
        del self._lines[line.socket.fileno()]
        line.socket.close()


@contextlib.contextmanager
def held(lab: Lab, count: int) -> Iterator[Crowd]:
    """The connections, while the block runs."""
    crowd = Crowd(lab, count)
    crowd.start()
    try:
        yield crowd
    finally:
        crowd.stop()
