"""A virtual router of which nothing touches the kernel: what is sent and put on is written down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from agent.failover.fitness import Judgement
from agent.failover.model import Instance
from agent.failover.plan import VirtualRouter
from agent.failover.process import listeners
from agent.failover.process import router as module
from agent.failover.process.links import Interface
from agent.failover.process.tracking import Tracking
from agent.failover.vrrp.advert import Advert, Refusal
from agent.failover.vrrp.replay import Guard
from agent.failover.vrrp.states import Fitness
from agent.model import Address

OWN, OTHER, THIRD = (ip_address(f"10.0.0.{number}") for number in (1, 2, 3))
VIP = ip_address("10.0.0.100")
INSTANCE = Instance("web", vrid=51, priority=100, interval_s=10.0)
ROUTER = VirtualRouter("web", INSTANCE, "eth0", 4, (VIP,), "web")
UP = Interface(2, up=True, carrier=True, program=0, addresses=(OWN,))
FIT = Judgement(Fitness(100), ())


def advert(priority: int, source: Address = OTHER) -> Advert:
    return Advert(3, 51, priority, 10.0, (VIP,), source)


@dataclass
class Host:
    """What the router did, in its order, and what it finds."""

    done: list[str] = field(default_factory=list)
    incoming: list[Advert | Refusal] = field(default_factory=list)
    on: bool = False  # VIPs
    broken: set[str] = field(default_factory=set)  # calls that fail
    guard: Guard = field(default_factory=Guard)
    flooded: bool = False

    def do(self, what: str) -> None:
        self.done.append(what)
        if what.split()[0] in self.broken:
            raise OSError(100, f"{what} fails")

    def taken(self) -> list[str]:
        """What was done since the last call."""
        done, self.done = self.done, []
        return done


class Content:
    """Puts VIPs on and takes them off without fail."""

    def again(self, run: object) -> None:
        pass


def look(tracking: Tracking) -> bool:
    """Have it ask the kernel anew, here and now; whether anything differs."""
    return tracking._learn(tracking._read(tracking._names))


class Listener:
    """Has no socket; its flood is the host's."""

    sockets = ()
    is_used = True
    interval_s = 10.0

    def __init__(self, found: Host) -> None:
        self._found = found

    @property
    def is_flooded(self) -> bool:
        return self._found.flooded

    def read(self) -> None:
        if "read" in self._found.broken:
            raise ValueError("a bug")


@contextmanager
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Instead of the kernel."""
    found = Host()
    read, write = os.pipe()  # readable never, but watched

    class Channel:
        def __init__(
            self,
            router: VirtualRouter,
            source: Address,
            key: bytes | None,
            guard: Guard,
            listener: object,
            wake: Callable[[], None],
        ) -> None:
            found.do(f"open {source}")
            found.guard = guard

        def send(self, priority: int) -> None:
            found.do(f"send {priority}")

        def taken(self) -> list[Advert | Refusal]:
            heard, found.incoming = found.incoming, []
            return heard

        def close(self) -> None:
            found.do("close")

    class Holding(Content):
        problems, announced = (), 0

        def __init__(self, router: VirtualRouter) -> None:
            found.do("hold")

        def fileno(self) -> int:
            return read

        def take(self) -> None:
            found.on = True
            found.do("take")

        def drop(self) -> bool:
            was, found.on = found.on, False
            found.do("drop")
            return was

        def announce(self) -> None:
            found.do("announce")

        def change(self, router: VirtualRouter) -> None:
            found.do("change")

        def close(self) -> None:
            found.on = False

    monkeypatch.setattr(listeners, "Listener", lambda *_: Listener(found))
    monkeypatch.setattr(module, "Channel", Channel)
    monkeypatch.setattr(module, "Holding", Holding)
    try:
        yield found
    finally:
        os.close(read)
        os.close(write)
