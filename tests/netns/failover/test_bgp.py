"""Two balancers behind an ECMP router: reached by both, and one of them goes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from agent.failover.model import Mode
from tests.netns.failover.routed import EXAMPLES, INTERFACE, Routed, ask, frames_to_vips, routed
from tests.netns.site import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture(scope="module")
def net() -> Iterator[Routed]:
    with routed("bgp") as made:
        yield made


def assert_unharmed(load: dict[str, Any]) -> None:
    """Requests were answered, all of them, and no held connection broke."""
    assert load["requests"] > 0
    assert (load["failed"], load["broken"]) == (0, []), load


def both(net: Routed) -> None:
    for balancer in ("lb1", "lb2"):
        net.set_mode(balancer, Mode.NORMAL)
    net.await_ways("lb1", "lb2")


def goes_on(
    net: Routed, connections: list[HTTPConnection], backends: list[str], *balancers: str
) -> None:
    """The same backends answer on all connections until these balancers are used, and after it."""
    ways = [set(balancers)] * 2

    def nothing_breaks() -> bool:
        assert [ask(connection) for connection in connections] == backends
        return [net.ways(4), net.ways(6)] == ways

    wait_until(f"routes to {balancers}", nothing_breaks)
    for _ in range(3):
        nothing_breaks()


def test_both_balancers_are_announced_and_each_has_a_share(net: Routed) -> None:
    both(net)
    with net.tap("lb1") as first, net.tap("lb2") as second:
        connections = net.connect(32)
        assert {ask(connection) for connection in connections} == {"be1", "be2", "be3"}
        # Four packets or more for each connection: not even two of 32 would be no share.
        assert min(frames_to_vips(first), frames_to_vips(second)) >= 12


def test_a_balancer_that_is_handed_over_gets_nothing_more_and_nobody_notices(net: Routed) -> None:
    both(net)
    connections = net.connect(32)
    backends = [ask(connection) for connection in connections]
    with net.load() as load:
        net.set_mode("lb1", Mode.HANDED_OVER)
        net.await_ways("lb2")

        def nothing_comes() -> bool:
            with net.tap("lb1") as heard:
                assert [ask(connection) for connection in connections] == backends
                return frames_to_vips(heard) == 0

        # A packet may still be under way to lb1 when the route has changed.
        wait_until("nothing more comes to lb1", nothing_comes)
        net.set_mode("lb1", Mode.NORMAL)
        net.await_ways("lb1", "lb2")
        assert [ask(connection) for connection in connections] == backends
    assert_unharmed(load)


def test_a_balancer_that_was_cut_off_silently_breaks_nothing_when_it_is_back(net: Routed) -> None:
    """It knows neither the flows of meanwhile nor, at first, the backends."""
    both(net)
    connections = net.connect(16)
    backends = [ask(connection) for connection in connections]
    net.cut("lb1")
    net.await_ways("lb2")
    wait_until("lb1 has taken its VIPs off", lambda: net.role("lb1") == "fault")
    connections += net.connect(64)
    backends = backends + [ask(connection) for connection in connections[16:]]
    net.mend("lb1")
    goes_on(net, connections, backends, "lb1", "lb2")


def test_a_balancer_without_its_program_is_withdrawn_until_it_has_it_again(net: Routed) -> None:
    both(net)
    connections = net.connect(16)
    backends = [ask(connection) for connection in connections]
    net.kill("lb1", "agent")  # or it would attach it again at once
    assert net.ways(4) == {"lb1", "lb2"}
    net.run("lb1", "ip", "link", "set", INTERFACE, "xdp", "off")
    net.await_ways("lb2")
    assert [ask(connection) for connection in connections] == backends
    net.start_agent("lb1")
    net.await_ways("lb1", "lb2")
    assert [ask(connection) for connection in connections] == backends


def test_connections_go_on_when_a_balancer_dies(net: Routed) -> None:
    both(net)
    connections = net.connect(32)
    backends = [ask(connection) for connection in connections]
    with net.load() as load:
        net.cut("lb2")  # its kernel says goodbye to nobody
        for process in ("bird", "failover", "agent"):
            net.kill("lb2", process)
        net.await_ways("lb1")  # by BFD
        assert [ask(connection) for connection in connections] == backends
    assert_unharmed(load)


@pytest.mark.parametrize("example", ["bird.conf", "router.conf"])
def test_the_examples_are_what_bird_reads(example: str) -> None:
    command = ["bird", "-p", "-c", str(EXAMPLES / example)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def busy() -> Iterator[Routed]:
    """Of a scheduler that would not choose the same backend again."""
    with routed("bgps") as made:
        made.set_scheduler("least-conn")
        yield made


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["handed-over", "cut-off"])
def test_twenty_times_away_and_back_break_none_of_a_thousand_connections(
    busy: Routed, how: str
) -> None:
    """What is open when a balancer goes silently may break with it; nothing breaks by a return."""
    both(busy)
    for _ in range(20):
        connections = busy.connect(500)
        backends = [ask(connection) for connection in connections]
        busy.await_flows(connections)
        if how == "cut-off":
            busy.cut("lb1")
            busy.await_ways("lb2")
            wait_until("lb1 has taken its VIPs off", lambda: busy.role("lb1") == "fault")
        else:
            busy.hand_over("lb1")
            busy.await_ways("lb2")
        assert [ask(connection) for connection in connections] == backends
        more = busy.connect(500)
        connections, backends = connections + more, backends + [ask(each) for each in more]
        if how == "cut-off":
            busy.mend("lb1")
        else:
            busy.release("lb1")
        goes_on(busy, connections, backends, "lb1", "lb2")
        for connection in connections:
            connection.close()
