"""Step 3: what no sender means is dropped before it can cost a flow slot."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from agent.model import Protocol
from tests.packet.frames import CLIENT4, L3, VIP4, VIP6, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service

V4_L4, V6_L4 = L3 + 20, L3 + 40


def patched(frame: bytes, offset: int, layout: str, value: int) -> bytes:
    changed = bytearray(frame)
    struct.pack_into(layout, changed, offset, value)
    return bytes(changed)


@pytest.fixture(autouse=True)
def served(rig: Rig) -> None:
    rig.serve(
        service(backend("a")),
        service(backend("b"), name="web6", vip=VIP6),
        service(backend("c"), name="dns", port=53, protocol=Protocol.UDP),
        service(backend("d"), name="dns6", vip=VIP6, port=53, protocol=Protocol.UDP),
    )


MALFORMED = {
    "ipv4-longer-than-frame": patched(tcp(), L3 + 2, "!H", 41),
    "ipv4-shorter-than-tcp": patched(tcp(), L3 + 2, "!H", 39),
    "ipv4-shorter-than-ports": patched(tcp(), L3 + 2, "!H", 27),
    "ipv4-length-0": patched(tcp(), L3 + 2, "!H", 0),
    "ipv6-longer-than-frame": patched(tcp(vip=VIP6), L3 + 4, "!H", 21),
    "ipv6-shorter-than-tcp": patched(tcp(vip=VIP6), L3 + 4, "!H", 19),
    "ipv6-length-0": patched(tcp(vip=VIP6), L3 + 4, "!H", 0),
    "ipv6-length-wraps": patched(tcp(vip=VIP6), L3 + 4, "!H", 0xFFFF),
    "ipv6-length-wraps-to-40": patched(tcp(vip=VIP6), L3 + 4, "!H", 0xFFE8 + 16),
    "tcp-cut": tcp()[: V4_L4 + 19],
    "tcp-offset-4": patched(tcp(), V4_L4 + 12, "B", 0x40),
    "tcp-offset-beyond-segment": patched(tcp(), V4_L4 + 12, "B", 0x60),
    "tcp6-offset-beyond-segment": patched(tcp(vip=VIP6), V6_L4 + 12, "B", 0xF0),
    "tcp-no-flags": tcp(""),
    "tcp-fin-alone": tcp("F"),
    "tcp-psh-alone": tcp("P"),
    "tcp-xmas": tcp("FPU"),
    "tcp-syn-fin": tcp("SF"),
    "tcp-syn-rst": tcp("SR"),
    "tcp-syn-fin-ack": tcp("SFA"),
    "tcp6-no-flags": tcp("", vip=VIP6),
    "udp-length-7": patched(udp(), V4_L4 + 4, "!H", 7),
    "udp-longer-than-packet": patched(udp(), V4_L4 + 4, "!H", 14),
    "udp6-length-0": patched(udp(vip=VIP6), V6_L4 + 4, "!H", 0),
    "udp6-longer-than-packet": patched(udp(vip=VIP6), V6_L4 + 4, "!H", 14),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_malformed_packets_are_dropped_counted_and_cost_no_slot(rig: Rig, frame: bytes):
    assert rig.verdict(frame) == Verdict.DROP
    assert rig.reasons() == {"malformed": 1}
    assert not rig.tables.flows.any()


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_malformed_packets_for_others_are_not_ours_to_judge(rig: Rig, frame: bytes):
    rig.serve()
    done = rig.send(frame)
    assert (done.verdict, done.data) == (Verdict.PASS, frame)


WELL_FORMED = {
    "syn": tcp("S"),
    "syn-ecn": tcp("SEC"),
    "syn-with-data": tcp("S", payload=b"fast open"),
    "syn-ack": tcp("SA"),
    "ack": tcp("A"),
    "data": tcp("PA", payload=b"x"),
    "fin": tcp("FA"),
    "rst": tcp("R"),
    "rst-ack": tcp("RA"),
    "urgent": tcp("UA"),
    "tcp-options": bytes(
        Ether() / IP(dst=VIP4) / TCP(dport=80, flags="S", options=[("MSS", 1460), ("SAckOK", "")])
    ),
    "tcp-offset-15": bytes(
        Ether() / IP(dst=VIP4) / TCP(dport=80, flags="A", options=[("NOP", None)] * 40)
    ),
    "tcp6": tcp("S", vip=VIP6),
    "udp": udp(),
    "udp-empty": udp(payload=b""),
    "udp-shorter-than-ip": patched(udp(), V4_L4 + 4, "!H", 9),
    "udp6": udp(vip=VIP6),
    "trailing-bytes": tcp() + bytes(6),
}


@pytest.mark.parametrize("frame", WELL_FORMED.values(), ids=WELL_FORMED)
def test_what_a_sender_can_mean_is_forwarded(rig: Rig, frame: bytes):
    done = rig.send(frame)
    assert (done.verdict, done.data[12:]) == (Verdict.TX, frame[12:])
    assert rig.reasons() == {}


@pytest.mark.parametrize("make", [tcp, udp])
@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_no_cut_of_a_packet_is_forwarded(rig: Rig, make: Callable[..., bytes], vip: str):
    frame = make(vip=vip, payload=b"0123456789")
    for length in range(L3, len(frame)):
        assert rig.verdict(frame[:length]) != Verdict.TX
    assert rig.verdict(frame) == Verdict.TX


def test_a_first_fragment_that_shows_its_ports_is_a_flow(rig: Rig):
    frame = patched(tcp(payload=b"x" * 8), L3 + 6, "!H", 0x2000)
    assert rig.verdict(frame) == Verdict.TX
    assert rig.slot(CLIENT4)
