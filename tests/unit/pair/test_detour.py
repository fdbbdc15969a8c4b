"""To whom packets of unknown flows go: to those who live, take them, and can be reached."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace

import numpy as np
import pytest

from agent.dataplane import abi
from agent.dataplane.constants import Clock, Features
from agent.failover.model import Failover, FlowSync
from agent.failover.times import ALIVE_S
from agent.flowsync.sync import Other
from agent.model import Config, NextHop
from agent.pair import detour
from agent.pair.detour import Detour, addresses, ways

ONE, TWO, OWN = map(ip_address, ("10.0.0.2", "10.0.0.3", "10.0.0.1"))
CONFIG = Config("st", "eth0", failover=Failover(sync=FlowSync(peers=(ONE, TWO))))
PORT = CONFIG.gue_port
NOW_S = 1000.0


def hop(address, mac: str | None = "02:00:00:00:00:07", ifindex: int = 3) -> NextHop:
    return NextHop(address, ifindex, mac, "02:00:00:00:00:01", 1500, on_link=True)


def other(address=ONE, takes_at: int = PORT, heard_s: float = NOW_S) -> Other:
    return Other(address, OWN, takes_at, heard_s)


def found(*others: Other, hop_of=hop, now_s: float = NOW_S):
    return [(way.address, left_s) for way, left_s in ways(CONFIG, others, hop_of, 3, now_s)]


def test_one_lives_for_so_long_after_its_last_word() -> None:
    assert found(other(heard_s=NOW_S - 0.5)) == [(ONE, ALIVE_S - 0.5)]
    assert found(other(heard_s=NOW_S - ALIVE_S)) == []
    assert found(other(heard_s=NOW_S + 5)) == [(ONE, ALIVE_S)], "it was us who were away"


@pytest.mark.parametrize("takes_at", [0, PORT + 1])
def test_one_that_takes_none_or_at_another_port_gets_none(takes_at: int) -> None:
    assert found(other(takes_at=takes_at), other(TWO)) == [(TWO, ALIVE_S)]


def test_one_without_a_way_out_of_our_interfaces_gets_none() -> None:
    assert found(other(), other(TWO), hop_of=lambda a: hop(a, None if a == ONE else "x")) == [
        (TWO, ALIVE_S)
    ]


def test_a_link_local_address_says_nothing_without_its_interface() -> None:
    link_local = ip_address("fe80::1%eth0")
    config = replace(CONFIG, failover=Failover(sync=FlowSync(peers=(ONE, link_local))))
    assert addresses(config) == {ONE}
    assert found(other(link_local)) == []


class World:
    """A data plane in memory, and who is there."""

    def __init__(self) -> None:
        self.others: tuple[Other, ...] = ()
        self.known: dict[bytes, bytes] = {}
        self.hops = hop
        self.dataplane = SimpleNamespace(
            features=Features(sync=True), ifindex=3, clock=Clock(250, 10), tables=self,
            now_jiffies=lambda: 5000,
        )  # fmt: skip
        self.peers = np.zeros(abi.PEER_ROWS, dtype=abi.BACKEND)
        self.detour = Detour(self.dataplane, lambda: self.others, lambda a: self.hops(a))
        self.detour.aim(CONFIG)

    def items(self, _table: str):
        return list(self.known.items())

    def put(self, _table: str, key: bytes, value: bytes) -> None:
        self.known[key] = value

    def delete(self, _table: str, key: bytes) -> None:
        del self.known[key]


def test_the_packet_path_is_told_until_when_and_from_whom() -> None:
    world = World()
    world.others = (other(heard_s=NOW_S - 0.5), other(TWO, takes_at=0))
    world.detour.update(NOW_S)
    assert set(world.peers["until"].tolist()) == {5000 + 250}
    assert len(world.known) == 2, "who cannot be asked may ask"
    world.others = world.others[1:]
    world.detour.update(NOW_S)
    assert not world.peers["until"].any()
    assert len(world.known) == 1


def test_nothing_is_told_without_the_exchange_of_flows() -> None:
    world = World()
    world.others = (other(),)
    world.dataplane.features = Features()
    world.detour.update(NOW_S)
    assert not world.peers["until"].any()
    assert world.detour.takes_at == 0


def test_a_node_takes_packets_only_where_its_program_sees_them() -> None:
    world = World()
    assert world.detour.takes_at == PORT
    world.hops = lambda address: hop(address, None if address == TWO else "02:00:00:00:00:07")
    assert world.detour.takes_at == 0


def test_a_defect_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detour, "DETOURS_WRITTEN_S", 0.001)
    world = World()
    told = asyncio.Event()

    def others() -> tuple[Other, ...]:
        if not world.peers["until"].any():
            world.peers["until"] = 1
            raise ValueError("a defect")
        told.set()
        return ()

    monkeypatch.setattr(world.detour, "_others", others)

    async def run() -> None:
        running = asyncio.create_task(world.detour.run())
        async with asyncio.timeout(60):
            await told.wait()
        running.cancel()

    asyncio.run(run())
