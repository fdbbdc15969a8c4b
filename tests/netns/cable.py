"""A cable between two network namespaces, and what follows next hops in one of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.model import Address, NextHop
from agent.network.nexthop import NextHops

OURS_MAC = "02:00:00:00:00:01"
PEER_MAC = "02:00:00:00:00:21"
PEER = ip_address("10.9.0.21")
PEER6 = ip_address("fd09::21")


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


@dataclass
class Net:
    """A namespace for us, with ``eth0``, and one for a peer at the other end of the cable."""

    us: str
    peer: str

    def ours(self, command: str) -> str:
        return ip("-n", self.us, *command.split())

    def peers(self, command: str) -> str:
        return ip("-n", self.peer, *command.split())

    def sysctl(self, namespace: str, **settings: object) -> None:
        words = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
        ip("netns", "exec", namespace, "sysctl", "-qw", *words)

    def cable(self) -> None:
        """Make and configure eth0 on both sides; also when it was removed."""
        self.ours(f"link add eth0 address {OURS_MAC} type veth peer name eth0 netns {self.peer}")
        self.peers(f"link set eth0 address {PEER_MAC}")
        # Failures and staleness within tenths of a second instead of half a minute.
        for family in ("ipv4", "ipv6"):
            quick = {
                "mcast_solicit": 2,
                "ucast_solicit": 1,
                "retrans_time_ms": 50,
                "delay_first_probe_time": 0,
                "base_reachable_time_ms": 500,
                "locktime": 0,
            }
            for key, value in quick.items():
                if family == "ipv4" or key != "locktime":
                    self.sysctl(self.us, **{f"net__{family}__neigh__eth0__{key}": value})
        self.ours("addr add 10.9.0.2/24 dev eth0")
        self.ours("addr add fd09::2/64 dev eth0 nodad")
        self.peers(f"addr add {PEER}/24 dev eth0")
        self.peers(f"addr add {PEER6}/64 dev eth0 nodad")
        self.ours("link set eth0 up")
        self.peers("link set eth0 up")

    def without_ipv6(self) -> None:
        """Take IPv6 from our eth0, for tests that count what is told of.

        The kernel adds IPv6 addresses some time after the command that causes them, the
        link-local one once there is a carrier. Each is told of, though no next hop differs.
        """
        self.sysctl(self.us, net__ipv6__conf__eth0__disable_ipv6=1)


@contextlib.contextmanager
def wired(name: str) -> Iterator[Net]:
    """Two namespaces with a cable; they go with the block."""
    made = Net(f"st-{name}-{os.getpid()}-us", f"st-{name}-{os.getpid()}-peer")
    try:
        for namespace in (made.us, made.peer):
            ip("netns", "add", namespace)
            made.sysctl(namespace, net__ipv6__conf__default__accept_dad=0)
            ip("-n", namespace, "link", "set", "lo", "up")
        made.sysctl(made.peer, net__ipv4__conf__default__arp_notify=1)
        made.cable()
        yield made
    finally:
        for namespace in (made.us, made.peer):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def run_in(namespace: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run an asyncio program with the sockets of another namespace, in a thread of its own."""
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            with Path(f"/run/netns/{namespace}").open() as handle:
                os.setns(handle.fileno(), os.CLONE_NEWNET)

            async def limited() -> None:
                async with asyncio.timeout(300):
                    await main()

            asyncio.run(limited())
        except BaseException as error:  # noqa: BLE001 - carried over to the test's thread
            failures.append(error)

    thread = threading.Thread(target=enter, name=namespace)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@dataclass
class Watch:
    """A running NextHops, and how often it told of a change."""

    names: tuple[str, ...] = ("eth0",)
    hops: NextHops = field(init=False)
    changes: int = 0
    ways_back: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.hops = NextHops(self.names, self._note, self._note_way_back)

    def _note_way_back(self) -> None:
        self.ways_back += 1

    def _note(self, _addresses: object) -> None:
        self.changes += 1
        self._changed.set()

    async def until(self, address: Address, condition: Callable[[NextHop], bool]) -> NextHop:
        """Wait for a change that brings the condition about; changes must be told of."""
        try:
            async with asyncio.timeout(120):
                while not condition(hop := self.hops.get(address)):
                    self._changed.clear()
                    await self._changed.wait()
                return hop
        except TimeoutError:
            pytest.fail(f"still {self.hops.get(address)}")

    async def until_told(self) -> None:
        """Wait for the next time that it tells of a change."""
        told = self.changes
        async with asyncio.timeout(120):
            while self.changes == told:
                self._changed.clear()
                await self._changed.wait()

    async def until_reason(self, address: Address, reason: str) -> NextHop:
        return await self.until(address, lambda hop: hop.reason == reason)

    async def until_mac(self, address: Address, mac: str) -> NextHop:
        return await self.until(address, lambda hop: hop.mac == mac and not hop.reason)


def follow(
    net: Net,
    addresses: set[Address],
    story: Callable[[Watch], Awaitable[None]],
    *names: str,
) -> None:
    """Play a story on a running NextHops of the addresses, by ``eth0`` or the interfaces named."""

    async def main() -> None:
        watch = Watch(names or ("eth0",))
        watch.hops.set_addresses(addresses)
        runner = asyncio.create_task(watch.hops.run())
        await watch.hops.ready()
        await story(watch)
        assert not runner.done()
        runner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await runner

    run_in(net.us, main)
