"""Step 3: what no sender means is dropped before it can cost a flow slot."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP

from agent.model import Forward, Nat, Protocol
from tests.packet.frames import CLIENT4, L3, VIP4, VIP6, ether, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.wires import Packet

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
        ether()
        / IP(src=CLIENT4, dst=VIP4)
        / TCP(dport=80, flags="S", options=[("MSS", 1460), ("SAckOK", "")])
    ),
    "tcp-offset-15": bytes(
        ether() / IP(src=CLIENT4, dst=VIP4) / TCP(dport=80, flags="A", options=[("NOP", None)] * 40)
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


# -- what no client begins a flow with

NO_HOSTS = (
    "0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255", "224.0.0.1", "239.255.255.255",
    "240.0.0.0", "255.255.255.255", "::", "::1", "::192.0.2.1", "::ffff:192.0.2.1", "ff02::1",
)  # fmt: skip
HOSTS = (
    "1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "10.0.0.1", "169.254.1.1",
    "0:0:0:1::", "::1:0:0:1", "::fffe:c000:201", "64:ff9b::192.0.2.1", "fe80::1", "fd00::1",
    "feff::1",
)  # fmt: skip
ANY, PREFIX, NAT_SOURCE = "203.0.113.77", "198.18.0.0", "10.0.0.5"
BROADCAST, GROUP = "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"
LOOSE, STRICT = b"\x83\x07\x04\x0a\0\0\1\0", b"\x89\x07\x04\x0a\0\0\1\0"
TIMESTAMP, RECORD, ALERT = b"\x44\x08\x05\0\0\0\0\0", b"\7\7\4\0\0\0\0\0", b"\x94\x04\0\0"
ROUTED = {
    "loose": LOOSE,
    "strict": STRICT,
    "as-bsd-sends-it": b"\1" + LOOSE[:7],
    "behind-others": TIMESTAMP + RECORD[:7] + b"\1" + ALERT + LOOSE,
    "at-the-end": b"\1" * 36 + b"\x83\3\4\0",
    "without-addresses": b"\x83\3\4\0",
    "behind-an-option-that-is-too-short": b"\7\1\1\x83\3\4\0\0",
    "too-many-to-look-at": ALERT * 10,
}
UNROUTED = {
    "padding": b"\1" * 28,
    "end-then-rubbish": b"\0" + LOOSE[:7],
    "record-route": RECORD,
    "timestamp": TIMESTAMP,
    "alert-and-padding": ALERT + b"\1" * 8,
    "several": ALERT + RECORD + TIMESTAMP,
    "as-data-of-another": b"\7\x0c\x0c" + LOOSE + b"\0",
    "length-beyond-the-header": b"\7\xff\4\0",
}


def dropped(rig: Rig, frame: bytes, reason: str) -> None:
    before = rig.tables.flows.copy()
    assert rig.verdict(frame) == Verdict.DROP
    assert rig.reasons() == {reason: 1}
    assert (rig.tables.flows == before).all()


def asked(src: str, **fields: object) -> Packet:
    return Packet(src, VIP4 if ip_address(src).version == 4 else VIP6, **fields)


@pytest.mark.parametrize("src", NO_HOSTS)
@pytest.mark.parametrize("forward", Forward)
def test_nobody_begins_a_flow_from_an_address_of_no_host(rig: Rig, src: str, forward: Forward):
    rig.serve(service(backend("a"), vip=asked(src).dst, forward=forward))
    dropped(rig, asked(src).frame(), "martian")


@pytest.mark.parametrize("src", HOSTS)
def test_addresses_beside_those_of_no_host_are_clients(rig: Rig, src: str):
    assert rig.verdict(asked(src).frame()) == Verdict.TX


@pytest.mark.parametrize("flags", ["A", "PA", "SA", "FA", "R", None])
def test_martians_that_are_no_syn_are_dropped_too(rig: Rig, flags: str | None):
    packet = Packet("127.0.0.1", dport=80 if flags else 53, flags=flags)
    dropped(rig, packet.frame(), "martian")


@pytest.mark.parametrize(
    "src",
    [VIP4, ANY, PREFIX, "198.18.0.9", NAT_SOURCE, VIP6, "2001:db8:9::1", "fd00::5"],
)
@pytest.mark.parametrize("forward", Forward)
def test_what_is_ours_is_no_client(rig: Rig, src: str, forward: Forward):
    """It would be answered to ourselves, and by some backends to themselves."""
    rig.serve(
        service(backend("a"), forward=forward),
        service(backend("b", "fd00:1::1"), name="web6", vip=VIP6, forward=forward),
        service(backend("c"), name="any", vip=ANY, port=0),
        service(backend("d"), name="prefix", vip=PREFIX, vip_bits=24),
        service(backend("e"), name="prefix6", vip="2001:db8:9::", vip_bits=64),
        service(backend("f"), name="full", port=81, forward=Forward.FULLNAT),
        service(backend("g", "fd00:1::7"), name="full6", vip=VIP6, port=81,
                forward=Forward.FULLNAT),
        nat=Nat(sources_v4=(ip_address(NAT_SOURCE),), sources_v6=(ip_address("fd00::5"),)),
    )  # fmt: skip
    dropped(rig, asked(src).frame(), "martian")


@pytest.mark.parametrize("forward", Forward)
def test_a_backend_may_be_a_client(rig: Rig, forward: Forward):
    """Of another service, or of its own: a server that asks its own pool."""
    rig.serve(service(backend("a", "10.1.0.1"), backend("b", "10.1.0.2"), forward=forward))
    assert rig.verdict(asked("10.1.0.1", sport=4711).frame()) == Verdict.TX


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize("dst", [BROADCAST, GROUP])
@pytest.mark.parametrize("tags", [(), ((0x8100, 5),)], ids=["untagged", "tagged"])
def test_nobody_begins_a_flow_in_a_frame_to_many(rig: Rig, vip: str, dst: str, tags):
    client = CLIENT4 if vip == VIP4 else "2001:db8:c::7"
    dropped(rig, Packet(client, vip).frame(dst, tags=tags), "broadcast")


@pytest.mark.parametrize("options", ROUTED.values(), ids=ROUTED)
def test_nobody_begins_a_flow_with_a_source_route(rig: Rig, options: bytes):
    dropped(rig, Packet(ip_options=options).frame(), "source-route")


@pytest.mark.parametrize("options", UNROUTED.values(), ids=UNROUTED)
def test_other_options_are_no_source_route(rig: Rig, options: bytes):
    assert rig.verdict(Packet(ip_options=options).frame()) == Verdict.TX
    assert rig.reasons() == {}


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize("flags", ["S", None])
@pytest.mark.parametrize("ports", [(0, 7), (40_000, 0), (0, 0)])
def test_nobody_begins_a_flow_from_or_to_port_zero(
    rig: Rig, vip: str, flags: str | None, ports: tuple[int, int]
):
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    rig.serve(service(backend("a"), vip=vip, port=0, protocol=protocol))
    client = CLIENT4 if vip == VIP4 else "2001:db8:c::7"
    packet = Packet(client, vip, *ports, flags=flags)
    dropped(rig, packet.frame(), "port-zero")
    assert rig.verdict(replace(packet, sport=1, dport=1).frame()) == Verdict.TX


@pytest.mark.parametrize("change", [{"dst": BROADCAST}, {"ip_options": LOOSE}], ids=str)
def test_recorded_flows_are_not_looked_at_again(rig: Rig, change: dict[str, object]):
    """They began like any other; what such a packet may do is its backend's to judge."""
    rig.send(Packet().frame())
    options = change.get("ip_options", b"")
    packet = Packet(flags="PA", seq=1001, payload=b"GET /", ip_options=options)
    assert rig.verdict(packet.frame(change.get("dst", "02:00:00:00:00:01"))) == Verdict.TX
