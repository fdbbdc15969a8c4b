"""Short TCP connections at a high rate, each begun when it is due, whatever became of others.

Run in a client of the lab; the servers are those of bench/peers/load.c. Writes one line of JSON:
how many were begun, those that failed, and those that were not answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

REQUEST = b"GET / HTTP/1.0\r\n\r\n"
TIMEOUT_S = 120.0
BEGUN = "begun"  # the first line of the output; the second says what became of all
AT_ONCE_S = 0.19  # TCP asks again after 200 ms at the earliest
MAX_OPEN = 15_000
PORTS = range(1024, 65_536)
PORTS_PER_S = 500  # of time, so that the next run of this program goes on where this one is


@dataclass(slots=True)
class Try:
    """One connection."""

    socket: socket.socket
    started_s: float
    asked: bool = False
    got: int = 0


class Rush:
    """The connections of one run."""

    def __init__(self, targets: list[tuple[str, int]], rate_per_s: float) -> None:
        self._targets = itertools.cycle(targets)
        first = int(time.monotonic() * PORTS_PER_S)
        self._ports = {target: itertools.count(first) for target in targets}
        self._rate_per_s = rate_per_s
        self._poll = select.epoll()
        self._open: dict[int, Try] = {}
        self.leaving = False
        self.started = 0
        self.failed: list[tuple[float, float, str]] = []
        self.late: list[tuple[float, float]] = []

    def run(self) -> None:
        """Until ``leaving``, and until the last connection has ended."""
        due_s = time.monotonic()
        while not self.leaving or self._open:
            now_s = time.monotonic()
            # What cannot be kept up with is left out.
            due_s = max(due_s, now_s - 0.05)
            while due_s <= now_s and not self.leaving and len(self._open) < MAX_OPEN:
                self._begin(now_s)
                due_s += 1 / self._rate_per_s
            for number, events in self._poll.poll(0.001, 256):
                self._go_on(self._open[number], events)
            self._give_up(time.monotonic() - TIMEOUT_S)

    def _begin(self, now_s: float) -> None:
        target = host, port = next(self._targets)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.started += 1
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # The request goes with the last packet of the handshake. Before Linux 6.19, a server resets
        # a connection (one of 30,000 to 200,000) when one CPU handles that packet while another
        # handles the request: for a moment a lookup finds nothing (inet_ehash_insert()).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        self._bind(sock, self._ports[target])
        sock.connect_ex((host, port))
        self._open[sock.fileno()] = Try(sock, now_s)
        self._poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def _bind(self, sock: socket.socket, numbers: Iterator[int]) -> None:
        """To a port of one's own: Linux takes the same again after a quarter of a minute."""
        for number in numbers:
            with contextlib.suppress(OSError):  # somebody else has it
                sock.bind(("", PORTS[number % len(PORTS)]))
                return

    def _go_on(self, one: Try, events: int) -> None:
        try:
            if not one.asked and events & select.EPOLLOUT:
                one.asked = True
                one.socket.send(REQUEST)
            if events & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
                while data := one.socket.recv(1024):
                    one.got += len(data)
                self._end(one, "" if one.got else "closed")
        except BlockingIOError:
            return
        except OSError as error:
            self._end(one, type(error).__name__)

    def _give_up(self, before_s: float) -> None:
        # In the order of their beginnings.
        for one in list(itertools.takewhile(lambda o: o.started_s < before_s, self._open.values())):
            self._end(one, "timeout")

    def _end(self, one: Try, error: str) -> None:
        del self._open[one.socket.fileno()]
        one.socket.close()
        ended_s = time.monotonic()
        if error:
            self.failed.append((one.started_s, ended_s, error))
        elif ended_s - one.started_s > AT_ONCE_S:
            self.late.append((one.started_s, ended_s))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("targets", nargs="+")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    targets = [target.rpartition(":")[::2] for target in options.targets]
    rush = Rush([(host.strip("[]"), int(port)) for host, port in targets], options.rate)
    signal.signal(signal.SIGTERM, lambda *_: setattr(rush, "leaving", True))
    print(BEGUN, flush=True)  # from now on it may be asked to leave
    started_s = time.monotonic()
    rush.run()
    seconds = time.monotonic() - started_s
    print(
        json.dumps(
            {
                "started": rush.started,
                "seconds": seconds,
                "failed": rush.failed,
                "late": rush.late,
            }
        )
    )


if __name__ == "__main__":
    main()
