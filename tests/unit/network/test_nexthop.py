"""What the kernel tells while it is being read is neither lost nor overruled by older answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import Address, NextHop
from agent.network import nexthop
from agent.network.messages import AddressesChanged, Event, Link, Neighbour, Reach, Route
from agent.network.nexthop import NextHops

SERVER = ip_address("10.0.0.21")
MAC, OTHER = "02:00:00:00:00:21", "02:00:00:00:00:99"
ETH0 = Link(2, "eth0", "02:00:00:00:00:01", 1500, up=True, carrier=True)
KNOWN = Neighbour(2, SERVER, MAC, Reach.CONFIRMED)
SILENT = "no ARP answer from 10.0.0.21 on eth0; its last MAC is kept"


class Kernel:
    """One interface and one neighbour. What is told overtakes the answer that is under way."""

    def __init__(self) -> None:
        self.eth0 = ETH0
        self.server = KNOWN
        self.told: asyncio.Queue[Event] = asyncio.Queue()
        self.meanwhile: dict[str, Event] = {}  # by the read during which it is told

    async def __aenter__(self) -> Kernel:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def subscribe(self) -> None:
        pass

    async def events(self) -> AsyncIterator[Event]:
        while True:
            yield await self.told.get()

    def tell(self, event: Event) -> None:
        match event:
            case Link():
                self.eth0 = event
            case Neighbour():
                self.server = event
        self.told.put_nowait(event)

    async def _answer[T](self, what: str, found: T) -> T:
        if (event := self.meanwhile.pop(what, None)) is not None:
            self.tell(event)
            await asyncio.sleep(0)  # who reads the events takes it now, and applies it
        return found

    async def link(self, name: str) -> Link:
        return await self._answer("link", self.eth0)

    async def link_at(self, ifindex: int) -> Link:
        return await self._answer("link_at", self.eth0)

    async def neighbour(self, ifindex: int, address: Address) -> Neighbour:
        return await self._answer("neighbour", self.server)

    async def routes(self, addresses: Collection[Address]) -> dict[Address, Route]:
        return dict.fromkeys(addresses, Route(ifindex=2, source=ip_address("10.0.0.2")))

    async def ask_neighbour(self, ifindex: int, address: Address) -> bool:
        return True


class Watch:
    """Next hops of the server."""

    def __init__(self) -> None:
        self.hops = NextHops(("eth0",), self._note, self._note_way_back)
        self.hops.set_addresses({SERVER})
        self.ways_back = 0
        self._changed = asyncio.Event()

    def _note(self, _addresses: object) -> None:
        self._changed.set()

    def _note_way_back(self) -> None:
        self.ways_back += 1

    async def until(self, condition: Callable[[NextHop], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition(self.hops.get(SERVER)):
                self._changed.clear()
                await self._changed.wait()


def follow(
    monkeypatch: pytest.MonkeyPatch, story: Callable[[Kernel, Watch], Awaitable[None]]
) -> None:
    """Play a story on next hops that know the server."""

    async def main() -> None:
        kernel, watch = Kernel(), Watch()
        monkeypatch.setattr(nexthop, "Netlink", lambda: kernel)
        running = asyncio.create_task(watch.hops.run())
        await watch.until(lambda hop: hop.mac == MAC)
        await story(kernel, watch)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(main())


def test_a_server_that_falls_silent_while_interfaces_are_read_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(kernel: Kernel, watch: Watch) -> None:
        kernel.meanwhile["link"] = replace(KNOWN, mac=None, reach=Reach.FAILED)
        kernel.tell(AddressesChanged(2))  # so that they are read
        await watch.until(lambda hop: hop.reason == SILENT)

    follow(monkeypatch, story)


def test_a_mac_that_changes_while_the_neighbour_is_read_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(kernel: Kernel, watch: Watch) -> None:
        kernel.meanwhile["neighbour"] = replace(KNOWN, mac=OTHER)
        kernel.tell(AddressesChanged(2))  # so that all is read
        await watch.until(lambda hop: hop.mac == OTHER)

    follow(monkeypatch, story)


def test_an_interface_that_goes_up_and_down_while_it_is_read_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(kernel: Kernel, watch: Watch) -> None:
        down = replace(ETH0, up=False, carrier=False)
        kernel.tell(down)
        await watch.until(lambda hop: hop.reason == "eth0 is down")
        kernel.meanwhile["link"] = down
        kernel.tell(ETH0)
        await watch.until(lambda hop: watch.ways_back == 1)  # what was read first is that it is up
        await watch.until(lambda hop: hop.reason == "eth0 is down")

    follow(monkeypatch, story)
