"""What two balancers tell each other over one stream."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from ipaddress import ip_network
from random import Random

import numpy as np
import pytest

from agent.errors import ConflictError, NetworkError
from agent.failover.syncstatus import LinkState
from agent.flowsync.flows import Look
from agent.flowsync.link import Presence
from agent.flowsync.sync import FlowSync
from agent.model import BackendRef
from agent.state.blocks import Block
from agent.weights.speeds import Learned
from tests.unit.failover.samples import WORD
from tests.unit.flowsync.pairs import HIGH, LOW, Node, nodes, running, until


def test_both_have_the_others_flows() -> None:
    async def run() -> None:
        one, two = nodes()
        one.table.flows = {slot: slot + 1 for slot in range(5000)}
        two.table.flows = {7: 70}
        async with running(one, two):
            await until("all told", lambda: len(two.table.heard) == 5000)
            await until("told back", lambda: one.table.heard == {7: 70})
            assert two.table.heard == one.table.flows
            await until("counted", lambda: two.table.accounted == 5000)
            assert (two.peer.name, one.peer.name) == ("lb1", "lb2")

    asyncio.run(run())


def test_what_changes_and_what_ends_is_told() -> None:
    async def run() -> None:
        one, two = nodes()
        one.table.flows = {1: 10, 2: 20}
        async with running(one, two):
            await until("both", lambda: two.table.heard == {1: 10, 2: 20})
            one.table.flows = {2: 21, 3: 30}
            await until("changed", lambda: two.table.heard == {2: 21, 3: 30})
            await until("counted", lambda: two.peer.gone_received == one.peer.gone_sent == 1)
            assert one.peer.full_sent == two.peer.full_received == 1

    asyncio.run(run())


def test_new_ids_come_before_the_flows_that_name_them() -> None:
    async def run() -> None:
        one, two = nodes()
        async with running(one, two):
            await until("names", lambda: two.table.heard_names == ["ids"])
            one.table.name, one.table.flows = "others", {1: 1}
            await until("told", lambda: two.table.heard == {1: 1})
            assert two.table.heard_names == ["ids", "others"]

    asyncio.run(run())


def test_everything_is_told_again_after_a_restart_of_either() -> None:
    async def run() -> None:
        one, two = nodes()
        one.table.flows = dict.fromkeys(range(100), 1)
        async with running(one, two):
            for again in (two, one, two):
                await until("told", lambda: len(two.table.heard) == 100)
                await again.stop()
                two.table.heard.clear()
                await again.start()
                await until("again", lambda: one.is_connected and two.is_connected)
            await until("told", lambda: len(two.table.heard) == 100)

    asyncio.run(run())


def test_what_ended_while_they_were_apart_is_gone_afterwards() -> None:
    async def run() -> None:
        one, two = nodes()
        one.table.flows = {1: 1, 2: 2}
        async with running(one, two):
            await until("told", lambda: len(two.table.heard) == 2)
            await two.stop()
            one.table.flows = {2: 2}
            await two.start()
            await until("gone", lambda: two.table.heard == {2: 2})

    asyncio.run(run())


def test_a_peer_that_understands_more_now_is_told_again() -> None:
    async def run() -> None:
        one, two = nodes()
        one.table.flows = {1: 1}
        async with running(one, two):
            await until("told", lambda: two.table.heard == {1: 1})
            two.table.heard.clear()
            two.table.wants_resync = True
            await until("again", lambda: two.table.heard == {1: 1})
            await until("counted", lambda: one.peer.full_sent == 2)

    asyncio.run(run())


def test_flush_returns_when_the_peer_has_it_all() -> None:
    async def run() -> None:
        one, two = nodes(interval_s=60.0)
        one.table.unfinished = {9: 9}
        async with running(one, two):
            await until("first", lambda: two.peer.full_received == 1)
            one.table.flows = {1: 1, 2: 2}
            assert one.sync
            result = await one.sync.flush(10.0)
            assert (result.done, result.flows) == (True, 3)
            assert two.table.heard == {1: 1, 2: 2, 9: 9}

    asyncio.run(run())


def test_flush_says_so_when_there_is_nobody() -> None:
    async def run() -> None:
        one, _ = nodes()
        async with running(one, connected=False):
            assert one.sync
            result = await one.sync.flush(1.0)
            assert not result.done
            assert "connected" in result.text

    asyncio.run(run())


def test_flush_gives_up_on_a_peer_that_installs_nothing() -> None:
    async def run() -> None:
        one, two = nodes()
        go_on = threading.Event()
        async with running(one, two):
            await until("first", lambda: two.peer.full_received == 1)
            two.table.before_install = lambda: (go_on.wait(60), None)[1]
            one.table.flows = {1: 1}
            assert one.sync
            result = await one.sync.flush(0.05)
            go_on.set()
            assert not result.done
            assert "not within" in result.text

    asyncio.run(run())


def test_a_flush_ends_with_the_stream() -> None:
    async def run() -> None:
        one, two = nodes()
        go_on = threading.Event()
        async with running(one, two):
            await until("first", lambda: two.peer.full_received == 1)
            two.table.before_install = lambda: (go_on.wait(60), None)[1]
            one.table.flows = {1: 1}
            assert one.sync
            flush = asyncio.create_task(one.sync.flush(20.0))
            await until("sent", lambda: one.peer.flows_sent == 1)
            asyncio.get_running_loop().call_later(0.05, go_on.set)
            await two.stop()
            result = await flush
            # It was being installed as the peer stopped: done, or not known.
            assert result.done or "peer" in result.text

    asyncio.run(run())


def test_the_peer_is_asked_to_take_an_instance() -> None:
    async def run() -> None:
        one, two = nodes()
        async with running(one, two):
            assert one.sync
            assert two.sync
            result = await one.sync.ask_take("web")
            assert (result.done, result.text) == (True, "master of web")
            assert (await one.sync.ask_take(None)).done
            assert two.taken == ["web", None]
            gave = await two.sync.ask_give("web")
            assert gave.text == f"no longer master of web, which {HIGH} is"
            assert not (await one.sync.ask_take("web", LOW)).done, "it is no peer"
            assert (await one.sync.ask_take("web", HIGH)).done

    asyncio.run(run())


def test_the_peer_knows_by_which_names_it_can_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.flowsync.link.HEARTBEAT_S", 0.02)

    async def run() -> None:
        one, two = nodes()
        one.presence = Presence(("web",))
        async with running(one, two):
            await until(
                "both know", lambda: (one.peer.instances, two.peer.instances) == ((), ("web",))
            )
            one.presence = Presence(("api", "web"))
            await until("it is told anew", lambda: two.peer.instances == ("api", "web"))
            assert (two.peer.routers, two.peer.routers_s) == (None, None)
            await one.stop()
            await until("nothing is known of who is away", lambda: two.peer.instances is None)

    asyncio.run(run())


def test_news_of_a_node_go_at_once_with_their_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hears of it late, being busy, still knows when it was so."""
    monkeypatch.setattr("agent.flowsync.link.HEARTBEAT_S", 1000.0)

    async def run() -> None:
        one, two = nodes()
        heard: list[float] = []
        two.heard = lambda: heard.append(time.monotonic())
        async with running(one, two):
            assert one.sync is not None
            for age_s in (0.0, 0.75, 30.0):
                at_s = time.monotonic() - age_s
                one.presence = Presence(("web",), (WORD,), at_s)
                before = len(heard)
                one.sync.beat()
                time.sleep(0.05)  # noqa: ASYNC251 (both are busy)
                await until("told", lambda n=before: len(heard) > n)
                assert two.peer.routers == (WORD,)
                assert two.peer.routers_s is not None
                late_s = two.peer.routers_s - at_s
                assert late_s >= -0.001, "it is never taken for earlier by more than the clocks say"
                assert late_s < time.monotonic() - at_s
            await one.stop()
            await until("nothing is known of who is away", lambda: two.peer.routers is None)

    asyncio.run(run())


def test_a_peer_that_cannot_take_says_why() -> None:
    def refuse(_instance: str | None) -> str:
        raise ConflictError("it is in fault", remedy="bring eth0 up")

    async def run() -> None:
        one, two = nodes()
        two.take = refuse
        async with running(one, two):
            assert one.sync
            result = await one.sync.ask_take("web")
            assert not result.done
            assert "it is in fault" in result.text
            assert result.peer == "127.0.0.2"

    asyncio.run(run())


def test_a_defect_in_what_is_asked_for_does_not_end_the_stream() -> None:
    def broken(_instance: str | None) -> str:
        raise RuntimeError("a defect")

    async def run() -> None:
        one, two = nodes()
        two.take = broken
        async with running(one, two):
            assert one.sync
            assert not (await one.sync.ask_take("web")).done
            two.take = str
            assert (await one.sync.ask_take("web")).done
            assert one.peer.connections == 1

    asyncio.run(run())


def test_a_slow_peer_is_not_taken_for_dead_and_memory_is_bounded() -> None:
    """It installs nothing for a while: what is sent stays within the credit."""

    async def run() -> None:
        one, two = nodes()
        go_on = threading.Event()
        two.table.before_install = lambda: (go_on.wait(60), None)[1]
        for table in (one.table, two.table):
            table.record_bytes = 1000
        one.table.flows = dict.fromkeys(range(12_000), 1)
        async with running(one, two):
            await until("some", lambda: one.peer.bytes_sent > 4_000_000)
            await asyncio.sleep(0.3)
            assert one.peer.bytes_sent < 6_000_000
            assert one.is_connected
            go_on.set()
            await until("all", lambda: len(two.table.heard) == 12_000)
            assert one.peer.connections == 1

    asyncio.run(run())


def test_the_bandwidth_is_kept() -> None:
    async def run() -> None:
        one, two = nodes(rate=500_000)
        for table in (one.table, two.table):
            table.record_bytes = 1000
        one.table.flows = dict.fromkeys(range(300), 1)
        began = time.monotonic()
        async with running(one, two):
            await until("all", lambda: len(two.table.heard) == 300)
            took_s = time.monotonic() - began
            # A burst and one frame may go beforehand.
            assert one.peer.bytes_sent <= 500_000 * (took_s + 0.05) + 25_000

    asyncio.run(run())


def test_the_lag_grows_while_nobody_is_there() -> None:
    async def run() -> None:
        one, two = nodes()
        one.table.flows = {1: 1}
        async with running(one, two):
            await until("held", lambda: one.peer.lag_s is not None and one.peer.lag_s < 1)
            await until("rtt", lambda: one.peer.rtt_ms is not None)
            await until("behind", lambda: two.peer.behind_s is not None)
            await two.stop()
            await until("apart", lambda: not one.is_connected)
            before = one.peer.lag_s
            await asyncio.sleep(0.05)
            assert before is not None
            assert one.peer.lag_s is not None
            assert one.peer.lag_s >= before + 0.05

    asyncio.run(run())


def test_settings_change_while_it_runs() -> None:
    async def run() -> None:
        one, two = nodes(interval_s=60.0)
        async with running(one, two):
            assert one.sync
            assert two.sync
            await until("first", lambda: two.peer.full_received == 1)
            one.table.flows = {1: 1}
            await one.sync.reconfigure(replace(one.settings, interval_s=0.01), one.key, "lb1")
            assert (await one.sync.flush(10.0)).done
            one.table.flows = {1: 2}
            await until("told", lambda: two.table.heard == {1: 2})
            assert one.peer.connections == 1

            await one.sync.reconfigure(replace(one.settings, peers=()), one.key, "lb1")
            assert one.sync.status() == ()
            await until("noticed", lambda: not two.is_connected)
            assert "stop" in two.peer.why or "closed" in two.peer.why

            await one.sync.reconfigure(one.settings, one.key, "lb1")
            await until("back", lambda: one.is_connected and two.is_connected)

    asyncio.run(run())


def test_a_new_secret_ends_the_stream_and_both_meet_under_it() -> None:
    async def run() -> None:
        one, two = nodes()
        async with running(one, two):
            assert one.sync
            assert two.sync
            await one.sync.reconfigure(one.settings, b"a newer secret of both", "lb1")
            await until("refused", lambda: one.peer.state is LinkState.REFUSED)
            await two.sync.reconfigure(two.settings, b"a newer secret of both", "lb2")
            await until("again", lambda: one.is_connected and two.is_connected)

    asyncio.run(run())


@pytest.mark.parametrize("waiting", [0, 1])
def test_whoever_starts_first_they_meet(waiting: int) -> None:
    async def run() -> None:
        pair = nodes()
        late: Node = pair[1 - waiting]
        async with running(pair[waiting], connected=False):
            await asyncio.sleep(0.05)
            async with running(late):
                await until("both", lambda: all(node.is_connected for node in pair))

    asyncio.run(run())


def test_who_comes_back_does_not_wait_until_the_other_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.flowsync.pairing.FIRST_RETRY_S", 60.0)
    monkeypatch.setattr("agent.flowsync.pairing.LONGEST_RETRY_S", 60.0)

    async def run() -> None:
        one, two = nodes()
        async with running(one, connected=False):
            await until("it has failed", lambda: "refused" in one.peer.why)
            async with running(two):
                await until("both", lambda: one.is_connected and two.is_connected)

    asyncio.run(run())


def test_a_peer_is_there_before_anything_runs() -> None:
    """So nobody takes a node for one that has all flows of its peers, because it shows none."""

    async def run() -> None:
        one, _ = nodes()
        sync = FlowSync(one.settings, one.key, "lb1", lambda _: one.table, _never, _never)
        (peer,) = sync.status()
        assert (peer.state, peer.full_received) == (LinkState.CONNECTING, 0)

    asyncio.run(run())


async def _never(_instance: str | None, **_: object) -> str:
    raise AssertionError


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_they_agree_in_the_end(seed: int) -> None:
    """Flows come and go, agents stop and come back, in the middle of anything."""
    random = Random(seed)

    async def run() -> None:
        pair = nodes()
        for table in (pair[0].table, pair[1].table):
            table.part_flows = 10
        async with running(*pair):
            for _ in range(25):
                node = random.choice(pair)
                for slot in random.sample(range(200), 40):
                    if random.random() < 0.4:
                        node.table.flows.pop(slot, None)
                    else:
                        node.table.flows[slot] = random.randrange(1, 1000)
                await asyncio.sleep(random.random() * 0.02)
                if random.random() < 0.3:
                    await node.stop()
                    await asyncio.sleep(random.random() * 0.02)
                    await node.start()
            for node, other in (pair, pair[::-1]):
                await until(
                    "they agree", lambda n=node, o=other: o.table.heard == n.table.flows, 20.0
                )

    asyncio.run(run())


def test_what_is_wrong_with_this_node_is_not_put_on_the_connection() -> None:
    def refuse() -> None:
        raise NetworkError("its MAC address cannot be read", where="wan0")

    async def run() -> None:
        one, two = nodes()
        two.table.before_install = refuse
        async with running(one, two):
            one.table.flows = {1: 10}
            await until("said", lambda: bool(two.peer.last_error))
            assert (
                two.peer.last_error
                == "this node cannot go on: wan0: its MAC address cannot be read"
            )
            two.table.before_install = lambda: None
            await until("told", lambda: two.table.heard == {1: 10})

    asyncio.run(run())


def test_flows_that_are_named_are_told_before_the_next_look() -> None:
    async def run() -> None:
        one, two = nodes(interval_s=3600.0)
        async with running(one, two):
            await until("all told", lambda: two.peer.full_received == 1)
            one.table.flows = {1: 10, 2: 20, 3: 30}
            one.sync.name(np.array([1, 3, 99]))
            await until("told", lambda: two.table.heard == {1: 10, 3: 30})
            assert one.peer.flows_sent == 2

    asyncio.run(run())


def test_what_nobody_names_is_told_however_much_is_named() -> None:
    async def run() -> None:
        one, two = nodes(interval_s=0.05)
        named = dict.fromkeys(range(1000), 1)
        async with running(one, two):
            await until("all told", lambda: two.peer.full_received == 1)
            one.table.flows = named | {5000: 7}

            def go_on() -> bool:
                one.sync.name(np.arange(1000))
                return 5000 in two.table.heard

            await until("looked", go_on, timeout_s=60)

    asyncio.run(run())


def test_flows_that_are_named_while_everything_is_told_do_not_wait_for_its_end() -> None:
    async def run() -> None:
        one, two = nodes(interval_s=3600.0)
        one.table.part_flows = 10
        one.table.flows = dict.fromkeys(range(200), 1)
        begun, named, told = (threading.Event() for _ in range(3))
        parts = one.table.part
        taken = 0

        def part() -> Look | None:
            nonlocal taken
            taken += 1
            if one.table.named_slots:
                told.wait(60)
            elif taken == 6:  # of 20; some are on their way
                begun.set()
                named.wait(60)
            return parts()

        one.table.part = part
        async with running(one, two, connected=False):
            await until("begun", begun.is_set)
            one.table.flows |= {1000: 5}
            one.sync.name(np.array([1000]))
            named.set()
            await until("told", lambda: 1000 in two.table.heard, timeout_s=60)
            assert two.peer.full_received == 0
            told.set()
            await until("all told", lambda: len(two.table.heard) == 201, timeout_s=60)

    asyncio.run(run())


def test_more_named_flows_than_one_can_tell_are_left_to_the_next_look() -> None:
    async def run() -> None:
        one, two = nodes(interval_s=3600.0)
        async with running(one, two):
            await until("all told", lambda: two.peer.full_received == 1)
            for _ in range(20):
                one.sync.name(np.arange(10_000))
            await until("taken", lambda: bool(one.table.named_slots))
            assert [len(each) for each in one.table.named_slots] == [40_000]

    asyncio.run(run())


def test_each_knows_the_address_and_the_port_that_the_other_takes_packets_at() -> None:
    async def run() -> None:
        one, two = nodes()
        two.presence = Presence(takes_at=6080)
        async with running(one, two):
            await until("told", lambda: [o.takes_at for o in one.sync.others()] == [6080])
            (theirs,), (ours,) = one.sync.others(), two.sync.others()
            assert (theirs.address, theirs.own, ours.address, ours.own) == (HIGH, LOW, LOW, HIGH)
            assert ours.takes_at == 0
            await two.stop()
            await until("gone", lambda: [o.takes_at for o in one.sync.others()] == [0])

    asyncio.run(run())


def test_each_knows_the_head_of_the_others_audit_log_while_they_are_connected() -> None:
    async def run() -> None:
        one, two = nodes()
        head = f"7:{'a' * 64}"
        two.presence = Presence(audit_head=head)
        async with running(one, two):
            await until("told", lambda: one.sync.audit_heads() == {str(HIGH): head})
            assert two.sync.audit_heads() == {}, "one has no audit log"
            await two.stop()
            await until("gone", lambda: one.sync.audit_heads() == {})

    asyncio.run(run())


BLOCK = Block(ip_network("198.51.100.7/32"), "scans", 1000.0, 2000.0)
UNDONE = Block(ip_network("2001:db8:7::/64"), "", 1000.0, 3000.0, over=True)


def test_blocks_are_told_when_they_meet_and_as_they_are_made() -> None:
    async def run() -> None:
        one, two = nodes()
        one.blocks = {each.prefix: each for each in (BLOCK, UNDONE)}
        async with running(one, two):
            await until("told", lambda: two.blocked == [one.blocks])
            assert one.blocked == []
            news = {BLOCK.prefix: replace(BLOCK, since=1001.0, over=True)}
            await until("it can be told", lambda: one.sync.tell_blocks(news) == 1)
            await until("told", lambda: two.blocked[-1] == news)
            await two.stop()
            await until("gone", lambda: not one.is_connected)
            assert one.sync.tell_blocks(news) == 0

    asyncio.run(run())


def test_more_blocks_than_a_frame_holds_are_all_told() -> None:
    async def run() -> None:
        one, two = nodes()
        first, why = int(ip_network("10.0.0.0/8").network_address), "\N{SNOWMAN}" * 200
        for n in range(10_000):
            prefix = ip_network((first + n, 32))
            one.blocks[prefix] = Block(prefix, why, 1000.0, 2000.0)
        async with running(one, two):
            await until("told", lambda: sum(map(len, two.blocked)) == 10_000)
            assert len(two.blocked) == 3
            assert {k: v for told in two.blocked for k, v in told.items()} == one.blocks

    asyncio.run(run())


def test_what_was_learned_is_told_in_frames_of_any_number() -> None:
    async def run() -> None:
        one, two = nodes()
        many = {BackendRef("chat", f"gpu-{n}"): Learned(1 + n / 2000, None, 0.0)
                for n in range(2500)}  # fmt: skip
        async with running(one, two):
            await until("connected", lambda: one.is_connected)

            def is_told() -> bool:
                one.sync.tell_speeds(many)  # until the other has said that it takes it
                return bool(two.speeds_heard)

            await until("told", is_told)
            await until(
                "all of it", lambda: {k: v for t in two.speeds_heard for k, v in t.items()} == many
            )
            assert one.speeds_heard == []

    asyncio.run(run())
