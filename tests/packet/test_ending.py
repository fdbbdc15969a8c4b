"""Flows that the agent ends: whatever comes of either end is answered with an RST that is exact."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest

from agent.dataplane import abi, ending, survey
from agent.dataplane.ending import Ended, Flows
from agent.dataplane.explain import explain
from agent.model import Forward, Protocol
from agent.state.queries import FiveTuple
from tests.packet import nodes
from tests.packet.frames import BALANCER4, BALANCER6, CLIENT4, CLIENT6, VIP4, VIP6
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.wires import Packet

SERVER4, SERVER6 = "10.1.2.3", "fd00:1::2:3"
FAMILIES = pytest.mark.parametrize("vip", [VIP4, VIP6], ids=["v4", "v6"])
FORWARDS = pytest.mark.parametrize("forward", list(Forward), ids=lambda forward: forward.value)
NATS = pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT], ids=["nat", "fullnat"])
ASKED = b"POST / HTTP/1.1\r\n\r\n"
SEQ, ACK = 1000, 7_000_000  # of the client's first byte, and the server's


class Talk:
    """A client that has asked, and waits."""

    def __init__(self, rig: Rig, forward: Forward, vip: str = VIP4, sport: int = 40_000) -> None:
        is_v4 = vip == VIP4
        self.rig, self.vip, self.sport = rig, vip, sport
        self.client, self.own = (CLIENT4, BALANCER4) if is_v4 else (CLIENT6, BALANCER6)
        self.server = SERVER4 if is_v4 else SERVER6
        rig.serve(service(backend("a", self.server), vip=vip, forward=forward))
        out = self.says("S", b"", SEQ - 1, 0)
        if forward.is_nat:
            asked = self.packet("S", b"", SEQ - 1, 0)
            syn_ack = nodes.answer(asked, out, flags="SA", payload=b"", seq=ACK - 1)
            assert rig.verdict(syn_ack.frame()) == Verdict.TX
        self.says("A", b"", SEQ, ACK)
        sent = self.says("PA", ASKED, SEQ, ACK)
        at = 14 + (20 if is_v4 else 40)
        # What the server takes for its client, where answers pass.
        self.seen = self.client, sport
        if forward is Forward.FULLNAT:
            self.seen = self.own, int.from_bytes(sent[at : at + 2])

    def packet(self, flags: str, payload: bytes = b"", seq: int = SEQ + len(ASKED),
               ack: int = ACK) -> Packet:  # fmt: skip
        return Packet(self.client, self.vip, self.sport, 80, payload, flags, seq, ack)

    def says(self, flags: str, payload: bytes, seq: int, ack: int) -> bytes:
        done = self.rig.send(self.packet(flags, payload, seq, ack).frame())
        assert done.verdict == Verdict.TX, self.rig.reasons()
        return done.data

    def answer(self, flags: str, ack: int = SEQ + len(ASKED)) -> Packet:
        """The server's packet."""
        return Packet(self.server, self.seen[0], 80, self.seen[1], b"", flags, ACK, ack)


def all_flows(rig: Rig) -> Flows:
    return Flows(*survey.used_slots(rig.tables.flows))


def ended(rig: Rig) -> Ended:
    plane = rig.dataplane
    flows = ending.whole_tcp(rig.tables, all_flows(rig), rig.names(), plane.keys)
    return ending.end(rig.tables, flows, plane.now_jiffies() >> plane.clock.shift)


def reset_of(packet: Packet) -> bytes:
    """The frame that answers it (RFC 9293, section 3.10.7.1)."""
    told = Packet(packet.dst, packet.src, packet.dport, packet.sport, b"", "R", packet.ack, 0,
                  ident=0)  # fmt: skip
    raw = bytearray(told.frame("02:00:00:00:00:fe", "02:00:00:00:00:fe"))
    asked = packet.frame()
    raw[:12] = asked[6:12] + asked[:6]
    return bytes(raw)


def windowless(frame: bytes, packet: Packet) -> tuple[object, ...]:
    """What of a bare segment matters, and that its checksums are right."""
    at = 14 + (20 if packet.is_ipv4 else 40)
    return frame[:14], frame[at : at + 14], len(frame)


def assert_reset(rig: Rig, packet: Packet) -> None:
    done = rig.send(packet.frame())
    assert done.verdict == Verdict.TX, rig.reasons()
    assert windowless(done.data, packet) == windowless(reset_of(packet), packet)


@FAMILIES
@FORWARDS
def test_the_client_of_an_ended_flow_is_reset_where_it_stands(hooked: Rig, forward, vip):
    talk = Talk(hooked, forward, vip)
    assert len(ended(hooked)) == 1
    for stands in (ACK, ACK + 123_456):  # it has got more than is recorded
        assert_reset(hooked, talk.packet("A", ack=stands))
    assert_reset(hooked, talk.packet("FA"))
    assert hooked.verdict(talk.packet("R").frame()) == Verdict.DROP
    assert hooked.reasons()["no-flow"] == 4


@FORWARDS
def test_no_backend_is_needed_for_that(hooked: Rig, forward):
    talk = Talk(hooked, forward)
    ended(hooked)
    hooked.serve(service(vip=VIP4, forward=forward))
    assert_reset(hooked, talk.packet("A"))


@FAMILIES
@NATS
def test_the_server_of_an_ended_flow_is_reset_where_it_stands(hooked: Rig, forward, vip):
    talk = Talk(hooked, forward, vip)
    ended(hooked)
    assert_reset(hooked, talk.answer("PA", SEQ + 5))
    assert hooked.verdict(talk.answer("R").frame()) == Verdict.DROP


@FORWARDS
def test_the_client_may_connect_anew_from_the_same_port(hooked: Rig, forward):
    talk = Talk(hooked, forward)
    ended(hooked)
    talk.says("S", b"", 5000, 0)
    assert hooked.state(talk.client, talk.sport) is abi.FlowState.EMBRYONIC
    counts = hooked.counts("a")
    assert (counts.opened, counts.closed) == (2, 1)


def test_explain_says_what_became_of_it(rig: Rig):
    talk = Talk(rig, Forward.DSR)
    ended(rig)
    five = FiveTuple(Protocol.TCP, ip_address(CLIENT4), talk.sport, ip_address(VIP4), 80)
    assert any("it was reset" in step for step in explain(rig.view(), five).steps)


def test_what_a_flow_had_in_the_sums_is_taken_out(rig: Rig):
    Talk(rig, Forward.DSR)
    before = rig.load_of("a")
    ended(rig)
    after, counts = rig.load_of("a"), rig.counts("a")
    assert after["open"] + after["open_fix"] == before["open"] + before["open_fix"] - 1
    assert (counts.opened, counts.closed) == (1, 1)


def test_a_flow_that_has_moved_since_it_was_chosen_is_left_alone(rig: Rig):
    talk = Talk(rig, Forward.DSR)
    chosen = all_flows(rig)
    talk.says("FA", b"", SEQ + len(ASKED), ACK)
    assert len(ending.end(rig.tables, chosen, 0)) == 0
    talk.says("A", b"", SEQ + len(ASKED), ACK)


@FAMILIES
@FORWARDS
def test_both_ends_are_told_as_far_as_they_can_be(rig: Rig, forward, vip):
    talk = Talk(rig, forward, vip)
    found = {
        (str(s.source), s.source_port, str(s.to), s.to_port, s.flags): (s.seq, s.ack)
        for s in ending.segments(rig.tables, ended(rig))
    }
    next_byte, to_client = SEQ + len(ASKED), (vip, 80, talk.client, talk.sport)
    expected = {(*to_client, 4): (ACK, 0), (*to_client, 16): (ACK - 1, next_byte)}
    if forward.is_nat:
        to_server = (*talk.seen, talk.server, 80)
        expected |= {(*to_server, 4): (next_byte, 0), (*to_server, 16): (next_byte - 1, ACK)}
    assert found == expected


def test_a_port_that_has_gone_to_another_flow_is_not_reset(rig: Rig):
    Talk(rig, Forward.FULLNAT)
    done = ended(rig)
    held = np.flatnonzero(rig.tables.nat_slots["owner"])
    rig.tables.nat_slots["owner"][held] += np.uint64(1)
    assert {s.to for s in ending.segments(rig.tables, done)} == {ip_address(CLIENT4)}


def test_datagrams_and_unfinished_handshakes_are_not_ended(rig: Rig):
    rig.serve(service(backend("a", SERVER4), protocol=Protocol.UDP))
    for _ in range(3):
        rig.send(Packet(flags=None).frame())
    assert len(all_flows(rig)) == 1
    assert len(ended(rig)) == 0
    rig.serve(service(backend("a", SERVER4)))
    rig.send(Packet(flags="S").frame())
    ids = np.array([rig.backend_id("a")])
    assert len(ending.at_backends(rig.tables, ids, ending.HALF_OPEN_TOO)) == 0


@NATS
def test_expired_flows_of_nat_are_found_and_those_of_other_modes_left_to_the_sweep(
    rig: Rig, forward
):
    talk = Talk(rig, forward)
    jiffies = rig.dataplane.now_jiffies()
    later = (jiffies >> rig.clock.shift) + rig.clock.ticks(901) + 1
    found = survey.survey(rig.tables, later)
    services = np.array([rig.names().salts.copy().popitem()[0]])
    assert len(ending.expired(rig.tables, found, services)) == 1
    assert len(ending.expired(rig.tables, found, services[:0])) == 0
    done = ended(rig)
    assert survey.sweep(rig.tables, found) == 0  # it is ended, not forgotten
    found = survey.survey(rig.tables, jiffies >> rig.clock.shift)
    assert len(found.expired) == 0
    assert_reset(rig, talk.packet("A"))
    over = survey.survey(rig.tables, (jiffies >> rig.clock.shift) + survey.ENDED_TICKS + 2)
    assert survey.sweep(rig.tables, over) == 1
    assert list(ending.segments(rig.tables, done)) == []
    assert rig.counts("a").closed == 1


def test_what_the_server_sends_to_a_forgotten_flow_of_fullnat_is_not_the_hosts(hooked: Rig):
    talk = Talk(hooked, Forward.FULLNAT)
    hooked.tables.flows[all_flows(hooked).slots] = 0
    assert_reset(hooked, talk.answer("PA"))
    frame = Packet("10.1.2.4", talk.seen[0], 80, talk.seen[1], flags="PA").frame()
    assert hooked.verdict(frame) == Verdict.PASS  # nobody is made to send to strangers


def test_a_peer_is_told_that_ended_flows_are_over(rig: Rig, other: Rig):
    it = nodes.case(Forward.DSR, 4)
    a, b = nodes.serve(rig, other, it)
    nodes.opened(rig, it)
    b.take(a.changed())
    assert len(ended(rig)) == nodes.FLOWS
    assert b.take(a.changed()).removed == nodes.FLOWS
    assert len(a.changed()) == 0
