"""Idle connections of an overloaded backend are reset, and the clients' next requests go elsewhere.

Real clients and servers; what would take a while, idleness, is written into the flow table.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from agent.dataplane import abi, pins, survey
from agent.dataplane.constants import sizes
from agent.dataplane.program import possible_cpus
from agent.dataplane.tables import SharedTables
from agent.model import Forward, Hook, Scheduler, Tables
from lbctl.lab import netns
from lbctl.lab.documents import FLOWS
from lbctl.lab.topology import PORT
from tests.netns.site import Site, site, wait_until
from tests.packet.records import rested

RATE = 4.0
IDLE, BUSY = 20, 10
STREAM_S = 4

type Connection = http.client.HTTPConnection


@pytest.fixture
def here() -> Iterator[Site]:
    """In nat: packets of both directions have to find their way."""
    with site(
        name=f"st-even-{os.getpid()}",
        backends=2,
        forward=Forward.NAT,
        arms=2,
        hook=Hook.NATIVE,
        scheduler=Scheduler.LEAST_CONN,
    ) as built:
        yield built


def connected(here: Site, vip: Any) -> Connection:
    connection = http.client.HTTPConnection(str(vip), PORT, timeout=60)
    with netns.inside(here.lab.node("client").namespace):
        connection.connect()
    return connection


def answered(connection: Connection) -> str:
    """The backend that answers a request, with more than the head of an answer."""
    connection.request("GET", "/slow?seconds=0&chunks=100")
    answer = connection.getresponse()
    answer.read()
    return str(answer.getheader("X-Backend"))


def answered_if_open(connection: Connection) -> str | None:
    """The backend that answers a request; None: it was reset, maybe just now."""
    try:
        return None if is_reset(connection) else answered(connection)
    except ConnectionError:
        return None


def is_reset(connection: Connection) -> bool:
    """Whether the client's kernel has been told that the connection is no more."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def tables_of(here: Site) -> SharedTables:
    return SharedTables(
        pins.pins_of(here.balancer.namespace), sizes(Tables(flows=FLOWS), possible_cpus())
    )


def make_idle(tables: SharedTables, ticks: int = 4) -> None:
    """As if no packet had come for so long, in flows where nothing waits."""
    used, words = survey.used_slots(tables.flows)
    quiet = survey.state_of(words) == abi.FlowState.ESTABLISHED
    tables.flows[used[quiet]] = rested(words[quiet], ticks)


def configure(here: Site, state: str, rate: float) -> None:
    """The second backend's state, and how many connections may be reset a second."""
    document = here.config()
    for service in document["services"]:
        service["rebalance"] = {"rate": rate, "idle": "4s", "skew": 1.5}
        service["health"] = {"type": "none"}  # no check that is late moves anybody
        service["backends"][1]["state"] = state
    here.reload(document)


def opened_on_one(here: Site, vip: Any) -> list[Connection]:
    """Connections that have been answered by the first backend, the only one there is."""
    found = [connected(here, vip) for _ in range(IDLE)]
    assert {answered(one) for one in found} == {"be1"}
    return found


def streamed(here: Site, vip: Any) -> list[Connection]:
    """Connections on which answers come in small pieces."""
    found = [connected(here, vip) for _ in range(BUSY)]
    for stream in found:
        stream.request("GET", f"/slow?seconds={STREAM_S}&chunks=100")
    return found


@pytest.mark.soak  # tests/unit/test_rebalancing.py decides the same
def test_idle_connections_move_at_the_stated_rate_and_busy_ones_stay(here: Site) -> None:
    configure(here, "drain", RATE)
    idle = {vip: opened_on_one(here, vip) for vip in here.lab.vips}
    time.sleep(0.2)  # the last acknowledgements are delayed ones
    make_idle(tables_of(here))
    streams = {vip: streamed(here, vip) for vip in here.lab.vips}
    began = time.monotonic()
    configure(here, "active", RATE)

    def gone() -> Counter[Any]:
        return Counter({vip: sum(map(is_reset, those)) for vip, those in idle.items()})

    wait_until("idle connections are reset", lambda: all(gone()[vip] >= 4 for vip in idle))
    seen, spent_s = gone(), time.monotonic() - began
    assert all(count <= RATE * (spent_s + 1) for count in seen.values()), (seen, spent_s)
    for vip, those in idle.items():
        for stream in streams[vip]:
            answer = stream.getresponse()
            assert answer.getheader("X-Backend") == "be1"
            assert len(answer.read().splitlines()) == 100, "a request in flight is never cut"
        stayed = {one: backend for one in those if (backend := answered_if_open(one))}
        assert set(stayed.values()) == {"be1"}, "they stay"
        # Few enough that the other one still has fewest when the last of them is back.
        moved = [one for one in those if one not in stayed][: BUSY // 2]
        with contextlib.ExitStack() as stack:
            again = [stack.enter_context(contextlib.closing(connected(here, vip))) for _ in moved]
            assert {answered(one) for one in again} == {"be2"}, "where there is room"
