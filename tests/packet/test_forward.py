"""Step 5: exact bytes out, for each way to a backend."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from agent.dataplane import abi, libbpf
from agent.model import Forward, Protocol
from tests.packet import wrapper
from tests.packet.frames import (
    BALANCER4,
    BALANCER6,
    BALANCER_MAC,
    L3,
    VIP4,
    VIP6,
    tcp,
    udp,
)
from tests.packet.harness import Rig, Verdict, backend, mac_of, service

BACKEND4, BACKEND6 = "10.1.2.3", "fd00:1::2:3"
FAMILIES = [(VIP4, BACKEND4), (VIP6, BACKEND6), (VIP4, BACKEND6), (VIP6, BACKEND4)]
NAMES = ["4in4", "6in6", "4in6", "6in4"]
ipip = pytest.mark.parametrize(("vip", "address"), FAMILIES, ids=NAMES)


def outer(rig: Rig, address: str, inner: bytes, traffic_class: int = 0) -> bytes:
    """What the balancer must put around ``inner``, by scapy (which makes the checksum)."""
    length = int.from_bytes(inner[2:4]) if inner[0] >> 4 == 4 else 40 + int.from_bytes(inner[4:6])
    number = 4 if inner[0] >> 4 == 4 else 41
    frame = Ether(dst=mac_of(rig.address_of("a")), src=BALANCER_MAC)
    if address == BACKEND4:
        head = IP(
            src=BALANCER4, dst=address, proto=number, tos=traffic_class, id=0, flags="DF", ttl=64,
            len=20 + length,
        )  # fmt: skip
    else:
        head = IPv6(src=BALANCER6, dst=address, nh=number, tc=traffic_class, hlim=64, plen=length)
    return bytes(frame / head / Raw(inner))


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


@ipip
@pytest.mark.parametrize("make", [tcp, udp])
def test_ipip_puts_an_exact_outer_header_around(rig: Rig, vip: str, address: str, make):
    protocol = Protocol.TCP if make is tcp else Protocol.UDP
    rig.serve(service(backend("a", address), vip=vip, forward=Forward.IPIP, protocol=protocol))
    frame = make(vip=vip, port=80, payload=b"hello")
    done = rig.send(frame)
    assert (done.verdict, done.data) == (Verdict.TX, outer(rig, address, frame[L3:]))


@ipip
@pytest.mark.parametrize("tos", [0x01, 0x02, 0x03, 0xB8, 0xFF])
def test_ipip_copies_dscp_and_ecn(rig: Rig, vip: str, address: str, tos: int):
    rig.serve(service(backend("a", address), vip=vip, forward=Forward.IPIP))
    fields = {"tos": tos} if vip == VIP4 else {"tc": tos, "fl": 0x12345}
    frame = tcp(vip=vip, **fields)
    assert rig.send(frame).data == outer(rig, address, frame[L3:], tos)


@ipip
def test_ipip_does_not_count_ethernet_padding_as_packet(rig: Rig, vip: str, address: str):
    rig.serve(service(backend("a", address), vip=vip, forward=Forward.IPIP))
    frame = tcp(vip=vip) + bytes(6)
    assert rig.send(frame).data == outer(rig, address, frame[L3:])


@ipip
def test_ipip_carries_full_sized_packets(rig: Rig, vip: str, address: str):
    rig.serve(service(backend("a", address), vip=vip, forward=Forward.IPIP), mtu=9000)
    frame = tcp("A", vip=vip, payload=bytes(i & 255 for i in range(1400)))
    assert rig.send(frame).data == outer(rig, address, frame[L3:])


@ipip
def test_what_does_not_fit_once_encapsulated_is_dropped_and_counted(
    rig: Rig, vip: str, address: str
):
    added = 20 if address == BACKEND4 else 40
    head = 40 if vip == VIP4 else 60
    rig.serve(service(backend("a", address), vip=vip, forward=Forward.IPIP), mtu=1400)
    fits = 1400 - added - head
    assert rig.verdict(tcp("A", vip=vip, payload=bytes(fits))) == Verdict.TX
    assert rig.verdict(tcp("A", vip=vip, payload=bytes(fits + 1))) == Verdict.DROP
    assert rig.service_counts().drops["too-big"] == 1
    assert rig.reasons() == {"too-big": 1}


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
    assert done.data == (
        outer(rig, BACKEND4, frame[L3:])
        if forward is Forward.IPIP
        else bytes(Ether(dst=mac_of(rig.address_of("a")), src=BALANCER_MAC))[:12] + frame[12:]
    )


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
