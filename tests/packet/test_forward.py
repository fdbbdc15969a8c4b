"""Step 5: exact bytes out, for each way to a backend."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from agent.dataplane import abi, libbpf
from agent.model import Forward, Protocol
from tests.packet import wrapper
from tests.packet.frames import (
    BALANCER4,
    BALANCER6,
    BALANCER_MAC,
    CLIENT4,
    CLIENT6,
    VIP4,
    VIP6,
    tcp,
    udp,
)
from tests.packet.harness import Rig, Verdict, backend, mac_of, service

BACKEND4, BACKEND6 = "10.1.2.3", "fd00:1::2:3"
FAMILIES = [(VIP4, BACKEND4), (VIP6, BACKEND6), (VIP4, BACKEND6), (VIP6, BACKEND4)]
NAMES = ["4in4", "6in6", "4in6", "6in4"]
GUE_PORT = 6080
each_family = pytest.mark.parametrize(("vip", "address"), FAMILIES, ids=NAMES)
tunnels = pytest.mark.parametrize("forward", [Forward.IPIP, Forward.GUE], ids=lambda f: f.value)


def routed(frame: bytes) -> bytes:
    """The IP packet of a frame as a router sends it on: TTL or hop limit less one."""
    packet = Ether(frame).payload
    if isinstance(packet, IP):
        packet.ttl -= 1
        del packet.chksum
    else:
        packet.hlim -= 1
    return bytes(packet)


def added(forward: Forward, address: str) -> int:
    """Bytes of the outer headers."""
    return (20 if address == BACKEND4 else 40) + (8 if forward is Forward.GUE else 0)


def outer(
    rig: Rig, address: str, frame: bytes, forward: Forward = Forward.IPIP, traffic_class: int = 0
) -> bytes:
    """What the balancer must make of a frame, by scapy, which makes the checksums."""
    inner = routed(frame)
    length = int.from_bytes(inner[2:4]) if inner[0] >> 4 == 4 else 40 + int.from_bytes(inner[4:6])
    number = 4 if inner[0] >> 4 == 4 else 41
    shell: Packet = Raw(inner)
    if forward is Forward.GUE:
        number, length = 17, length + 8
        sent = frame_udp(rig.send(frame).data)
        assert sent.sport >= 0xC000, "the dynamic ports"
        shell = UDP(sport=sent.sport, dport=GUE_PORT, len=length) / Raw(inner)
        if address == BACKEND4:
            shell.chksum = 0
    head = Ether(dst=mac_of(rig.address_of("a")), src=BALANCER_MAC)
    if address == BACKEND4:
        ip = IP(
            src=BALANCER4, dst=address, proto=number, tos=traffic_class, id=0, flags="DF", ttl=64,
            len=20 + length,
        )  # fmt: skip
    else:
        ip = IPv6(src=BALANCER6, dst=address, nh=number, tc=traffic_class, hlim=64, plen=length)
    return bytes(head / ip / shell)


def frame_udp(frame: bytes) -> UDP:
    return Ether(frame)[UDP]


@pytest.mark.parametrize(("vip", "address"), FAMILIES[:2])
@pytest.mark.parametrize("protocol", Protocol)
def test_dsr_changes_the_macs_and_nothing_else(
    rig: Rig, vip: str, address: str, protocol: Protocol
):
    rig.serve(service(backend("a", address), vip=vip, protocol=protocol))
    make = tcp if protocol is Protocol.TCP else udp
    frame = make(vip=vip, port=80, payload=b"hello")
    done = rig.send(frame)
    macs = bytes.fromhex((mac_of(rig.address_of("a")) + BALANCER_MAC).replace(":", ""))
    assert (done.verdict, done.data) == (Verdict.TX, macs + frame[12:])


@each_family
@tunnels
@pytest.mark.parametrize("make", [tcp, udp])
def test_a_tunnel_puts_an_exact_outer_header_around(
    rig: Rig, vip: str, address: str, forward: Forward, make
):
    protocol = Protocol.TCP if make is tcp else Protocol.UDP
    rig.serve(service(backend("a", address), vip=vip, forward=forward, protocol=protocol))
    frame = make(vip=vip, port=80, payload=b"hello")
    done = rig.send(frame)
    assert (done.verdict, done.data) == (Verdict.TX, outer(rig, address, frame, forward))


@each_family
@tunnels
@pytest.mark.parametrize("tos", [0x01, 0x02, 0x03, 0xB8, 0xFF])
def test_a_tunnel_copies_dscp_and_ecn(rig: Rig, vip: str, address: str, forward: Forward, tos: int):
    rig.serve(service(backend("a", address), vip=vip, forward=forward))
    fields = {"tos": tos} if vip == VIP4 else {"tc": tos, "fl": 0x12345}
    frame = tcp(vip=vip, **fields)
    assert rig.send(frame).data == outer(rig, address, frame, forward, tos)


@each_family
@tunnels
def test_ethernet_padding_is_not_part_of_the_packet(
    rig: Rig, vip: str, address: str, forward: Forward
):
    rig.serve(service(backend("a", address), vip=vip, forward=forward))
    frame, padding = tcp(vip=vip), bytes(6)
    assert rig.send(frame + padding).data == outer(rig, address, frame, forward) + padding


@each_family
@tunnels
def test_a_tunnel_carries_full_sized_packets(rig: Rig, vip: str, address: str, forward: Forward):
    rig.serve(service(backend("a", address), vip=vip, forward=forward), mtu=9000)
    frame = tcp("A", vip=vip, payload=bytes(i & 255 for i in range(1400)))
    assert rig.send(frame).data == outer(rig, address, frame, forward)


@each_family
@tunnels
def test_what_does_not_fit_once_encapsulated_is_answered_with_what_fits(
    rig: Rig, vip: str, address: str, forward: Forward
):
    head = 40 if vip == VIP4 else 60
    rig.serve(service(backend("a", address), vip=vip, forward=forward), mtu=1400)
    room = 1400 - added(forward, address)
    fits = bytes(room - head)
    assert rig.verdict(tcp("A", vip=vip, payload=fits)) == Verdict.TX
    done = rig.send(tcp("A", vip=vip, payload=fits + b"!"))
    assert done.verdict == Verdict.TX
    said = Ether(done.data)
    if vip == VIP4:
        assert (said[ICMP].type, said[ICMP].code, said[ICMP].nexthopmtu) == (3, 4, room)
    else:
        assert said[ICMPv6PacketTooBig].mtu == room
    assert (said.payload.src, said.payload.dst) == (vip, CLIENT4 if vip == VIP4 else CLIENT6)
    assert rig.reasons() == {"too-big": 1}
    assert rig.service_counts().replied == 1


def test_dsr_knows_no_too_big(rig: Rig):
    rig.serve(service(backend("a")), mtu=576)
    assert rig.verdict(tcp("A", payload=bytes(1400))) == Verdict.TX


def test_an_unknown_mtu_lets_everything_through(rig: Rig):
    rig.serve(service(backend("a", BACKEND4), forward=Forward.IPIP), mtu=0)
    assert rig.verdict(tcp("A", payload=bytes(1460))) == Verdict.TX


@pytest.mark.parametrize("forward", Forward)
def test_a_backend_behind_another_interface_is_redirected_to(rig: Rig, forward: Forward):
    rig.serve(service(backend("a", BACKEND4), forward=forward), ifindexes={"a": 4711})
    frame = tcp()
    done = rig.send(frame)
    assert done.verdict == Verdict.REDIRECT
    macs = bytes.fromhex((mac_of(rig.address_of("a")) + BALANCER_MAC).replace(":", ""))
    assert done.data[:12] == macs
    if forward.is_tunnel:
        assert done.data == outer(rig, BACKEND4, frame, forward)
    elif forward is Forward.DSR:
        assert done.data[12:] == frame[12:]
    else:
        assert Ether(done.data)[IP].dst == BACKEND4


def test_a_next_hop_that_moves_is_followed_by_recorded_flows(rig: Rig):
    web = service(backend("a"))
    rig.serve(web)
    rig.send(tcp())
    rig.serve(web, ifindexes={"a": 9})
    assert rig.verdict(tcp("A")) == Verdict.REDIRECT
    rig.serve(web)
    assert rig.verdict(tcp("A")) == Verdict.TX


def test_no_headroom_drops_and_counts(rig: Rig):
    squeeze = wrapper.in_front_of(rig.dataplane.program.fd, wrapper.SQUEEZE, "squeeze")
    rig.serve(service(backend("a", BACKEND4), forward=Forward.IPIP))
    assert libbpf.test_run(squeeze.fd, tcp()).verdict == Verdict.DROP
    assert rig.reasons() == {"no-headroom": 1}
    rig.serve(service(backend("a", BACKEND4), forward=Forward.DSR))
    assert libbpf.test_run(squeeze.fd, tcp()).verdict == Verdict.TX


def test_a_backend_that_says_no_way_drops_as_internal(rig: Rig):
    rig.serve(service(backend("a")))
    rig.tables.backends["forward"][rig.backend_id("a")] = abi.ForwardId.NONE
    assert rig.verdict(tcp()) == Verdict.DROP
    assert rig.service_counts().drops["internal"] == 1


def test_bytes_are_counted_as_the_client_sent_them(rig: Rig):
    rig.serve(service(backend("a", BACKEND6), forward=Forward.IPIP))
    rig.send(tcp("S"))
    rig.send(tcp("A", payload=bytes(100)))
    counts = rig.counts("a")
    assert (counts.packets, counts.bytes) == (2, 40 + 140)
