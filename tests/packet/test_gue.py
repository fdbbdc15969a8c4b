"""gue: an outer IP and UDP header around the packet, to the byte (draft-ietf-intarea-gue,
variant 1).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.model import Forward, Protocol
from tests.examples import examples
from tests.packet.frames import (
    BALANCER4,
    BALANCER6,
    BALANCER_MAC,
    CLIENT4,
    CLIENT6,
    VIP4,
    VIP6,
    random_clients,
)
from tests.packet.harness import Rig, Verdict, backend, mac_of, service
from tests.packet.wires import Packet, checksum, ether, pseudo_header

SERVER4, SERVER6 = "10.1.2.3", "fd00:1::2:3"
GUE_PORT = 6080
SPORT_FIRST = 49_152
FAMILIES = pytest.mark.parametrize(
    ("vip", "client", "server"),
    [
        (VIP4, CLIENT4, SERVER4),
        (VIP6, CLIENT6, SERVER6),
        (VIP4, CLIENT4, SERVER6),
        (VIP6, CLIENT6, SERVER4),
    ],
    ids=["4in4", "6in6", "4in6", "6in4"],
)


def serve(rig: Rig, vip: str, server: str, protocol: Protocol = Protocol.TCP, **more: int) -> None:
    rig.serve(
        service(backend("a", server), vip=vip, forward=Forward.GUE, protocol=protocol), **more
    )


def outer(server: str, sport: int, inner: bytes, tos: int = 0, *, summed: bool = True) -> bytes:
    """The frame to the backend around an inner packet, its checksum made from all of its bytes."""
    length = 8 + len(inner)
    udp = struct.pack("!4H", sport, GUE_PORT, length, 0) + inner
    if ip_address(server).version == 4:
        source = BALANCER4
        words = [0x45, tos, 20 + length, 0, 0x4000, 64, 17, 0]
        ends = ip_address(source).packed + ip_address(server).packed
        words[7] = checksum(struct.pack("!BBHHHBBH", *words) + ends)
        head = struct.pack("!BBHHHBBH", *words) + ends
    else:
        source = BALANCER6
        if summed:
            value = checksum(pseudo_header(source, server, 17, length) + udp) or 0xFFFF
            udp = udp[:6] + value.to_bytes(2) + inner
        head = struct.pack("!IHBB", 6 << 28 | tos << 20, length, 17, 64)
        head += ip_address(source).packed + ip_address(server).packed
    version = ip_address(server).version
    return ether(mac_of(ip_address(server)), BALANCER_MAC, version) + head + udp


def sport_of(data: bytes, server: str) -> int:
    """The outer source port of a frame."""
    at = 14 + (20 if ip_address(server).version == 4 else 40)
    return int.from_bytes(data[at : at + 2])


def check(rig: Rig, packet: Packet, server: str, *, summed: bool = True) -> None:
    """Sends a packet and compares what comes out, to the byte."""
    done = rig.send(packet.frame())
    assert done.verdict == Verdict.TX, rig.reasons()
    sport = sport_of(done.data, server)
    inner = replace(packet, ttl=packet.ttl - 1).ip
    assert done.data == outer(server, sport, inner, packet.tos, summed=summed)


@FAMILIES
@pytest.mark.parametrize("payload", [b"", b"odd", bytes(range(256)) * 4])
@pytest.mark.parametrize("flags", ["PA", None], ids=["tcp", "udp"])
def test_gue_puts_exact_outer_headers_around(hooked: Rig, vip, client, server, payload, flags):
    serve(hooked, vip, server, Protocol.TCP if flags else Protocol.UDP)
    check(hooked, Packet(client, vip, payload=payload, flags=flags, ttl=9), server)


@FAMILIES
@pytest.mark.parametrize("tos", [0x01, 0x02, 0x03, 0xB8, 0xFF])
def test_dscp_and_ecn_are_those_of_the_inner_packet(hooked: Rig, vip, client, server, tos: int):
    serve(hooked, vip, server)
    check(hooked, Packet(client, vip, tos=tos, label=0x12345), server)


@FAMILIES
def test_options_are_part_of_the_checksum(hooked: Rig, vip, client, server):
    serve(hooked, vip, server)
    options = bytes.fromhex("0204ffff04020103030b0000")
    check(hooked, Packet(client, vip, options=options, payload=b"x"), server)
    if vip == VIP4:
        check(hooked, Packet(client, vip, ip_options=b"\x94\x04\0\0" + b"\1" * 8), server)


@FAMILIES
def test_a_datagram_without_checksum_leaves_the_outer_one_without(hooked: Rig, vip, client, server):
    """The inner checksum is what the outer one is made from; nobody reads 64 KiB here."""
    serve(hooked, vip, server, Protocol.UDP)
    packet = Packet(client, vip, flags=None, payload=b"abc", unsummed=True)
    check(hooked, packet, server, summed=False)


@FAMILIES
def test_bytes_behind_a_datagram_are_not_covered_and_so_there_is_no_checksum(
    hooked: Rig, vip, client, server
):
    """Options of UDP (RFC 9868): the IP packet is longer than the datagram."""
    serve(hooked, vip, server, Protocol.UDP)
    packet = Packet(client, vip, flags=None, payload=b"abcd", trailer=b"\x01\x02\x03\x04")
    check(hooked, packet, server, summed=False)


def test_ethernet_padding_is_no_part_of_the_packet(hooked: Rig):
    serve(hooked, VIP4, SERVER6)
    packet = Packet(payload=b"x")
    done = hooked.send(packet.frame() + bytes(5))
    inner = replace(packet, ttl=63).ip
    assert done.data[: len(inner) + 62] == outer(SERVER6, sport_of(done.data, SERVER6), inner)
    assert len(done.data) <= len(inner) + 62 + 5


@FAMILIES
def test_extension_headers_and_first_fragments_leave_the_outer_packet_without_checksum(
    hooked: Rig, vip, client, server
):
    """A checksum of what is not all there, or that another header lies before, says too little."""
    serve(hooked, vip, server, Protocol.UDP)
    plain = bytearray(Packet(client, vip, flags=None, payload=b"12345678").ip)
    if vip == VIP4:
        plain[6:8] = b"\x20\x00"  # more fragments
        plain[10:12] = bytes(2)
        plain[10:12] = checksum(bytes(plain[:20])).to_bytes(2)
        variants = [bytes(plain)]
    else:
        first = bytes([17, 0, 0, 1]) + b"\0\0\0\x07"
        options = bytes([17, 0, 1, 4]) + bytes(4)
        variants = []
        for number, header in ((44, first), (60, options)):
            head = plain[:4] + (len(plain) - 40 + 8).to_bytes(2) + bytes([number]) + plain[7:40]
            variants.append(bytes(head) + header + bytes(plain[40:]))
    for packet in variants:
        frame = ether(BALANCER_MAC, "02:00:00:00:00:02", packet[0] >> 4) + packet
        done = hooked.send(frame)
        assert done.verdict == Verdict.TX
        at = 14 + (20 if server == SERVER4 else 40)
        assert done.data[at + 6 : at + 8] == b"\0\0"
        assert done.data[at + 9 :][: len(packet)][10:] != b"", "the packet is inside"


@settings(
    deadline=None,
    max_examples=examples(120),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    payload=st.binary(max_size=300),
    flags=st.sampled_from(["S", "PA", None]),
    host=st.integers(1 << 24, (127 << 24) - 1),
    port=st.integers(1, 65_535),
    ttl=st.integers(2, 255),
    is_ipv4=st.booleans(),
    words=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_the_outer_checksum_over_ipv6_is_that_of_all_bytes(
    hooked: Rig, payload, flags, host, port, ttl, is_ipv4, words
):
    hooked.reset()
    vip = VIP4 if is_ipv4 else VIP6
    serve(hooked, vip, SERVER6, Protocol.TCP if flags else Protocol.UDP)
    client = str(ip_address(host)) if is_ipv4 else str(ip_address((0x20010DB8 << 96) + host))
    packet = Packet(client, vip, port, 80, payload, flags, *words, ttl=ttl)
    check(hooked, packet, SERVER6)


@pytest.mark.parametrize(("vip", "ipv6"), [(VIP4, False), (VIP6, True)])
def test_the_source_port_is_one_for_a_flow_and_spread_over_the_dynamic_ports(
    rig: Rig, vip: str, *, ipv6: bool
):
    serve(rig, vip, SERVER4)
    seen = []
    for address, port in random_clients(5, 3000, ipv6=ipv6):
        packets = [
            Packet(str(address), vip, port, flags=flags, payload=payload, seq=seq)
            for flags, payload, seq in (("S", b"", 1), ("PA", b"x", 2), ("FA", b"", 99))
        ]
        found = {sport_of(rig.send(each.frame()).data, SERVER4) for each in packets}
        assert len(found) == 1
        seen.append(found.pop())
    assert min(seen) >= SPORT_FIRST
    assert max(seen) > 65_000
    assert len(set(seen)) > 2600, "16,384 ports: some flows share one"


def test_the_source_port_tells_two_ports_of_a_client_apart(rig: Rig):
    serve(rig, VIP4, SERVER4)
    seen = {sport_of(rig.send(Packet(sport=n).frame()).data, SERVER4) for n in range(1000, 1100)}
    assert len(seen) > 95


@FAMILIES
def test_what_does_not_fit_once_encapsulated_is_too_big(rig: Rig, vip, client, server):
    serve(rig, vip, server, mtu=1400)
    head = (20 if server == SERVER4 else 40) + 8 + (40 if vip == VIP4 else 60)
    fits = Packet(client, vip, flags="PA", payload=bytes(1400 - head))
    rig.send(Packet(client, vip).frame())
    check(rig, fits, server)
    rig.send(replace(fits, payload=bytes(1401 - head)).frame())
    assert rig.reasons() == {"too-big": 1}
