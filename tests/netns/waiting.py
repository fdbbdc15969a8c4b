"""Clients that have asked, say no more, and wait for an answer that takes ten minutes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from lbctl.lab import netns
from lbctl.lab.topology import PORT, Node
from tests.polling import readable

ASKED = b"GET /slow?seconds=600&chunks=1 HTTP/1.1\r\nHost: lab\r\n\r\n"
LIMIT_S = 60.0  # the host may be busy; nothing is told of how long it takes


class Waiting:
    """One of them; ``backend`` has sent the head of its answer."""

    def __init__(self, client: Node, vip: Any) -> None:
        with netns.inside(client.namespace):
            self.socket = socket.create_connection((str(vip), PORT), timeout=LIMIT_S)
        self.socket.sendall(ASKED)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(4096)
        names = [line for line in head.split(b"\r\n") if line.startswith(b"X-Backend: ")]
        self.backend = names[0].removeprefix(b"X-Backend: ").decode()

    def is_reset(self) -> bool:
        """Wait until something comes; whether that is the end."""
        try:
            self.socket.recv(1)
        except ConnectionResetError:
            return True
        return False

    def is_silent(self) -> bool:
        return not readable(self.socket)


@contextlib.contextmanager
def waiting(client: Node, vips: Any, count: int) -> Iterator[list[Waiting]]:
    """So many of them at each VIP."""
    held = [Waiting(client, vip) for vip in vips for _ in range(count)]
    try:
        yield held
    finally:
        for one in held:
            one.socket.close()
