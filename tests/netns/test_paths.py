"""Health checks by the VIP over a real cable, to a Linux host that has the VIP, or has it not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from agent import sockfilter
from agent.errors import NetworkError
from agent.model import Config, Forward
from agent.network import paths
from agent.network.paths import Paths
from agent.network.reset import RawSender
from agent.state.segment import ACK, RST, SYN, Segment
from agent.state.way import FIRST_PORT, LAST_PORT, Answer, Way, refusal
from tests.netns.cable import PEER, PEER6, PEER_MAC, Net, Watch, follow, ip, run_in, wired
from tests.netns.segment import inside
from tests.polling import readable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

VIPS = {4: "10.99.0.1", 6: "fd99::1"}
PEERS = {4: PEER, 6: PEER6}
PORT, CLOSED = 80, 81
SECRET = 0xBEEF
families = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def net() -> Iterator[Net]:
    """The peer has the VIPs, and a server that listens on all of its addresses."""
    with wired("paths") as made, contextlib.ExitStack() as opened:
        for vip in VIPS.values():
            made.peers(f"address add {vip}/{128 if ':' in vip else 32} dev lo nodad")
        with inside(made.peer):
            opened.enter_context(
                socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
            )
        yield made


def way(version: int, port: int = PORT) -> Way:
    peer = PEERS[version]
    return Way(Forward.DSR, type(peer)(VIPS[version]), port, peer)


async def answered(asked: Paths, asks: Way, patience_s: float = 0.5) -> Answer | None:
    """Return the first answer. For a moment after an IPv6 address has been added, the kernel is
    still at work on it and loses a SYN; a health check asks again, and so does this.

    An answer that comes after ``patience_s`` is not taken, and leaves something half open.
    """
    while True:
        try:
            async with asyncio.timeout(patience_s):
                return await asked.ask(asks)
        except TimeoutError:
            continue


def asking(net: Net, version: int, story: Callable[[Paths], Awaitable[None]]) -> None:
    async def play(watch: Watch) -> None:
        await watch.until_mac(PEERS[version], PEER_MAC)
        asked = Paths(watch.hops.get, lambda: Config("st-paths", "eth0"))
        runner = asyncio.create_task(asked.run())
        await asyncio.sleep(0)
        await story(asked)
        assert not runner.done()
        runner.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await runner

    follow(net, {PEERS[version]}, play)


@families
@pytest.mark.parametrize("master", [True, False], ids=["master", "backup"])
def test_a_host_with_the_vip_answers_and_keeps_nothing(net: Net, version: int, master: bool):
    """Whether this host has the VIP, so that its TCP takes no packet from there, or not."""
    if master:
        net.ours(f"address add {VIPS[version]}/{128 if version == 6 else 32} dev lo nodad")

    async def story(asked: Paths) -> None:
        assert await answered(asked, way(version), 10.0) == Answer(full=1500)
        found = await asyncio.gather(*(asked.ask(way(version)) for _ in range(400)))
        assert found == [Answer(full=1500)] * 400

    asking(net, version, story)
    left = ip("netns", "exec", net.peer, "ss", "-Htan", "state", "syn-recv")
    assert left == ""


@families
def test_a_server_that_does_not_listen_there_refuses(net: Net, version: int):
    async def story(asked: Paths) -> None:
        closed = way(version, CLOSED)
        assert await answered(asked, closed) == Answer(refusal(closed))

    asking(net, version, story)


@families
def test_a_host_without_the_vip_says_nothing_until_it_has_it(net: Net, version: int):
    vip = f"{VIPS[version]}/{128 if version == 6 else 32} dev lo"
    net.peers(f"address del {vip}")

    async def story(asked: Paths) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asked.ask(way(version))
        net.peers(f"address add {vip} nodad")
        async with asyncio.timeout(60):
            assert await answered(asked, way(version)) == Answer(full=1500)

    asking(net, version, story)


@families
def test_a_full_packet_is_answered_and_lost_where_the_mtu_is_smaller(net: Net, version: int):
    """The peer takes no larger ones, as a line in between might."""
    narrow = "nft 'add table netdev t; add chain netdev t in {type filter hook ingress device eth0 "
    narrow += "priority 0;}; add rule netdev t in meta length > 1400 drop'"

    async def story(asked: Paths) -> None:
        async with asyncio.timeout(60):
            await answered(asked, way(version), 10.0)
            assert await asked.ask(way(version), 1500) == Answer(full=1500)
        ip("netns", "exec", net.peer, "sh", "-c", narrow)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asked.ask(way(version), 1500)
        assert await asked.ask(way(version), 1400) == Answer(full=1500)

    asking(net, version, story)
    left = ip("netns", "exec", net.peer, "ss", "-Htan", "state", "syn-recv")
    assert left == ""


@families
def test_what_cannot_be_asked_is_not_held_against_the_server(net: Net, version: int):
    async def story(asked: Paths) -> None:
        elsewhere = replace(way(version), backend=PEERS[version] + 1)  # no next hop is known
        assert await asked.ask(elsewhere) is None

    asking(net, version, story)


def test_an_interface_that_was_made_anew_is_used(net: Net):
    """A packet socket stays bound to the one that has gone, even if the new one has its number."""
    frame = b"\xff" * 12 + b"\x88\xb5" + bytes(46)

    async def story() -> None:
        with RawSender() as sender:
            for _ in range(3):
                ip(
                    *[
                        "link",
                        "add",
                        "name",
                        "pair0",
                        "index",
                        "77",
                        "type",
                        "veth",
                        "peer",
                        "name",
                        "pair1",
                    ]
                )
                ip(*["link", "set", "pair0", "up"])
                ip(*["link", "set", "pair1", "up"])
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as heard:
                    heard.bind(("pair1", 0x88B5))
                    heard.settimeout(0.2)
                    async with asyncio.timeout(60):
                        while True:  # the kernel takes a moment to use a new interface
                            sender.frame(77, frame)
                            with contextlib.suppress(TimeoutError):
                                assert heard.recv(100) == frame
                                break
                            await asyncio.sleep(0)
                ip(*["link", "del", "pair0"])
                with pytest.raises(NetworkError):
                    sender.frame(77, frame)

    run_in(net.us, story)


@families
def test_what_came_before_the_filter_is_not_heard(
    net: Net, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket hears from the moment it is made: here a stranger's packet comes just then."""
    ours, peer = "10.9.0.2" if version == 4 else "fd09::2", PEERS[version]
    early = Segment(peer, PORT, type(peer)(ours), FIRST_PORT, 7, 0, SYN)
    right = replace(early, ack=SECRET << 16 | 5, flags=SYN | ACK)
    attach = sockfilter.attach

    async def story() -> None:
        with inside(net.peer):
            sender = raw(version)

        def late(sock: socket.socket, steps: Any) -> None:
            sender.sendto(early.packet(), (ours, 0))
            while not readable(sock, 10):
                pass
            attach(sock, steps)

        monkeypatch.setattr(sockfilter, "attach", late)
        heard = paths._listening(version, SECRET)
        with contextlib.closing(sender), contextlib.closing(heard):
            sender.sendto(right.packet(), (ours, 0))
            assert readable(heard, 60)
            assert Segment.read(heard.recv(2048), version) == right

    run_in(net.us, story)


@families
def test_strangers_cannot_fill_the_sockets(net: Net, version: int):
    """Of what comes to our ports, the kernel gives us what acknowledges a number of ours."""
    ours = "10.9.0.2" if version == 4 else "fd09::2"
    peer = PEERS[version]
    right = Segment(peer, PORT, type(peer)(ours), FIRST_PORT, 7, SECRET << 16 | 5, SYN | ACK)
    wrong = [
        replace(right, ack=(SECRET ^ 1) << 16 | 5),
        replace(right, ack=0, flags=SYN),
        replace(right, to_port=FIRST_PORT - 1),
        replace(right, to_port=LAST_PORT + 1),
    ]
    datagram = bytearray(right.packet())
    datagram[9 if version == 4 else 6] = 17
    last = replace(right, to_port=LAST_PORT, flags=RST | ACK)

    async def story() -> None:
        with contextlib.closing(paths._listening(version, SECRET)) as heard:
            with inside(net.peer), contextlib.closing(raw(version)) as sender:
                for packet in (right.packet(), *(each.packet() for each in wrong), datagram,
                               last.packet()):  # fmt: skip
                    sender.sendto(packet, (ours, 0))
            found = []
            async with asyncio.timeout(60):
                while last not in found:
                    with contextlib.suppress(BlockingIOError):
                        found.append(Segment.read(heard.recv(2048), version))
                    await asyncio.sleep(0.01)
            assert found == [right, last]

    run_in(net.us, story)


def raw(version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
