"""New flows are held back until a deadline that the packet path itself checks, or until a service
has a backend again.
"""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest

from agent.dataplane import abi, libbpf
from agent.dataplane.abi import FlowState
from agent.dataplane.held import HELD_S, HELD_SYNS, HeldSyn, HeldSyns, finished
from agent.dataplane.hold import new_flows_held
from agent.model import Forward, NoBackend, Protocol, Scheduler
from agent.state.tables import ServiceEntry
from tests.packet import nodes
from tests.packet.frames import CLIENT4, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pauses import undisturbed
from tests.packet.places import V4, V6, Place
from tests.packet.wires import Packet, Tags, checksum, pseudo_header

PORTS = itertools.count(20_000)
LIMIT_S = 60.0


def held(rig: Rig, frame: bytes) -> libbpf.TestRun:
    """A frame that comes while new flows are held back. If this host pauses for longer than that,
    the test fails, to be repeated.
    """
    with new_flows_held(rig.tables.settings):
        until_ns = int(rig.tables.settings["held_until"][0])
        done = rig.send(frame)
        is_late = time.monotonic_ns() >= until_ns
    rig.has_paused |= is_late
    assert not is_late, "the hold has ended by itself"
    return done


@undisturbed
def test_new_flows_come_in_again_at_the_deadline(rig: Rig):
    rig.serve(service(backend("a")))
    now_ns = time.monotonic_ns()
    rig.tables.settings["held_until"] = now_ns
    assert rig.verdict(tcp(client_port=next(PORTS))) == Verdict.TX, "it is over"
    assert rig.reasons() == {}
    assert held(rig, tcp()).verdict == Verdict.DROP
    assert rig.slot(CLIENT4) is None
    assert rig.service_counts().drops["held"] == 1
    assert rig.verdict(tcp()) == Verdict.TX, "the hold was ended"
    assert rig.state(CLIENT4) is FlowState.EMBRYONIC


@pytest.mark.parametrize("ahead_ns", [60 * 10**9, 2**63])
def test_a_deadline_that_nobody_can_have_meant_holds_nobody(rig: Rig, ahead_ns: int):
    """The agent's monotonic clock is another one in a time namespace."""
    rig.serve(service(backend("a")))
    rig.tables.settings["held_until"] = time.monotonic_ns() + ahead_ns
    assert rig.verdict(tcp()) == Verdict.TX


@pytest.mark.parametrize("scheduler", Scheduler)
@undisturbed
def test_nobody_is_told_and_recorded_flows_go_on(rig: Rig, scheduler: Scheduler):
    rig.serve(service(backend("a"), scheduler=scheduler, no_backend=NoBackend.RESET))
    open_port = next(PORTS)
    segment = tcp("PA", client_port=open_port, payload=b"GET /")
    rig.send(tcp(client_port=open_port))
    before = rig.send(segment)
    assert held(rig, segment).data == before.data
    for flags in ("S", "A", "PA", "FA", "R"):
        assert held(rig, tcp(flags, client_port=next(PORTS))).verdict == Verdict.DROP, flags
    assert rig.reasons() == {"held": 5}


@undisturbed
def test_a_syn_that_nothing_has_answered_waits_too(rig: Rig):
    """Such a flow has no addresses yet that another balancer could be told."""
    rig.serve(service(backend("a")))
    rig.send(tcp())
    assert held(rig, tcp()).verdict == Verdict.DROP
    assert rig.verdict(tcp()) == Verdict.TX
    assert held(rig, tcp("A")).verdict == Verdict.TX, "its handshake goes on"


@undisturbed
def test_datagrams_wait_as_well_those_with_a_server_id_included(rig: Rig):
    ident = bytes.fromhex("0a0b0c0d")
    rig.serve(
        service(
            backend("a", quic_server_id=ident), port=443, protocol=Protocol.UDP, quic_id_bytes=4
        )
    )
    named = b"\x40\x04" + ident + bytes(20)
    assert held(rig, udp(port=443, payload=named)).verdict == Verdict.DROP
    assert rig.verdict(udp(port=443, payload=named)) == Verdict.TX
    assert held(rig, udp(port=443, payload=named)).verdict == Verdict.TX


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_an_agent_that_dies_or_is_stopped_in_it_holds_nobody_for_long(
    rig: Rig, how: signal.Signals
):
    rig.serve(service(backend("a")))
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with new_flows_held(rig.tables.settings):
            os.write(writing, b".")
            signal.pause()
    assert os.read(reading, 1)
    try:
        os.kill(pid, how)
        os.waitpid(pid, os.WUNTRACED)
        until_ns = int(rig.tables.settings["held_until"][0])
        assert until_ns <= time.monotonic_ns() + abi.HOLD_MAX_NS
        end = time.monotonic() + LIMIT_S
        while rig.verdict(tcp(client_port=next(PORTS))) != Verdict.TX:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert time.monotonic_ns() >= until_ns
        assert rig.reasons().keys() <= {"held"}
    finally:
        os.close(reading)
        os.close(writing)
        if how is signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# -- a service waits for its first backend


def waiting(rig: Rig) -> tuple[HeldSyn, ...]:
    return tuple(HeldSyns(rig.dataplane).read(time.monotonic_ns()).syns())


def serve(
    rig: Rig, at: Place = V4, forward: Forward = Forward.DSR, *, up: bool, **more: object
) -> ServiceEntry:
    """A service that waits for its backend; the entry of its table."""
    one = service(backend("a", at.server), vip=at.vip, forward=forward, no_backend=NoBackend.HOLD)
    rig.serve(one, down=() if up else ("a",), nat=nodes.NAT, **more)
    (entry,) = rig.view().contents.services.values()
    return entry


def forwarded(rig: Rig, packet: Packet, tags: Tags) -> bytes:
    """The frame that a SYN of a flow that is already recorded becomes, with its outer tag."""
    data = rig.send(packet.frame()).data
    if tags and rig.dataplane.program.kind is libbpf.ProgramType.SCHED_CLS:
        return data[:12] + b"".join(n.to_bytes(2) for n in tags[0]) + data[12:]
    return data


@pytest.mark.pairs
@pytest.mark.parametrize("forward", Forward)
@pytest.mark.parametrize("at", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("tags", [(), ((0x8100, 0x6005),), ((0x88A8, 7), (0x8100, 100))], ids=len)
@pytest.mark.parametrize("options", [0, 12, 36, 40])
def test_a_syn_goes_where_its_client_would_have_sent_it_again(
    hooked: Rig, forward: Forward, at: Place, tags: Tags, options: int
):
    serve(hooked, at, forward, up=False)
    syn = Packet(at.client, at.vip, options=b"\1" * options)
    assert hooked.verdict(syn.frame()) == Verdict.DROP
    assert hooked.reasons() == {"held": 1}
    assert hooked.slot(at.client) is None
    (found,) = waiting(hooked)
    assert (found.frame, found.ifindex) == (syn.frame(), hooked.dataplane.ifindex)
    ends = str(found.client), found.client_port, str(found.vip), found.port
    assert ends == (at.client, 40_000, at.vip, 80)
    entry = serve(hooked, at, forward, up=True, vlans={"a": tags}, ifindexes={"a": 7})
    sent = HeldSyns(hooked.dataplane).send(found, entry)
    assert sent is not None
    assert (sent.ifindex, sent.data) == (7, forwarded(hooked, syn, tags))
    assert hooked.counts("a").opened == 1
    assert waiting(hooked) == ()


def test_the_newest_syn_of_a_client_is_kept_with_the_tag_it_came_with(rig: Rig):
    serve(rig, up=False)
    for seq in (1, 2):
        rig.send(Packet(seq=seq).frame(tags=((0x8100, 5),)))
    rig.send(Packet(sport=40_001).frame())
    first, other = waiting(rig)
    assert first.frame == Packet(seq=2).frame(tags=((0x8100, 5),))
    assert other.frame == Packet(sport=40_001).frame()
    assert rig.reasons() == {"held": 3}


def test_only_what_begins_a_connection_waits(rig: Rig):
    serve(rig, up=False)
    for flags in ("A", "PA", "SA", "FA", "R"):
        rig.send(Packet(flags=flags).frame())
    assert rig.reasons() == {"no-backend": 5}
    rig.send(Packet(payload=bytes(100)).frame())  # RFC 7413, and more than there is room for
    assert rig.reasons() == {"no-backend": 5, "held": 1}
    assert waiting(rig) == ()


def test_a_datagram_waits_for_its_client(rig: Rig):
    one = service(backend("a"), port=53, protocol=Protocol.UDP, no_backend=NoBackend.HOLD)
    rig.serve(one, down=("a",))
    assert rig.verdict(udp()) == Verdict.DROP
    assert rig.reasons() == {"held": 1}
    assert waiting(rig) == ()


def test_a_flood_pushes_out_the_oldest_and_nothing_else(rig: Rig):
    serve(rig, up=False)
    for number in range(2 * HELD_SYNS):
        rig.send(Packet(src=f"198.18.{number >> 8 & 255}.{number & 255}").frame())
    rig.send(Packet(sport=1234).frame())
    kept = HeldSyns(rig.dataplane).read(time.monotonic_ns())  # once: they are given up with time
    found = tuple(kept.syns())
    assert len(found) <= HELD_SYNS
    assert kept.by_service() == {rig.service_id("web"): len(found)}
    assert found[-1].client_port == 1234


def test_a_client_that_has_given_up_is_forgotten(rig: Rig):
    serve(rig, up=False)
    rig.send(Packet().frame())
    later_ns = time.monotonic_ns() + int((HELD_S + 1) * 1e9)
    assert HeldSyns(rig.dataplane).read(later_ns).by_service() == {}
    assert waiting(rig) == ()


def test_without_room_for_the_flow_the_clients_timer_remains(rig: Rig):
    serve(rig, up=False, forward=Forward.NAT)
    rig.send(Packet().frame())
    (found,) = waiting(rig)
    entry = serve(rig, up=False, forward=Forward.NAT)  # it went down again
    assert HeldSyns(rig.dataplane).send(found, entry) is None


def test_other_services_keep_no_syn(rig: Rig):
    rig.serve(service(backend("a")), down=("a",))
    assert rig.verdict(Packet().frame()) == Verdict.DROP
    assert rig.reasons() == {"no-backend": 1}
    assert waiting(rig) == ()


@pytest.mark.parametrize("at", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("options", [0, 12])
def test_a_checksum_that_was_left_to_a_card_is_finished(at: Place, options: int):
    packet = Packet(at.client, at.vip, options=b"\1" * options)
    whole, l4 = packet.frame(tags=((0x8100, 5),)), packet.l4
    part = ~checksum(pseudo_header(at.client, at.vip, 6, len(l4))) & 0xFFFF
    left = whole.replace(l4, l4[:16] + part.to_bytes(2) + l4[18:])
    assert finished(left) == whole != left
    assert finished(whole) == whole
    broken = whole.replace(l4, l4[:16] + b"\x12\x34" + l4[18:])
    assert finished(broken) == broken, "what the network has damaged stays damaged"
