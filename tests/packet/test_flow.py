"""Step 4: the life of a flow, and that it stays at its backend."""

from __future__ import annotations

import asyncio

import pytest

from agent.dataplane.abi import FlowState
from agent.model import AdminState, DownFlows, Protocol, Timeouts
from tests.packet.frames import CLIENT4, CLIENT6, VIP4, VIP6, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pauses import undisturbed

both = pytest.mark.parametrize(("vip", "client"), [(VIP4, CLIENT4), (VIP6, CLIENT6)])
A, B, C, D = (backend(name) for name in "abcd")


def established(rig: Rig, count: int = 40, **segment: str) -> dict[int, str]:
    """Opens flows that have carried payload; the backend of each by its client's port."""
    ports = range(20_000, 20_000 + count)
    for port in ports:
        rig.send(tcp("S", client_port=port, **segment))
        rig.send(tcp("A", client_port=port, payload=b"GET /", **segment))
    return {port: rig.backend_of(tcp("A", client_port=port, **segment)) for port in ports}


def where(rig: Rig, ports: dict[int, str], flags: str = "A") -> dict[int, str]:
    return {port: rig.backend_of(tcp(flags, client_port=port)) for port in ports}


@both
def test_a_tcp_flow_goes_from_embryonic_over_acked_to_established_to_closing(
    rig: Rig, vip: str, client: str
):
    rig.serve(service(A, vip=vip))
    life = [
        (tcp("S", vip=vip), FlowState.EMBRYONIC),
        (tcp("S", vip=vip), FlowState.EMBRYONIC),
        (tcp("A", vip=vip), FlowState.ACKED),
        (tcp("A", vip=vip), FlowState.ACKED),
        (tcp("PA", vip=vip, payload=b"GET /"), FlowState.ESTABLISHED),
        (tcp("A", vip=vip), FlowState.ESTABLISHED),
        (tcp("FA", vip=vip), FlowState.CLOSING),
        (tcp("A", vip=vip), FlowState.CLOSING),
        (tcp("PA", vip=vip, payload=b"late"), FlowState.CLOSING),
    ]
    for frame, state in life:
        assert rig.verdict(frame) == Verdict.TX
        assert rig.state(client) is state
    counts = rig.counts("a")
    assert (counts.opened, counts.established, counts.closed) == (1, 1, 1)
    assert counts.packets == len(life)


def test_payload_alone_establishes(rig: Rig):
    rig.serve(service(A))
    rig.send(tcp("S"))
    rig.send(tcp("PA", payload=b"x"))
    assert rig.state(CLIENT4) is FlowState.ESTABLISHED
    assert rig.counts("a").established == 1


def test_payload_in_the_first_packet_establishes_nothing(rig: Rig):
    rig.serve(service(A))
    rig.send(tcp("S", payload=b"fast open"))
    assert rig.state(CLIENT4) is FlowState.EMBRYONIC
    rig.send(tcp("S", payload=b"fast open"))
    assert rig.state(CLIENT4) is FlowState.EMBRYONIC


@both
def test_the_second_datagram_establishes_a_udp_flow(rig: Rig, vip: str, client: str):
    rig.serve(service(A, vip=vip, port=53, protocol=Protocol.UDP))
    rig.send(udp(vip=vip))
    assert rig.state(client, port=53) is FlowState.EMBRYONIC
    rig.send(udp(vip=vip))
    assert rig.state(client, port=53) is FlowState.ESTABLISHED


@pytest.mark.parametrize("flags", ["R", "RA", "FA"])
def test_rst_and_fin_close_a_flow_once(rig: Rig, flags: str):
    rig.serve(service(A))
    rig.send(tcp("S"))
    for _ in range(3):
        rig.send(tcp(flags))
    assert rig.state(CLIENT4) is FlowState.CLOSING
    assert rig.counts("a").closed == 1


@pytest.mark.parametrize("flags", ["R", "RA", "FA"])
def test_the_last_packets_of_an_unknown_flow_are_forwarded_and_open_nothing(rig: Rig, flags: str):
    rig.serve(service(A))
    assert rig.verdict(tcp(flags)) == Verdict.TX
    assert not rig.tables.flows.any()
    counts = rig.counts("a")
    assert (counts.packets, counts.opened, counts.closed) == (1, 0, 0)


def test_a_flow_that_began_elsewhere_is_taken_over_at_its_first_packet(rig: Rig):
    rig.serve(service(A))
    rig.send(tcp("A", payload=b"x"))
    assert rig.state(CLIENT4) is FlowState.EMBRYONIC
    rig.send(tcp("A", payload=b"x"))
    assert rig.state(CLIENT4) is FlowState.ESTABLISHED


def test_old_ports_after_a_fin_are_a_new_flow(rig: Rig):
    rig.serve(service(A))
    for frame in (tcp("S"), tcp("A", payload=b"x"), tcp("FA")):
        rig.send(frame)
    rig.serve(service(replace_admin(A, AdminState.DRAIN), B))
    assert rig.backend_of(tcp("A")) == "a", "what is left of the old one stays"
    assert rig.backend_of(tcp("S")) == "b"
    assert rig.state(CLIENT4) is FlowState.EMBRYONIC
    assert (rig.counts("a").opened, rig.counts("a").closed) == (1, 1)
    assert rig.counts("b").opened == 1
    assert rig.tables.flows.astype(bool).sum() == 1, "in the slot of the old one"


def test_a_syn_in_an_established_flow_does_not_move_it(rig: Rig):
    rig.serve(service(A))
    for frame in (tcp("S"), tcp("A", payload=b"x")):
        rig.send(frame)
    rig.serve(service(replace_admin(A, AdminState.DRAIN), B))
    assert rig.backend_of(tcp("S")) == "a"
    assert rig.state(CLIENT4) is FlowState.ESTABLISHED


@undisturbed
def test_a_syn_after_the_timeout_is_a_new_flow(rig: Rig):
    rig.serve(service(A))
    for frame in (tcp("S"), tcp("A", payload=b"x")):
        rig.send(frame)
    rig.serve(service(replace_admin(A, AdminState.DRAIN), B))
    rig.avoid_tick()
    timeout = rig.clock.ticks(900)
    rig.make_idle(rig.slot(CLIENT4).index, timeout)
    assert rig.backend_of(tcp("S")) == "a"
    rig.make_idle(rig.slot(CLIENT4).index, timeout + 1)
    assert rig.backend_of(tcp("S")) == "b"
    assert rig.counts("a").closed == 1


def test_a_packet_makes_its_flow_young_again(rig: Rig):
    rig.serve(service(A))
    rig.send(tcp("S"))
    rig.make_idle(rig.slot(CLIENT4).index, 5)
    assert rig.slot(CLIENT4).idle_ticks >= 5
    rig.send(tcp("A"))
    assert rig.slot(CLIENT4).idle_ticks <= 1


# -- where flows stay when the backends change


@both
def test_flows_stay_when_the_ring_changes(rig: Rig, vip: str, client: str):
    rig.serve(service(A, B, vip=vip))
    before = established(rig, vip=vip)
    assert set(before.values()) == {"a", "b"}
    rig.serve(service(A, B, C, D, vip=vip))
    after = {port: rig.backend_of(tcp("A", vip=vip, client_port=port)) for port in before}
    assert after == before
    fresh = {rig.backend_of(tcp("S", vip=vip, client_port=port)) for port in range(30_000, 30_100)}
    assert fresh == {"a", "b", "c", "d"}


def replace_admin(member, admin: AdminState):
    return backend(member.name, str(member.address), member.weight, admin=admin)


def test_drain_keeps_flows_and_takes_no_new_ones(rig: Rig):
    rig.serve(service(A, B))
    before = established(rig)
    rig.serve(service(replace_admin(A, AdminState.DRAIN), B))
    assert where(rig, before) == before
    fresh = {rig.backend_of(tcp("S", client_port=port)) for port in range(30_000, 30_100)}
    assert fresh == {"b"}


def test_weight_0_keeps_flows_and_takes_no_new_ones(rig: Rig):
    rig.serve(service(A, B))
    before = established(rig)
    rig.serve(service(backend("a", weight=0), B))
    assert where(rig, before) == before
    assert {rig.backend_of(tcp("S", client_port=p)) for p in range(30_000, 30_100)} == {"b"}


def test_maintenance_gives_flows_up(rig: Rig):
    rig.serve(service(A, B))
    before = established(rig)
    rig.serve(service(replace_admin(A, AdminState.MAINTENANCE), B))
    assert set(where(rig, before).values()) == {"b"}


def test_a_backend_that_goes_down_keeps_its_flows_by_default(rig: Rig):
    rig.serve(service(A, B))
    before = established(rig)
    rig.serve(service(A, B), down={"a"})
    assert where(rig, before) == before
    assert {rig.backend_of(tcp("S", client_port=p)) for p in range(30_000, 30_100)} == {"b"}


def test_reroute_moves_the_flows_of_a_backend_that_goes_down_and_no_others(rig: Rig):
    web = service(A, B, C, down_flows=DownFlows.REROUTE)
    rig.serve(web)
    before = established(rig)
    of_a = sum(name == "a" for name in before.values())
    rig.serve(web, down={"a"})
    after = where(rig, before)
    assert all(after[p] == before[p] for p in before if before[p] != "a")
    assert {after[p] for p in before if before[p] == "a"} == {"b", "c"}
    assert rig.counts("a").closed == of_a
    rig.serve(web)
    assert where(rig, before) == after, "they do not move back"


def test_a_retransmitted_syn_leaves_a_backend_that_went_down(rig: Rig):
    rig.serve(service(A))
    rig.send(tcp("S"))
    rig.serve(service(A, B), down={"a"})
    assert rig.backend_of(tcp("S")) == "b"
    assert (rig.counts("a").opened, rig.counts("a").closed) == (1, 1)
    assert (rig.counts("b").opened, rig.counts("b").closed) == (1, 0)
    assert rig.backend_of(tcp("A")) == "b"


def test_the_ack_of_an_embryonic_flow_stays_where_the_syn_went(rig: Rig):
    rig.serve(service(A))
    rig.send(tcp("S"))
    rig.serve(service(A, B), down={"a"})
    assert rig.backend_of(tcp("A")) == "a", "the handshake may be done: the other knows nothing"


def test_no_usable_backend_drops_new_flows_and_keeps_old_ones(rig: Rig):
    rig.serve(service(A))
    rig.send(tcp("S"))
    rig.send(tcp("A", payload=b"x"))
    rig.serve(service(A), down={"a"})
    assert rig.backend_of(tcp("A")) == "a"
    assert rig.verdict(tcp("S", client_port=1)) == Verdict.DROP
    assert rig.service_counts().drops["no-backend"] == 1


def test_a_service_without_backends_drops_and_counts(rig: Rig):
    rig.serve(service())
    assert rig.verdict(tcp()) == Verdict.DROP
    assert rig.service_counts().drops["no-backend"] == 1
    assert not rig.tables.flows.any()


def test_flows_of_a_removed_backend_are_picked_for_anew(rig: Rig):
    rig.serve(service(A, B))
    before = established(rig)
    rig.serve(service(B))
    assert set(where(rig, before).values()) == {"b"}


def test_a_removed_backends_id_is_not_reused_while_flows_name_it(rig: Rig):
    rig.serve(service(A, B))
    ports = {port for port, name in established(rig).items() if name == "a"}
    old = rig.backend_id("a")
    rig.serve(service(B))
    rig.serve(service(B, C))
    assert rig.backend_id("c") != old
    rig.now_s += 100
    asyncio.run(rig.reconciler.sweep(rig.survey()))
    assert rig.state(CLIENT4, min(ports)) is FlowState.FREE, "its flows are swept"
    rig.now_s += 100
    asyncio.run(rig.reconciler.sweep(rig.survey()))
    rig.serve(service(B, C, D))
    assert rig.backend_id("d") == old, "then it is free again"


def test_the_rest_of_an_id_outlives_the_agent(rig: Rig):
    rig.serve(service(A, B))
    established(rig)
    old = rig.backend_id("a")
    rig.serve(service(B))
    rig.reconciler = type(rig.reconciler)(rig.tables, lambda: rig.now_s)
    rig.serve(service(B, C))
    assert rig.backend_id("c") != old


def test_a_service_made_anew_does_not_find_the_flows_of_its_former_self(rig: Rig):
    rig.serve(service(A))
    established(rig, count=1)
    rig.serve()
    rig.serve(service(A))
    rig.send(tcp("A", client_port=20_000))
    assert rig.counts("a").opened == 1


def test_a_restart_of_the_agent_moves_no_flow_and_writes_nothing(rig: Rig):
    web = service(A, B, C)
    rig.serve(web)
    before = established(rig)
    rig.reconciler = type(rig.reconciler)(rig.tables, lambda: rig.now_s)
    assert rig.serve(web).steps == ()
    assert where(rig, before) == before


def test_timeouts_are_those_of_the_service(rig: Rig):
    short = Timeouts(embryonic_s=8, acked_s=8, established_s=12, closing_s=4)
    rig.serve(service(A), service(B, name="short", port=81, timeouts=short))
    for port in (80, 81):
        rig.send(tcp("S", port=port))
        rig.send(tcp("A", port=port, payload=b"x"))
    found = rig.survey(later_ticks=rig.clock.ticks(12) + 1)
    assert list(found.expired) == [rig.slot(CLIENT4, port=81, service="short").index]
