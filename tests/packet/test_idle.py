"""Idle flows are closed by the program itself, and the frame that it makes tells the backend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from agent.dataplane import abi
from agent.dataplane.abi import FlowState
from agent.dataplane.idle import Closer, IdleFlow, Wanted, idle_flows
from agent.model import Forward
from tests.packet import frames, nodes
from tests.packet.harness import Rig, backend, mac_of, service
from tests.packet.records import rested
from tests.packet.talks import ANSWER, LATE_MS, MODES, POST, SERVER, Wire, opened
from tests.packet.wires import Packet

IDLE_S = 30.0
FORWARDS = pytest.mark.parametrize("forward", list(Forward), ids=lambda forward: forward.value)


def closer(rig: Rig) -> Closer:
    program = rig.dataplane.program
    return Closer(rig.tables, lambda: (program.fd, program.kind), lambda: rig.dataplane.ifindex)


def idle(rig: Rig, name: str = "a") -> tuple[IdleFlow, ...]:
    """What may be reset of a backend."""
    plane = rig.dataplane
    wanted = {rig.backend_id(name): Wanted(100, IDLE_S)}
    jiffies = plane.now_jiffies()
    return idle_flows(rig.tables, rig.names(), wanted, plane.keys, plane.clock, jiffies)


def rest(rig: Rig, seconds: float = 60) -> None:
    """As if no packet had come for so long."""
    used = np.flatnonzero(rig.tables.flows)
    rig.tables.flows[used] = rested(rig.tables.flows[used], rig.clock.ticks(seconds))


def answered(rig: Rig, forward: Forward) -> Wire:
    """A connection that has asked and been answered."""
    wire = opened(rig, forward).ask(POST)
    asked = int(rig.tables.flows_warm["request_jiffies"][wire.index])
    wire.after(LATE_MS).gets(ANSWER)
    wire.warm_set("request_jiffies", asked)
    assert wire.state is FlowState.ESTABLISHED
    return wire


@MODES
def test_an_idle_flow_is_found_and_closed_with_all_sums_kept(hooked: Rig, forward):
    wire = answered(hooked, forward)
    rest(hooked)
    (flow,) = idle(hooked)
    assert (flow.seq, flow.view.tuple5.client_port) == (wire.seq, 40_000)
    frame = closer(hooked).close(flow)
    assert frame is not None
    assert wire.state is FlowState.CLOSING
    counts = hooked.counts("a")
    assert (counts.opened, counts.closed) == (1, 1)
    assert closer(hooked).is_left(flow)
    assert idle(hooked) == ()


@MODES
def test_the_backend_is_told_what_the_client_would_tell_it(hooked: Rig, forward):
    wire = answered(hooked, forward)
    rest(hooked)
    frame = closer(hooked).close(idle(hooked)[0])
    assert frame is not None
    told = Ether(frame.data)
    assert told.dst == mac_of(hooked.address_of("a"))
    assert told[IP].src == frames.CLIENT4
    assert told[IP].dst == (SERVER if forward is Forward.NAT else frames.VIP4)
    assert (told[TCP].flags, told[TCP].seq, told[TCP].sport) == ("R", wire.seq, wire.sport)
    sums = told[IP].chksum, told[TCP].chksum
    del told[IP].chksum, told[TCP].chksum
    again = Ether(bytes(told))
    assert sums == (again[IP].chksum, again[TCP].chksum)


@FORWARDS
@pytest.mark.parametrize("vip", [frames.VIP4, frames.VIP6])
def test_every_way_of_forwarding_carries_it(rig: Rig, forward: Forward, vip: str):
    address = "10.1.2.3" if vip == frames.VIP4 else "fd00:1::3"
    rig.serve(service(backend("a", address), vip=vip, forward=forward))
    client = frames.CLIENT4 if vip == frames.VIP4 else frames.CLIENT6
    goes_on = nodes.connected(rig, Packet(client, vip))
    for packet in (goes_on, replace(goes_on, flags="PA", payload=POST)):
        rig.send(packet.frame())
    used = np.flatnonzero(rig.tables.flows)
    assert len(used) == 1
    rig.tables.flows[used] &= ~np.uint64(abi.FLOW_AWAITING << abi.FLOW_STATE_SHIFT)
    rest(rig)
    (flow,) = idle(rig)
    frame = closer(rig).close(flow)
    assert frame is not None
    assert frame.ifindex == rig.dataplane.ifindex
    told = Ether(frame.data)
    assert told.dst == mac_of(rig.address_of("a"))
    outer = told[IP] if told.type == 0x800 else told[IPv6]
    assert (outer.dst == address) is (forward is not Forward.DSR)


@MODES
@pytest.mark.parametrize("payload", [b"", POST])
def test_a_flow_that_speaks_again_is_left_alone(hooked: Rig, forward, payload: bytes):
    wire = answered(hooked, forward)
    rest(hooked)
    (flow,) = idle(hooked)
    wire.client("PA" if payload else "A", payload)
    before = wire.state
    assert closer(hooked).close(flow) is None
    assert wire.state is before
    assert hooked.counts("a").closed == 0


def test_only_idle_flows_that_wait_for_nothing_are_found(rig: Rig):
    wire = answered(rig, Forward.DSR)
    assert idle(rig) == (), "not idle"
    rest(rig, IDLE_S / 2)
    assert idle(rig) == (), "not for long"
    wire.ask(POST)
    rest(rig)
    assert idle(rig) == (), "it waits"


def test_a_flow_that_has_asked_nothing_is_not_found(rig: Rig):
    opened(rig, Forward.DSR)
    rest(rig)
    assert idle(rig) == ()


def test_what_an_earlier_flow_of_the_slot_has_left_is_not_believed(rig: Rig):
    wire = answered(rig, Forward.DSR)
    rest(rig)
    wire.warm_set("request_jiffies", rig.dataplane.now_jiffies() - 60 * rig.clock.hz & 0xFFFFFFFF)
    assert idle(rig) == ()


def test_http2_is_left_alone(rig: Rig):
    wire = answered(rig, Forward.DSR)
    wire.warm_set("talk", abi.Talk.HTTP2)
    rest(rig)
    assert idle(rig) == ()


@MODES
def test_a_closed_flow_whose_client_speaks_is_told_no_more(hooked: Rig, forward):
    wire = answered(hooked, forward)
    rest(hooked)
    (flow,) = idle(hooked)
    assert closer(hooked).close(flow) is not None
    wire.client("A")  # where it stands
    assert closer(hooked).is_left(flow)
    wire.client("PA", POST)
    assert not closer(hooked).is_left(flow)


def test_the_longest_idle_go_first_and_no_more_than_wanted(rig: Rig):
    answered(rig, Forward.DSR)
    rest(rig, 100)
    for sport in (40_001, 40_002):
        wire = Wire(rig, sport).open().ask(POST)
        asked = int(rig.tables.flows_warm["request_jiffies"][wire.index])
        wire.after(LATE_MS).gets(ANSWER)
        wire.warm_set("request_jiffies", asked)
        rest(rig)
    plane, ident = rig.dataplane, rig.backend_id("a")
    found = idle_flows(
        rig.tables, rig.names(), {ident: Wanted(2, IDLE_S)}, plane.keys, plane.clock,
        plane.now_jiffies(),
    )  # fmt: skip
    assert [flow.view.tuple5.client_port for flow in found] == [40_000, 40_001]
