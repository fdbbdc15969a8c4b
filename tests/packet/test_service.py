"""Step 2: exact port first, then any port, and only this address, port and protocol."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.packet import Packet, Raw

from agent.model import Protocol
from tests.packet.frames import CLIENT4, CLIENT6, VIP4, VIP6, ether, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service

OTHER4, OTHER6 = "203.0.113.99", "2001:db8::99"


@pytest.mark.parametrize(("vip", "other"), [(VIP4, OTHER4), (VIP6, OTHER6)])
def test_what_is_not_for_a_service_passes_byte_for_byte(rig: Rig, vip: str, other: str):
    rig.serve(service(backend("a"), vip=vip))
    for frame in (tcp(vip=other), tcp(vip=vip, port=81), udp(vip=vip, port=80)):
        done = rig.send(frame)
        assert (done.verdict, done.data) == (Verdict.PASS, frame)
    assert rig.reasons() == {"not-vip": 3}
    assert not rig.tables.flows.any()


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_tcp_and_udp_on_one_port_are_two_services(rig: Rig, vip: str):
    rig.serve(
        service(backend("a"), vip=vip, port=53),
        service(backend("b"), name="dns", vip=vip, port=53, protocol=Protocol.UDP),
    )
    assert rig.backend_of(tcp(vip=vip, port=53)) == "a"
    assert rig.backend_of(udp(vip=vip, port=53)) == "b"


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize("port", [1, 79, 81, 65_535])
def test_an_any_port_service_takes_every_port(rig: Rig, vip: str, port: int):
    rig.serve(service(backend("a"), vip=vip, port=0))
    assert rig.backend_of(tcp(vip=vip, port=port)) == "a"
    assert rig.verdict(udp(vip=vip, port=port)) == Verdict.PASS


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_the_exact_port_wins_over_any_port(rig: Rig, vip: str):
    rig.serve(
        service(backend("a"), name="any", vip=vip, port=0),
        service(backend("b"), name="exact", vip=vip, port=443),
    )
    assert rig.backend_of(tcp(vip=vip, port=443)) == "b"
    assert rig.backend_of(tcp(vip=vip, port=444)) == "a"


def test_ports_of_an_any_port_service_are_flows_of_their_own(rig: Rig):
    rig.serve(service(backend("a"), port=0))
    for port in (80, 81):
        rig.send(tcp(port=port))
    assert rig.counts("a").opened == 2


def test_a_removed_service_is_the_hosts_again(rig: Rig):
    rig.serve(service(backend("a")))
    rig.serve()
    done = rig.send(tcp())
    assert (done.verdict, done.data) == (Verdict.PASS, tcp())


# -- packets that show no ports


def pieces_of(packet: Packet) -> list[bytes]:
    return [bytes(ether() / piece) for piece in fragment(packet, fragsize=64)]


def test_later_fragments_follow_the_first_one(rig: Rig):
    rig.serve(service(*(backend(name) for name in "abcd")))
    for number in range(1, 20):
        packet = IP(src=CLIENT4, dst=VIP4, id=number) / TCP(sport=number, dport=80, flags="A")
        first, *others = pieces_of(packet / Raw(bytes(150)))
        assert len(others) == 2
        there = rig.backend_of(first)
        assert {rig.backend_of(piece) for piece in others} == {there}
    assert rig.reasons() == {}


def test_a_fragment_that_overtakes_the_first_is_left_to_the_host(rig: Rig):
    rig.serve(service(backend("a")))
    packet = IP(src=CLIENT4, dst=VIP4, id=9) / TCP(dport=80, flags="A") / Raw(bytes(150))
    _, second, _ = pieces_of(packet)
    done = rig.send(second)
    assert (done.verdict, done.data) == (Verdict.PASS, second)
    assert rig.reasons() == {"fragment": 1}


def test_fragments_for_other_addresses_pass_untouched(rig: Rig):
    rig.serve(service(backend("a")))
    for piece in pieces_of(IP(src=CLIENT4, dst=OTHER4) / TCP(dport=80) / Raw(bytes(150))):
        done = rig.send(piece)
        assert (done.verdict, done.data) == (Verdict.PASS, piece)


def test_fragmented_pings_to_a_vip_pass_untouched(rig: Rig):
    rig.serve(service(backend("a")))
    for piece in pieces_of(IP(src=CLIENT4, dst=VIP4) / ICMP() / Raw(bytes(150))):
        assert rig.verdict(piece) == Verdict.PASS


def test_ipv6_fragments_follow_the_first_one_too(rig: Rig):
    rig.serve(service(*(backend(name) for name in "abcd"), vip=VIP6))

    def frame(vip: str, offset: int, number: int) -> bytes:
        head = IPv6ExtHdrFragment(offset=offset, m=1, nh=6, id=number)
        ip = IPv6(src=CLIENT6, dst=vip) / head
        return bytes(ether() / ip / TCP(sport=number, dport=80, flags="A") / Raw(bytes(64)))

    for number in range(1, 20):
        first = rig.backend_of(frame(VIP6, 0, number))
        assert rig.backend_of(frame(VIP6, 100, number)) == first
    assert rig.verdict(frame(VIP6, 100, 77)) == Verdict.PASS
    assert rig.reasons() == {"fragment": 1}
    done = rig.send(frame(OTHER6, 0, 1))
    assert (done.verdict, done.data) == (Verdict.PASS, frame(OTHER6, 0, 1))


EXTENSIONS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(),
    "routing": IPv6ExtHdrRouting(),
    "destination-options": IPv6ExtHdrDestOpt(),
    "authentication": AH(nh=6, payloadlen=1),
}


def behind(vip: str, *heads: Packet) -> bytes:
    packet: Packet = IPv6(src=CLIENT6, dst=vip)
    for head in heads:
        packet /= head.copy()
    return bytes(ether() / packet / TCP(sport=40_000, dport=80, flags="S"))


@pytest.mark.parametrize("head", EXTENSIONS.values(), ids=EXTENSIONS)
def test_what_lies_behind_extension_headers_is_balanced_like_anything_else(rig: Rig, head: Packet):
    rig.serve(service(backend("a"), vip=VIP6))
    frame = behind(VIP6, head)
    done = rig.send(frame)
    assert (done.verdict, done.data[12:]) == (Verdict.TX, frame[12:])
    assert rig.slot(CLIENT6), "the same flow as without the header"
    done = rig.send(behind(OTHER6, head))
    assert (done.verdict, done.data) == (Verdict.PASS, behind(OTHER6, head))


def test_extension_headers_without_end_are_dropped_and_counted(rig: Rig):
    rig.serve(service(backend("a"), vip=VIP6))
    assert rig.verdict(behind(VIP6, *[IPv6ExtHdrDestOpt()] * 6)) == Verdict.TX
    assert rig.verdict(behind(VIP6, *[IPv6ExtHdrDestOpt()] * 7)) == Verdict.DROP
    assert rig.reasons() == {"extension": 1}
    assert rig.verdict(behind(OTHER6, *[IPv6ExtHdrDestOpt()] * 7)) == Verdict.PASS


def test_a_fragment_for_what_was_a_vip_passes(rig: Rig):
    rig.serve(service(backend("a"), vip=VIP6))
    rig.serve(service(backend("a"), vip=OTHER6))
    head = IPv6ExtHdrFragment(offset=1, m=1, nh=6)
    assert rig.verdict(bytes(ether() / IPv6(dst=VIP6) / head / Raw(bytes(64)))) == Verdict.PASS
