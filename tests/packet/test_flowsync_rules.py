"""Flow sync: whose word counts where two nodes know of a flow, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.dataplane import abi
from agent.dataplane.abi import FlowState
from agent.flowsync.export import ALL
from agent.flowsync.plan import OLDER_TICKS, Refusal
from agent.model import Forward, Scheduler
from tests.packet.frames import CLIENT4, VIP4
from tests.packet.harness import Rig, Verdict
from tests.packet.nodes import FLOWS, Case, case, opened, serve, view, where
from tests.packet.records import rested
from tests.packet.wires import Packet


def test_the_end_of_a_flow_is_told_and_so_is_that_its_slot_is_free(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    opened(rig, it)
    b.take(a.changed())
    assert len(a.changed()) == 0
    rig.send(replace(it.goes_on(3), flags="FA").frame())
    done = b.take(a.changed())
    assert (done.refreshed, done.installed) == (1, 0)
    assert other.state(CLIENT4, 20_003) is FlowState.CLOSING
    rig.tables.flows[rig.tables.flows != 0] = 0
    done = b.take(a.changed())
    assert (done.removed, len(np.flatnonzero(other.tables.flows))) == (FLOWS, 0)


@pytest.mark.parametrize("form", ["port", "udp"])
def test_a_flow_that_has_had_a_packet_here_stays_when_it_ends_there(
    rig: Rig, other: Rig, form: str
):
    it = case(Forward.DSR, 4, form)
    a, b = serve(rig, other, it)
    opened(rig, it)
    b.take(a.changed())
    other.send(it.goes_on(5).frame())
    rig.tables.flows[:] = 0
    assert b.take(a.changed()).removed == FLOWS - 1
    assert other.state(CLIENT4, 20_005) is FlowState.ESTABLISHED


def test_what_was_told_is_not_told_back_until_it_has_had_a_packet_here(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    opened(rig, it)
    b.take(a.changed())
    assert (len(b.changed()), len(b.everything())) == (0, 0)
    other.send(replace(it.goes_on(5), flags="FA").frame())
    told = b.changed()
    assert len(told) == 1
    done = a.take(told)
    assert rig.state(CLIENT4, 20_005) in (FlowState.CLOSING, FlowState.ESTABLISHED)
    assert done.removed == 0


def test_a_peer_that_lost_its_tables_gets_back_what_it_told(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    there = opened(rig, it)
    b.take(a.changed())
    b.ledger.meet("others", len(rig.tables.flows))
    rig.tables.flows[:] = 0
    assert a.take(b.everything()).installed == FLOWS
    assert where(rig, it, range(FLOWS)) == there


def test_a_flow_that_lives_here_at_another_backend_stays(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    there = opened(rig, it)
    here = opened(other, it)
    done = b.take(a.changed())
    differ = sum(here[number] != there[number] for number in here)
    assert done.refused == {Refusal.OURS: differ, Refusal.KNOWN: FLOWS - differ}
    assert where(other, it, range(FLOWS)) == here


def test_a_node_that_has_not_the_vips_believes_the_one_that_has(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    there = opened(rig, it)
    here = opened(other, it)
    assert here != there
    done = b.take(a.changed(), elsewhere=True)
    assert not done.refused
    assert where(other, it, range(FLOWS)) == there


def test_a_port_of_fullnat_goes_with_the_vips(rig: Rig, other: Rig):
    """What was open here when the other node took over, and ended there, has no port any more."""
    it = case(Forward.FULLNAT, 4)
    a, b = serve(rig, other, it)
    opened(other, it)
    for number in range(100, 100 + FLOWS):
        it.begin(rig, number)
        rig.send(it.goes_on(number).frame())
    told, size = a.changed(), other.tables.size
    own = other.tables.nat_slots["owner"].nonzero()[0]
    held = other.tables.nat_slots[own]
    theirs = {ours: n for n, ours in enumerate(b.installer.ids.nat_sources) if ours >= 0}
    told["nat_source"] = [theirs[number] for number in held["source"]]
    theirs = {ours: n for n, ours in enumerate(b.installer.ids.backends) if ours}
    told["backend"] = [theirs[ident] for ident in held["backend"]]
    told["nat_port"] = own % size.nat_ports + size.nat_first_port
    assert b.take(told).refused == {Refusal.NAT_TAKEN: FLOWS}
    done = b.take(told, elsewhere=True)
    assert (done.installed, done.refused) == (FLOWS, {})
    clients = sorted(other.tables.nat_slots["client_port"][own])
    assert clients == [20_100 + n for n in range(FLOWS)]
    assert all(other.verdict(it.goes_on(100 + n).frame()) == Verdict.TX for n in range(FLOWS))
    assert (other.tables.nat_slots["client_port"][own] >= 20_100).all(), "they keep their ports"


def test_live_flows_of_a_full_bucket_are_not_evicted(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    it.begin(rig, 0)
    rig.send(it.goes_on(0).frame())
    told = a.changed()
    other.send(it.client(0).frame())
    bucket = int(np.flatnonzero(other.tables.flows)[0]) // abi.FLOW_WAYS
    other.tables.flows[:] = 0
    for address, port in other.clients_in_bucket(bucket, abi.FLOW_WAYS):
        first = Packet(str(address), VIP4, port, 80)
        other.send(first.frame())
        other.send(replace(first, flags="A", payload=b"x", seq=1001).frame())
    before = other.tables.flows.copy()
    assert len(np.flatnonzero(before)) == abi.FLOW_WAYS
    assert b.take(told).refused == {Refusal.NO_ROOM: 1}
    assert (other.tables.flows == before).all()


def test_embryonic_flows_hold_no_more_than_their_share(rig: Rig, other: Rig):
    """Nobody tells of any without addresses; of those that have them none beyond the share is
    taken.
    """
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    opened(rig, it, 1)
    told = a.changed()
    told["state"] = FlowState.EMBRYONIC
    other.send(it.client(0).frame())
    bucket = int(np.flatnonzero(other.tables.flows)[0]) // abi.FLOW_WAYS
    other.tables.flows[:] = 0
    for address, port in other.clients_in_bucket(bucket, abi.FLOW_EMBRYONIC_WAYS):
        other.send(Packet(str(address), VIP4, port, 80).frame())
    assert b.take(told).refused == {Refusal.NO_ROOM: 1}


def test_a_handover_tells_of_flows_that_have_only_been_answered(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    it.begin(rig, 0)
    rig.send(replace(it.client(0), flags="A", seq=1001, ack=7001).frame())
    assert rig.state(CLIENT4, 20_000) is FlowState.ACKED
    assert len(a.changed()) == 0
    assert b.take(a.everything(ALL)).installed == 1
    assert other.state(CLIENT4, 20_000) is FlowState.ACKED


def test_bytes_of_requests_are_counted_right_after_the_change(rig: Rig, other: Rig):
    """Whatever a client has sent since the last record, the next segment counts as itself."""
    it = Case(replace(case(Forward.DSR, 4).service, scheduler=Scheduler.LEAST_LOAD), VIP4, 80)
    a, b = serve(rig, other, it)
    at = opened(rig, it, 1)[0]
    b.take(a.changed())
    other.send(replace(it.goes_on(0), flags="A", seq=5_000_000, payload=bytes(700)).frame())
    ident = other.backend_id(at)
    assert int(other.tables.backend_load["waiting"][ident]) == 700
    other.send(replace(it.goes_on(0), flags="A", seq=5_000_700, payload=bytes(300)).frame())
    assert int(other.tables.backend_load["waiting"][ident]) == 1000


def test_open_connections_are_counted(rig: Rig, other: Rig):
    it = Case(replace(case(Forward.DSR, 4).service, scheduler=Scheduler.LEAST_CONN), VIP4, 80)
    a, b = serve(rig, other, it)
    there = opened(rig, it)
    b.take(a.changed())
    for name in "abcde":
        load = other.tables.backend_load[other.backend_id(name)]
        count = list(there.values()).count(name)
        assert load["open"] + load["open_fix"] == count
        assert other.counts(name).opened - other.counts(name).closed == count
    rig.tables.flows[:] = 0
    b.take(a.changed())
    for name in "abcde":
        load = other.tables.backend_load[other.backend_id(name)]
        assert load["open"] + load["open_fix"] == 0


def test_what_nobody_knows_here_is_refused_by_reason(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    there = opened(rig, it)
    told = a.changed()
    gone = sum(name == "a" for name in there.values())
    other.tables.backends["flags"][other.backend_id("a")] = 0
    told["service"][:3] = 999
    told["family"][3] = 5
    done = b.take(told)
    assert done.refused[Refusal.NO_SERVICE] == 3
    assert done.refused[Refusal.MALFORMED] == 1
    assert 0 < done.refused[Refusal.NO_BACKEND] <= gone
    assert done.installed == FLOWS - sum(done.refused.values())


def test_idle_times_and_ages_are_carried(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    opened(rig, it, 1)
    at = np.flatnonzero(rig.tables.flows)
    rig.tables.flows[at] = rested(rig.tables.flows[at], 5)
    rig.tables.flows_cold["start"][at] -= 7 * rig.clock.hz
    b.take(a.changed())
    at = int(np.flatnonzero(other.tables.flows)[0])
    idle = (other.now_ticks() - int(other.tables.flows[at])) & abi.FLOW_STAMP_MASK
    assert idle - 5 - OLDER_TICKS in (0, 1)
    age = (b.jiffies() - int(other.tables.flows_cold["start"][at])) % 2**32 / other.clock.hz
    assert 7 <= age < 60


@pytest.mark.parametrize("stamp", [3, 5000])
def test_stamps_are_told_again_after_a_quarter_of_the_timeout(rig: Rig, other: Rig, stamp: int):
    """Also when stamps have begun at 0 again in the meantime."""
    it = case(Forward.DSR, 4)
    a, _ = serve(rig, other, it)
    opened(rig, it, 1)
    at = int(np.flatnonzero(rig.tables.flows)[0])
    word = rested(rig.tables.flows[at], int(rig.tables.flows[at]) - stamp & abi.FLOW_STAMP_MASK)
    quarter = rig.clock.ticks(it.service.timeouts.established_s) // 4
    rig.tables.flows[at] = rested(word, quarter)
    assert len(a.changed()) == 1
    rig.tables.flows[at] = rested(word, 1)
    assert len(a.changed()) == 0
    rig.tables.flows[at] = word
    assert len(a.changed()) == 1


def test_another_flow_in_a_slot_of_the_peers_ends_the_one_before(rig: Rig, other: Rig):
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    opened(rig, it)
    told = a.changed()
    b.take(told)
    told["client_port"][0] = 30_000
    done = b.take(told[:1])
    assert (done.installed, done.removed) == (1, 1)
    assert len(np.flatnonzero(other.tables.flows)) == FLOWS
    assert other.state(CLIENT4, 30_000) is FlowState.ESTABLISHED


def test_after_a_full_round_what_was_not_told_again_is_gone(rig: Rig, other: Rig):
    """Both ended over there while nobody listened; one has had a packet here."""
    it = case(Forward.DSR, 4)
    a, b = serve(rig, other, it)
    opened(rig, it)
    b.take(a.changed())
    other.send(it.goes_on(3).frame())
    for number in (3, 4):
        rig.tables.flows[rig.slot(CLIENT4, 20_000 + number).index] = 0
    b.installer.begin_full()
    b.take(a.everything())
    assert b.installer.end_full(view(other)).removed == 1
    assert other.state(CLIENT4, 20_003) is FlowState.ESTABLISHED
    assert len(np.flatnonzero(other.tables.flows)) == FLOWS - 1
