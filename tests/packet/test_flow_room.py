"""Who gets a slot of a full bucket: what users can rely on under attack and under load."""

from __future__ import annotations

import asyncio
import random
import threading
from ipaddress import IPv4Address

import numpy as np
import pytest

from agent.dataplane import libbpf, survey
from agent.dataplane.abi import FLOW_EMBRYONIC_WAYS, FLOW_WAYS, FlowState
from agent.model import DownFlows, Scheduler, Timeouts
from tests.packet.frames import ACK, FIN, RST, SYN, Segments, random_clients, tcp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pauses import undisturbed

BUCKET = 4711
A, B = backend("a"), backend("b")
SEGMENT, DATA = Segments(), Segments(payload=b"GET /")


def syn(rig: Rig, client: tuple[IPv4Address, int]) -> None:
    assert rig.verdict(SEGMENT.frame(client[0].packed, client[1], SYN)) == Verdict.TX


def data(rig: Rig, client: tuple[IPv4Address, int]) -> None:
    assert rig.verdict(DATA.frame(client[0].packed, client[1], ACK)) == Verdict.TX


def state(rig: Rig, client: tuple[IPv4Address, int], **where: object) -> FlowState:
    return rig.state(str(client[0]), client[1], **where)


def index(rig: Rig, client: tuple[IPv4Address, int]) -> int:
    found = rig.slot(str(client[0]), client[1])
    assert found is not None
    return found.index


def full_bucket(rig: Rig, more: int) -> tuple[list, list]:
    """Eight established flows, and ``more`` clients that hash to their bucket."""
    clients = rig.clients_in_bucket(BUCKET, FLOW_WAYS + more)
    for client in clients[:FLOW_WAYS]:
        syn(rig, client)
        data(rig, client)
    assert {state(rig, client) for client in clients[:FLOW_WAYS]} == {FlowState.ESTABLISHED}
    return clients[:FLOW_WAYS], clients[FLOW_WAYS:]


def test_embryonic_flows_hold_half_of_a_bucket(rig: Rig):
    rig.serve(service(A))
    clients = rig.clients_in_bucket(BUCKET, 10)
    for client in clients:
        syn(rig, client)
    held = rig.tables.flows[BUCKET * FLOW_WAYS : (BUCKET + 1) * FLOW_WAYS]
    assert np.count_nonzero(held) == FLOW_EMBRYONIC_WAYS
    assert state(rig, clients[-1]) is FlowState.EMBRYONIC, "the newest is in"
    counts = rig.counts("a")
    assert (counts.opened, counts.closed) == (10, 10 - FLOW_EMBRYONIC_WAYS)
    assert rig.service_counts().not_recorded == 0


@undisturbed
def test_the_oldest_embryonic_flow_makes_room(rig: Rig):
    rig.serve(service(A))
    rig.avoid_tick()
    *some, late = rig.clients_in_bucket(BUCKET, FLOW_EMBRYONIC_WAYS + 1)
    for client in some:
        syn(rig, client)
    rig.make_idle(index(rig, some[2]), 1)
    syn(rig, late)
    held = [state(rig, client) for client in some]
    assert held == [FlowState.FREE if n == 2 else FlowState.EMBRYONIC for n in range(len(some))]


@undisturbed
@pytest.mark.parametrize("established", range(FLOW_WAYS - FLOW_EMBRYONIC_WAYS + 1))
def test_of_one_tick_the_first_embryonic_flow_makes_room(rig: Rig, established: int):
    """Ticks are seconds, and a handshake is over in less: it must outlast the next strangers. The
    newest went first once, so a single one was enough.
    """
    rig.serve(service(A))
    rig.avoid_tick()
    clients = rig.clients_in_bucket(BUCKET, 40)
    for client in clients[:established]:
        syn(rig, client)
        data(rig, client)
    later = clients[established:]
    for number, client in enumerate(later):
        syn(rig, client)
        since = max(0, number + 1 - FLOW_EMBRYONIC_WAYS)
        assert {state(rig, one) for one in later[since : number + 1]} == {FlowState.EMBRYONIC}
        assert all(state(rig, one) is FlowState.FREE for one in later[:since])


def test_a_flood_leaves_six_established_flows_of_a_bucket_alone(rig: Rig):
    rig.serve(service(A))
    clients = rig.clients_in_bucket(BUCKET, 200)
    for client in clients[:6]:
        syn(rig, client)
        data(rig, client)
    for client in clients[6:]:
        syn(rig, client)
    assert {state(rig, client) for client in clients[:6]} == {FlowState.ESTABLISHED}


def test_a_full_bucket_of_live_flows_records_nothing_and_says_so(rig: Rig):
    rig.serve(service(A, B))
    _, (late, *_) = full_bucket(rig, 1)
    before = rig.tables.flows.copy()
    frame = SEGMENT.frame(late[0].packed, late[1], SYN)
    picks = {rig.backend_of(frame) for _ in range(20)}
    assert len(picks) == 1, "the same pick each time"
    assert picks == {rig.backend_of(DATA.frame(late[0].packed, late[1], ACK))}
    assert (rig.tables.flows == before).all()
    assert rig.service_counts().not_recorded == 21
    assert sum(rig.counts(name).opened for name in "ab") == FLOW_WAYS


@undisturbed
def test_an_established_flow_is_evicted_only_past_its_timeout(rig: Rig):
    rig.serve(service(A))
    held, (late, *_) = full_bucket(rig, 1)
    rig.avoid_tick()
    timeout = rig.clock.ticks(900)
    for client in held:
        rig.make_idle(index(rig, client), timeout)
    syn(rig, late)
    assert state(rig, late) is FlowState.FREE
    rig.make_idle(index(rig, held[3]), timeout + 1)
    syn(rig, late)
    assert state(rig, late) is FlowState.EMBRYONIC
    assert state(rig, held[3]) is FlowState.FREE
    assert rig.counts("a").closed == 1
    assert rig.open_slots("a") == FLOW_WAYS


@pytest.mark.parametrize(
    "scheduler", [Scheduler.ROUND_ROBIN, Scheduler.LEAST_CONN, Scheduler.LEAST_LOAD]
)
def test_what_is_not_recorded_goes_the_same_way_whatever_the_loads(rig: Rig, scheduler: Scheduler):
    rig.serve(service(A, B, scheduler=scheduler))
    _, late = full_bucket(rig, 24)
    elsewhere = iter(random_clients(7, 4 * len(late)))
    chosen = {}
    for flags, segment in ((SYN, SEGMENT), (ACK, SEGMENT), (ACK, DATA), (FIN | ACK, SEGMENT)):
        for client in late:
            chosen.setdefault(client, set()).add(
                rig.backend_of(segment.frame(client[0].packed, client[1], flags))
            )
            syn(rig, next(elsewhere))
    assert all(len(names) == 1 for names in chosen.values())
    assert set.union(*chosen.values()) == {"a", "b"}


@undisturbed
def test_a_full_bucket_takes_a_new_flow_when_one_has_closed_and_is_silent(rig: Rig):
    rig.serve(service(A, count_waiting=False))
    held, (late, *_) = full_bucket(rig, 1)
    rig.avoid_tick()
    rig.send(SEGMENT.frame(held[0][0].packed, held[0][1], FIN | ACK))
    syn(rig, late)
    rig.make_idle(index(rig, held[0]), 1)
    syn(rig, late)
    assert state(rig, late) is FlowState.FREE, "late packets come"
    rig.make_idle(index(rig, held[0]), 2)
    syn(rig, late)
    assert state(rig, late) is FlowState.EMBRYONIC
    assert rig.counts("a").closed == 1, "closed once, at its FIN"


def test_flows_of_a_backend_that_gave_them_up_make_room(rig: Rig):
    web = service(A, B, down_flows=DownFlows.REROUTE)
    rig.serve(web)
    held, (late, *_) = full_bucket(rig, 1)
    (first, *_) = [slot for c in held if (slot := rig.slot(str(c[0]), c[1]))]
    rig.serve(web, down={"a" if first.backend_id == rig.backend_id("a") else "b"})
    syn(rig, late)
    assert state(rig, late) is FlowState.EMBRYONIC


@undisturbed
def test_each_slot_times_out_by_its_own_service(rig: Rig):
    short = Timeouts(embryonic_s=8, acked_s=8, established_s=20, closing_s=4)
    rig.serve(service(A), service(B, name="short", port=81, timeouts=short))
    slow, fast = (
        rig.clients_in_bucket(BUCKET, 8),
        rig.clients_in_bucket(BUCKET, 2, service="short", port=81),
    )
    segment, payload = Segments(port=81), Segments(port=81, payload=b"x")
    for client in slow[:6]:
        syn(rig, client)
        data(rig, client)
    for client in fast:
        rig.send(segment.frame(client[0].packed, client[1], SYN))
        rig.send(payload.frame(client[0].packed, client[1], ACK))
    rig.avoid_tick()
    for slot in range(BUCKET * FLOW_WAYS, (BUCKET + 1) * FLOW_WAYS):
        rig.make_idle(slot, rig.clock.ticks(20) + 1)
    for client in slow[6:]:
        syn(rig, client)
        data(rig, client)
    assert {state(rig, client) for client in slow} == {FlowState.ESTABLISHED}
    assert {state(rig, c, port=81, service="short") for c in fast} == {FlowState.FREE}


# -- opened - closed is the number of open slots


def check_open_slots(rig: Rig) -> None:
    for name in "ab":
        counts = rig.counts(name)
        assert counts.opened - counts.closed == rig.open_slots(name), name


@pytest.mark.parametrize("seed", range(6))
def test_opened_minus_closed_is_what_is_open_whatever_happens(rig: Rig, seed: int):
    draw = random.Random(seed)
    web = service(A, B, down_flows=DownFlows.REROUTE)
    rig.serve(web)
    clients = rig.clients_in_buckets(range(BUCKET, BUCKET + 12), 14)
    for _ in range(40):
        for _ in range(100):
            address, port = draw.choice(clients)
            flags = draw.choice((SYN, SYN, ACK, ACK, ACK, FIN | ACK, RST))
            rig.send(draw.choice((SEGMENT, DATA)).frame(address.packed, port, flags))
        match draw.randrange(5):
            case 0:
                rig.serve(web, down=draw.choice(((), ("a",), ("b",), ("a", "b"))))
            case 1:
                used = np.flatnonzero(rig.tables.flows)
                for slot in draw.sample(list(used), len(used) // 2):
                    rig.make_idle(int(slot), draw.randrange(400))
            case 2:
                asyncio.run(rig.reconciler.sweep(rig.survey(later_ticks=draw.randrange(10))))
        check_open_slots(rig)


def test_two_cpus_on_the_same_buckets_lose_no_count(rig: Rig):
    rig.serve(service(A, B))
    clients = rig.clients_in_buckets(range(BUCKET, BUCKET + 2), 12)
    fd = rig.dataplane.program.fd
    flags = (SYN, ACK, ACK, FIN | ACK)

    def traffic(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(30_000):
            address, port = draw.choice(clients)
            segment = SEGMENT if draw.random() < 0.5 else DATA
            # Segments reuse their buffer, but frame() hands out a copy under the GIL
            libbpf.test_run(fd, segment.frame(address.packed, port, draw.choice(flags)))

    threads = [threading.Thread(target=traffic, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_open_slots(rig)
    assert sum(rig.counts(name).packets for name in "ab") == 90_000
    assert rig.survey().by_state.sum() <= 2 * FLOW_WAYS


def test_states_that_the_survey_sees_are_those_that_were_sent(rig: Rig):
    rig.serve(service(A))
    for port in range(1000, 1100):
        rig.send(tcp("S", client_port=port))
        if port % 2:
            rig.send(tcp("A", client_port=port))
        if port % 4 == 3:
            rig.send(tcp("A", client_port=port, payload=b"x"))
    found: survey.Survey = rig.survey()
    assert found.state_count(FlowState.EMBRYONIC) == 50
    assert found.state_count(FlowState.ACKED) == 25
    assert found.state_count(FlowState.ESTABLISHED) == 25
    assert found.live[rig.backend_id("a")] == 50
