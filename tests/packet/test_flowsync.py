"""Flow sync: a flow that one node has recorded goes on through another one as if through the
first, though that has other keys, sizes, ids and rings.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agent.dataplane import abi
from agent.dataplane.atomics import Mask
from agent.dataplane.survey import Counts, Slots
from agent.flowsync import install, nat
from agent.flowsync.plan import Plan, Refusal
from agent.flowsync.view import View
from agent.model import Forward
from tests.packet.frames import BALANCER_MAC, ROUTER_MAC
from tests.packet.harness import Rig, Verdict
from tests.packet.nodes import FLOWS, answer, case, opened, serve, where

CASES = [
    *((forward, family, "port") for forward in Forward for family in (4, 6)),
    *((Forward.DSR, family, form) for form in ("any", "range", "prefix") for family in (4, 6)),
    *((Forward.NAT, family, "range") for family in (4, 6)),
    (Forward.FULLNAT, 4, "prefix"),
    (Forward.FULLNAT, 6, "udp"),
    (Forward.NAT, 4, "udp"),
    (Forward.GUE, 4, "udp"),
]


@pytest.mark.parametrize(("forward", "family", "form"), CASES)
def test_flows_go_on_at_their_backends_through_the_other_node(
    rig: Rig, other: Rig, forward, family, form
):
    it = case(forward, family, form)
    a, b = serve(rig, other, it)
    there = opened(rig, it)
    alone = opened(other, it)
    assert sum(alone[number] != there[number] for number in there) > FLOWS / 3, (
        "or it shows nothing"
    )
    other.tables.flows[:] = 0
    other.tables.nat_slots["owner"] = 0
    done = b.take(a.changed())
    assert (done.installed, done.refused) == (FLOWS, {})
    assert where(other, it, range(FLOWS)) == there
    assert len(np.flatnonzero(other.tables.flows)) == FLOWS


@pytest.mark.parametrize(("forward", "family", "form"), [each for each in CASES if each[0].is_nat])
def test_answers_find_their_clients_through_the_other_node(
    rig: Rig, other: Rig, forward, family, form
):
    """Before any packet of the client, and by the same source port afterwards."""
    it = case(forward, family, form)
    a, b = serve(rig, other, it)
    opened(rig, it)
    got = {n: rig.send(it.goes_on(n).frame()).data for n in range(FLOWS)}
    assert b.take(a.changed()).installed == FLOWS
    for number, out in got.items():
        asked = it.goes_on(number)
        back = answer(asked, out)
        done = other.send(back.frame())
        expected = replace(back, src=it.vip, dst=asked.src, sport=it.port, dport=asked.sport,
                           ttl=back.ttl - 1)  # fmt: skip
        assert (done.verdict, done.data) == (Verdict.TX, expected.frame(ROUTER_MAC, BALANCER_MAC))
    assert {n: other.send(it.goes_on(n).frame()).data for n in range(FLOWS)} == got


def test_a_new_flow_of_the_other_node_leaves_the_ports_of_what_was_told_alone(rig: Rig, other: Rig):
    it = case(Forward.FULLNAT, 4)
    a, b = serve(rig, other, it)
    opened(rig, it)
    b.take(a.changed())
    taken = np.flatnonzero(other.tables.nat_slots["owner"])
    assert len(taken) == FLOWS
    for number in range(FLOWS, 4 * FLOWS):
        other.send(it.client(number).frame())
    assert len(np.flatnonzero(other.tables.nat_slots["owner"])) == 4 * FLOWS


def test_flows_that_come_while_others_are_told_stay_where_they_are(rig: Rig, other: Rig):
    """Packets of the other node's own clients, in buckets that fill up meanwhile."""
    it = case(Forward.FULLNAT, 4)
    a, b = serve(rig, other, it)
    opened(rig, it, 400)
    told = a.everything()
    own = range(2000, 2400)
    got: dict[int, bytes] = {}

    def clients() -> None:
        for number in own:
            it.begin(other, number)
            got[number] = other.send(it.goes_on(number).frame()).data

    busy = threading.Thread(target=clients)
    busy.start()
    done = []
    while busy.is_alive():
        done.append(b.take(told[len(done) * 20 : (len(done) + 1) * 20]))
    busy.join()
    done.append(b.take(told[len(done) * 20 :]))
    assert {n: other.send(it.goes_on(n).frame()).data for n in own} == got
    ports = np.flatnonzero(other.tables.nat_slots["owner"])
    reasons = Refusal.NAT_TAKEN, Refusal.RACED
    refused = sum(each.refused.get(reason, 0) for each in done for reason in reasons)
    assert len(ports) == len(own) + 400 - refused
    assert sum(each.installed for each in done) == 400 - refused


def test_a_port_that_a_client_takes_meanwhile_stays_the_clients(
    rig: Rig, other: Rig, monkeypatch: pytest.MonkeyPatch
):
    """Between the look at it and the writing of what was told."""
    it = case(Forward.FULLNAT, 4)
    a, b = serve(rig, other, it)
    opened(rig, it, 1)
    before, held = nat.take, []

    def after_a_client(view: View, planned: Plan, *rest: Any) -> Mask:
        rows = view.tables.nat_slots
        rows["owner"][planned.nat], rows["client_port"][planned.nat] = 77 << 32 | 5, 4242
        held.append(rows[planned.nat].copy())
        return before(view, planned, *rest)

    monkeypatch.setattr(nat, "take", after_a_client)
    done = b.take(a.everything())
    assert (done.installed, done.refused[Refusal.RACED]) == (0, 1)
    (index,) = np.flatnonzero(other.tables.nat_slots["owner"])
    assert other.tables.nat_slots[index] == held[0][0]
    other.tables.nat_slots["owner"][index] = 0


def test_a_slot_that_a_client_takes_meanwhile_stays_the_clients_with_all_that_is_beside_it(
    rig: Rig, other: Rig, monkeypatch: pytest.MonkeyPatch
):
    """Between the look at it and the writing of what was told."""
    it = case(Forward.FULLNAT, 4)
    a, b = serve(rig, other, it)
    opened(rig, it, 1)
    real, taken = install.exchange, []

    def after_a_client(words: Slots, at: Counts, *rest: Any) -> Mask:
        if not taken and len(at):
            table = other.tables
            table.flows[at] = np.uint64(0x1234 << 32 | 1 << 16 | 2 << 13)
            table.flows_warm["nat"][at], table.flows_cold["sport"][at] = 99, 4242
            taken.append((at, table.flows_warm[at].copy(), table.flows_cold[at].copy()))
        return real(words, at, *rest)

    monkeypatch.setattr(install, "exchange", after_a_client)
    done = b.take(a.everything())
    assert (done.installed, done.refused[Refusal.RACED]) == (0, 1)
    ((at, warm, cold),) = taken
    assert (other.tables.flows_warm[at] == warm).all()
    assert (other.tables.flows_cold[at] == cold).all()
    assert not np.flatnonzero(other.tables.nat_slots["owner"]).size
    other.tables.flows[at] = 0


def test_a_place_that_is_claimed_is_no_packets_and_nobody_elses(
    rig: Rig, other: Rig, monkeypatch: pytest.MonkeyPatch
):
    """The flow's own packets come while it is being written, and others that have no other place:
    those that take this one as soon as it is free.
    """
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    opened(rig, it, 1)
    # Twenty for each bucket: of three, as the salt is drawn anew each time, often none came there.
    real, strangers = install.exchange, range(1000, 45_000)
    claimed: list[int] = []

    def stays(words: Slots, place: int, number: int) -> bool:
        """Whether both leave a claim alone, which is honoured until the second tick."""
        while True:
            tick = other.now_ticks()
            claim = claimed[0] & ~abi.FLOW_STAMP_MASK | tick & abi.FLOW_STAMP_MASK
            words[place] = claim
            other.send(it.goes_on(0).frame())
            other.send(it.client(number).frame())
            kept = int(words[place])
            if other.now_ticks() < tick + 2:
                return kept == claim

    def and_packets(words: Slots, at: Counts, *rest: Any) -> Mask:
        done = real(words, at, *rest)
        if claimed or not len(at):
            return done
        (place,) = at
        claimed.append(int(words[place]))
        first = int(place) // abi.FLOW_WAYS * abi.FLOW_WAYS
        beside = [n for n in range(first, first + abi.FLOW_WAYS) if n != place]
        backend = claimed[0] & 0xFFFF << abi.FLOW_BACKEND_SHIFT
        low = abi.FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT | claimed[0] & abi.FLOW_STAMP_MASK
        words[beside] = [n << abi.FLOW_TAG_SHIFT | backend | low for n in range(1, 8)]
        words[place] = 0
        for number in strangers:
            other.send(it.client(number).frame())
            if words[place]:
                break
        assert words[place], "or it shows nothing"
        assert stays(words, int(place), number)
        words[place] = 0
        other.send(it.client(number).frame())
        assert words[place], "it would have taken the place"
        words[place] = claimed[0]
        return done

    monkeypatch.setattr(install, "exchange", and_packets)
    assert b.take(a.everything()).installed == 1
    assert claimed


def test_flows_that_were_told_do_not_look_as_if_they_began_in_vain(rig: Rig, other: Rig):
    """Else a peer's flows would be a flood of SYNs here, and its backends would lose clients."""
    it = case(Forward.NAT, 4)
    a, b = serve(rig, other, it)
    opened(rig, it)
    before = other.tables.backend_count[["opened", "established"]].copy()
    assert b.take(a.changed()).installed == FLOWS
    told = other.tables.backend_count
    for name in ("opened", "established"):
        assert int(told[name].sum()) - int(before[name].sum()) == FLOWS
