"""Two balancers behave as one: agents and failover processes, under load, in every trouble.

Nothing here depends on how long something takes, only on what fails when.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from agent.model import Forward, Scheduler
from lbctl.lab import build, failover, processes
from lbctl.lab.failover import BACKUP, MASTER
from lbctl.lab.topology import Node
from tests.netns.failover import crowd
from tests.netns.failover.crowd import Crowd
from tests.netns.failover.pair import Pair, deaf, pair
from tests.netns.site import assert_unharmed, wait_until

CROWD = 1000
RUSH_PER_S = 10_000


@pytest.fixture(scope="module")
def here() -> Iterator[Pair]:
    name = f"st-pair-{os.getpid()}"
    with pair(name=name, backends=3, scheduler=Scheduler.ROUND_ROBIN) as built:
        yield built


def all_go_on(people: Crowd, rounds: int = 2) -> None:
    """Every connection gets more answers, of the same backend; none has broken."""
    wanted = people.rounds() + rounds
    wait_until(
        f"answers on {people.open} connections", lambda: people.rounds() >= wanted or people.broken
    )
    assert not people.broken, (len(people.broken), people.broken[:3])
    assert people.rounds() >= wanted


def test_a_thousand_connections_outlive_the_master_and_new_ones_fail_in_the_outage_only(
    here: Pair,
) -> None:
    here.settle()
    with crowd.held(here.lab, CROWD) as people:
        all_go_on(people)
        here.await_flows(here.second, people)
        with here.rush(RUSH_PER_S) as rushed:
            time.sleep(0.5)
            killed_s = time.monotonic()
            failover.strike(here.lab, here.first)
            failover.await_role(here.lab, here.second, MASTER)
            back_s = time.monotonic()
            time.sleep(1.0)
        assert rushed.started > 0
        outside = rushed.failed_outside(killed_s, back_s)
        assert not outside, (len(outside), outside[:3])
        people.grow(CROWD // 5)  # that only the successor has seen
        all_go_on(people)
        build.revive(here.lab, here.first)
        here.settle()
        all_go_on(people)
        assert people.backends() == {"be1", "be2", "be3"}


@pytest.mark.soak
@pytest.mark.parametrize("silent", [False, True], ids=["carrier-lost", "silent"])
def test_connections_outlive_a_cable_that_is_cut_and_mended(here: Pair, silent: bool) -> None:
    """Who was cut off knows neither the flows nor the backends when it is back."""
    here.settle()
    with crowd.held(here.lab, 200) as people:
        all_go_on(people)
        here.await_flows(here.second, people)
        failover.cut(here.lab, here.first, silent=silent)
        failover.await_role(here.lab, here.second, MASTER)
        people.grow(100)
        if silent:  # it has never stopped being master
            wait_until("lb1 sees no backend", lambda: here.backends_up(here.first) == 0)
            wait_until("lb1 is behind all others", lambda: here.priorities(here.first) == {1})
        else:  # it takes no backend for dead whose link is its own
            failover.await_role(here.lab, here.first, "fault")
            assert here.backends_up(here.first) == 6
        failover.mend(here.lab, here.first)
        here.settle()
        all_go_on(people)


def test_nobody_notices_a_handover_the_way_back_or_a_process_that_is_stopped(here: Pair) -> None:
    here.settle()
    with crowd.held(here.lab, CROWD) as people, here.unnoticed(1000):
        all_go_on(people)
        here.hand_over(here.first)
        failover.await_role(here.lab, here.second, MASTER)
        failover.await_role(here.lab, here.first, BACKUP)
        all_go_on(people)
        here.lbctl(here.first, "failover", "release")
        here.settle()
        all_go_on(people)
        stop_failover(here, here.first)
        failover.await_role(here.lab, here.second, MASTER)
        all_go_on(people)
        failover.start(here.lab, here.first)
        here.settle()
        all_go_on(people)


def test_lost_adverts_alone_make_no_second_master(here: Pair) -> None:
    """A host that stalls for longer than a heartbeat holds may cost an attempt: nobody vouches for
    the master then, and the backup rightly takes over.
    """
    assert any(stays_backup_without_adverts(here) for _ in range(3))


def stays_backup_without_adverts(here: Pair) -> bool:
    """Lose adverts until both balancers say what is wrong; whether there was one master only."""
    here.settle()
    before = here.times_master(here.second)

    def is_named() -> bool:
        seen = [here.problems(balancer) for balancer in (here.first, here.second)]
        return seen == [{"unheard"}] * 2 or seen == [{"two-masters"}] * 2

    with deaf(here):
        wait_until("it is said that adverts are lost", is_named)
    here.await_problems()
    here.settle()
    return here.times_master(here.second) == before


@pytest.mark.soak
def test_a_master_that_is_not_heard_and_dies_is_succeeded(here: Pair) -> None:
    here.settle()
    with crowd.held(here.lab, 100) as people:
        with deaf(here):
            here.await_problems("unheard")
            all_go_on(people)
            here.await_flows(here.second, people)
            failover.strike(here.lab, here.first)
            failover.await_role(here.lab, here.second, MASTER, 60.0)
            all_go_on(people)
        build.revive(here.lab, here.first)
        here.settle()
        here.await_problems()
        all_go_on(people)


@pytest.mark.soak
def test_two_masters_are_named_on_both(here: Pair) -> None:
    here.settle()
    here.set_witness(False)
    with deaf(here):
        failover.await_role(here.lab, here.second, MASTER, 60.0)
        here.await_problems("two-masters")
    here.settle()
    here.await_problems()
    here.set_witness(True)


def test_a_master_stays_master_while_its_agent_swaps_the_program(here: Pair) -> None:
    here.settle()
    before = [here.times_master(node) for node in (here.first, here.second)]
    with here.rush(300) as rushed:
        recompile(here, here.first, "gue")
    assert [here.times_master(node) for node in (here.first, here.second)] == before
    assert here.is_settled()
    assert rushed.started > 0
    assert not rushed.failed, rushed.failed[:3]


@pytest.mark.soak
@pytest.mark.parametrize("delay_s", [0.0, 0.7], ids=["near", "far"])
def test_nobody_notices_that_both_processes_are_stopped_at_one_moment(
    here: Pair, delay_s: float
) -> None:
    """As when a container is stopped. A handshake with a client that is far away takes longer than
    new flows are held back before the rest is told.
    """
    here.settle()
    node = here.first
    names = [node.name, failover.process_of(node)]
    pids = [pid for name in names if (pid := processes.pid_of(here.lab.run_dir, name))]
    assert len(pids) == len(names)
    # Every packet of a long way goes through a program.
    rate = 100 if delay_s else 500
    with here.far(delay_s), crowd.held(here.lab, 20) as people, here.unnoticed(rate):
        all_go_on(people)
        processes.stop(here.lab.run_dir, pids, grace_s=60.0)
        failover.await_role(here.lab, here.second, MASTER)
        all_go_on(people)
    log = (here.lab.run_dir / f"{node.name}.log").read_text()
    # An earlier test has stopped a failover process of the same agent, and that was another one.
    _, _, after = log.rpartition("the VIPs are handed over first")
    assert '"handed over"' in after, log[-2000:]


def restart_agent(here: Pair, node: Node) -> None:
    here.at(node).stop_agent(signal.SIGTERM)
    here.at(node).start_agent()


def kill_agent(here: Pair, node: Node) -> None:
    here.at(node).stop_agent(signal.SIGKILL)
    here.at(node).start_agent()


def restart_failover(here: Pair, node: Node) -> None:
    """As a service manager does: a process that is stopped hands over first."""
    failover.await_role(here.lab, node, MASTER if node == here.first else BACKUP)
    stop_failover(here, node)
    failover.start(here.lab, node)
    failover.await_answer(here.lab, node)


def stop_failover(here: Pair, node: Node) -> None:
    pid = processes.pid_of(here.lab.run_dir, failover.process_of(node))
    assert pid is not None
    processes.stop(here.lab.run_dir, [pid], grace_s=60.0)


def kill_failover(here: Pair, node: Node) -> None:
    processes.kill(here.lab.run_dir, failover.process_of(node))
    failover.start(here.lab, node)
    failover.await_answer(here.lab, node)


def reweigh(here: Pair, node: Node) -> None:
    document = here.at(node).config()
    backend = document["services"][0]["backends"][0]
    backend["weight"] = 150 - backend["weight"]
    here.at(node).reload(document)


def recompile(here: Pair, node: Node, forward: str = "ipip") -> None:
    """A feature that the running program lacks, so that it is compiled anew."""
    before = program_id(here, node)
    document = here.at(node).config()
    services = [s for s in document["services"] if s["name"] != "other"]
    own = next(s for s in services if s["name"] == "crowd4-dsr")
    document["services"] = [*services, own | {"name": "other", "port": 9300, "forward": forward}]
    here.at(node).reload(document)
    wait_until("another program", lambda: program_id(here, node) != before)


def program_id(here: Pair, node: Node) -> int:
    return int(here.at(node).get("/v1/status")["dataplane"]["program_id"])


type Trouble = Callable[[Pair, Node], None]


@pytest.mark.soak
@pytest.mark.parametrize(
    "troubles",
    [(restart_agent, kill_agent), (restart_failover,), (reweigh, recompile)],
    ids=["agent", "failover-process", "configuration"],
)
def test_nobody_notices(here: Pair, troubles: tuple[Trouble, ...]) -> None:
    here.settle()
    befall(here, troubles)


@pytest.mark.soak
def test_nobody_notices_a_failover_process_that_is_killed_and_started_again(here: Pair) -> None:
    """With adverts each second, as by default, it is back before it is missed."""
    here.settle()
    here.set_instances(advert_interval="1s")
    here.settle()
    befall(here, (kill_failover,))
    assert here.times_master(here.second) == 0, "lb1 was not missed"
    here.set_instances(advert_interval="100ms")


def befall(here: Pair, troubles: tuple[Trouble, ...]) -> None:
    """Each of the troubles on the backup, then on the master: under load, which sees nothing."""
    with crowd.held(here.lab, 200) as people, here.at(here.first).load(rate=300) as traffic:
        for trouble, node in itertools.product(troubles, (here.second, here.first)):
            trouble(here, node)
            here.settle()
            all_go_on(people)
    assert_unharmed(traffic)
    moved = [r for r in traffic["records"] if r.get("event") == "moved"]
    assert not moved, moved[:3]


@pytest.mark.soak
def test_connections_that_are_rewritten_outlive_the_master_and_its_return() -> None:
    """What backends know the balancer by, their gateway or who asks them, moves with the VIPs."""
    options = {"backends": 2, "forward": Forward.NAT, "arms": 2}
    with pair(name=f"st-pair-nat-{os.getpid()}", **options) as there:
        outlive(there)


def outlive(there: Pair, count: int = 400) -> None:
    with crowd.held(there.lab, count) as people:
        all_go_on(people)
        there.await_flows(there.second, people)
        failover.strike(there.lab, there.first)
        failover.await_role(there.lab, there.second, MASTER)
        people.grow(count // 4)
        all_go_on(people)
        build.revive(there.lab, there.first)
        failover.await_role(there.lab, there.first, MASTER)
        all_go_on(people)
