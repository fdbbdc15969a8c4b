"""IPv6 extension headers are stepped over: every kind, number and length that we can follow."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from agent.model import Forward, Protocol
from tests.packet.frames import CLIENT6, VIP6
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pieces import (
    AUTHENTICATION,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    ROUTING,
    extended,
    extension,
    framed,
    icmp,
    quoted,
    wrapped,
)
from tests.packet.places import V6, answer_to
from tests.packet.wires import Packet

OTHER6 = "2001:db8::99"
KINDS = {
    "hop-by-hop": HOP_BY_HOP,
    "routing": ROUTING,
    "fragment": FRAGMENT,
    "authentication": AUTHENTICATION,
    "destination": DESTINATION,
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
TRANSPORTS = pytest.mark.parametrize("flags", ["S", None], ids=["tcp", "udp"])
MOST, FARTHEST = 6, 256  # headers, and bytes from the IP header to the transport header


def serve(rig: Rig, forward: Forward = Forward.DSR, flags: str | None = "S") -> None:
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    rig.serve(service(backend("a", V6.server), vip=VIP6, forward=forward, protocol=protocol))


def asked_by(flags: str | None = "S", vip: str = VIP6, **fields: object) -> Packet:
    return Packet(CLIENT6, vip, flags=flags, payload=b"hello", **fields)


def forwarded(rig: Rig, packet: bytes) -> bool:
    done = rig.send(framed(packet))
    return (done.verdict, done.data[14:]) == (Verdict.TX, packet)


def passes(rig: Rig, packet: bytes) -> bool:
    done = rig.send(framed(packet))
    return (done.verdict, done.data) == (Verdict.PASS, framed(packet))


@kinds
@TRANSPORTS
def test_each_kind_is_stepped_over(hooked: Rig, kind: int, flags):
    serve(hooked, flags=flags)
    packet = extended(asked_by(flags).ip, extension(kind))
    assert forwarded(hooked, packet)
    assert forwarded(hooked, asked_by(flags).ip)
    counts = hooked.counts("a")
    assert (counts.opened, counts.bytes) == (1, len(packet) + len(asked_by(flags).ip))
    assert hooked.reasons() == {}


@kinds
def test_for_others_and_for_ports_that_we_do_not_serve_they_pass(rig: Rig, kind: int):
    serve(rig)
    assert passes(rig, extended(asked_by(vip=OTHER6).ip, extension(kind)))
    assert passes(rig, extended(asked_by(dport=81).ip, extension(kind)))
    assert rig.reasons() == {"not-vip": 2}


@pytest.mark.parametrize("order", list(itertools.permutations(KINDS.values())), ids=str)
def test_any_order_is_followed(rig: Rig, order: tuple[int, ...]):
    serve(rig)
    assert forwarded(rig, extended(asked_by().ip, *map(extension, order)))


@kinds
@pytest.mark.parametrize("count", range(1, 10))
def test_so_many_are_followed_and_no_more(rig: Rig, kind: int, count: int):
    serve(rig)
    packet = extended(asked_by().ip, *[extension(kind)] * count)
    if count <= MOST:
        assert forwarded(rig, packet)
        assert rig.reasons() == {}
    else:
        assert rig.verdict(framed(packet)) == Verdict.DROP
        assert rig.reasons() == {"extension": 1}
        assert passes(rig, extended(asked_by(vip=OTHER6).ip, *[extension(kind)] * count))
    assert bool(rig.tables.flows.any()) == (count <= MOST)


@pytest.mark.parametrize("kind", [HOP_BY_HOP, ROUTING, DESTINATION])
@pytest.mark.parametrize("length", [16, 128, 208, 216, 224, 232, 1024, 2048])
def test_long_headers_are_followed_as_far_as_we_read(rig: Rig, kind: int, length: int):
    serve(rig)
    packet = extended(asked_by().ip, extension(kind, length))
    if 40 + length <= FARTHEST:
        assert forwarded(rig, packet)
    else:
        assert rig.verdict(framed(packet)) == Verdict.DROP
        assert rig.reasons() == {"extension": 1}
        assert passes(rig, extended(asked_by(vip=OTHER6).ip, extension(kind, length)))


def test_authentication_headers_count_in_words_of_four_bytes(rig: Rig):
    """RFC 4302, section 2.2: its length is in 32-bit words, less two."""
    serve(rig)
    for length in (12, 16, 20, 24, 44, 216):
        assert forwarded(rig, extended(asked_by().ip, extension(AUTHENTICATION, length)))
    assert rig.verdict(framed(extended(asked_by().ip, extension(AUTHENTICATION, 220)))) == (
        Verdict.DROP
    )


def test_several_headers_are_as_far_as_they_are_together(rig: Rig):
    serve(rig)
    assert forwarded(rig, extended(asked_by().ip, *[extension(DESTINATION, 72)] * 3))
    too_far = [*[extension(DESTINATION, 72)] * 3, extension(HOP_BY_HOP)]
    assert rig.verdict(framed(extended(asked_by().ip, *too_far))) == Verdict.DROP
    assert rig.reasons() == {"extension": 1}


@pytest.mark.parametrize("number", [50, 59, 103, 135, 139, 140, 253, 254, 255, 47, 1])
def test_what_is_no_header_that_we_know_is_the_hosts(rig: Rig, number: int):
    """ESP, no next header, mobility, HIP, shim6, the experimental ones, GRE, ICMP."""
    serve(rig)
    packet = asked_by().ip
    strange = packet[:6] + bytes((number,)) + packet[7:]
    for sent in (strange, extended(strange, extension(DESTINATION))):
        assert passes(rig, sent)
    assert rig.reasons() == {"not-vip": 2}


@kinds
def test_a_chain_that_the_frame_cuts_off_is_the_hosts(rig: Rig, kind: int):
    serve(rig)
    length = 8 if kind == FRAGMENT else 24
    frame = framed(extended(asked_by().ip, extension(kind, length)))
    for cut in range(14 + 40, 14 + 40 + length + 8):
        done = rig.send(frame[:cut])
        assert (done.verdict, done.data) == (Verdict.PASS, frame[:cut])
    for cut in range(14 + 40 + length + 8, len(frame)):
        assert rig.verdict(frame[:cut]) == Verdict.DROP
    assert set(rig.reasons()) == {"not-vip", "malformed"}


@kinds
def test_a_payload_that_ends_within_the_chain_is_malformed(rig: Rig, kind: int):
    serve(rig)
    packet = extended(asked_by().ip, extension(kind))
    for length in (0, 7, 8, 8 + 7):
        short = packet[:4] + length.to_bytes(2) + packet[6:]
        assert rig.verdict(framed(short)) == Verdict.DROP
    assert rig.reasons() == {"malformed": 4}


@pytest.mark.parametrize("left", [1, 2, 255])
@pytest.mark.parametrize("routing_type", [0, 2, 3, 4])
def test_a_packet_with_segments_left_is_on_its_way_to_another(
    rig: Rig, routing_type: int, left: int
):
    """RFC 8200, section 4.4."""
    serve(rig)
    kind, body = extension(ROUTING, 24)
    packet = extended(asked_by().ip, (kind, body[:2] + bytes((routing_type, left)) + body[4:]))
    assert passes(rig, packet)
    assert rig.reasons() == {"not-vip": 1}
    there = extended(asked_by().ip, (kind, body[:2] + bytes((routing_type, 0)) + body[4:]))
    assert forwarded(rig, there)


@pytest.mark.parametrize("forward", [f for f in Forward if f is not Forward.DSR])
@TRANSPORTS
def test_the_chain_stays_whatever_the_packet_goes_through(hooked: Rig, forward: Forward, flags):
    serve(hooked, forward, flags)
    chain = [extension(HOP_BY_HOP), extension(DESTINATION, 40), extension(FRAGMENT)]
    asked = asked_by(flags, ttl=9)
    packet = extended(asked.ip, *chain)
    out = hooked.send(framed(packet)).data[14:]
    if forward.is_tunnel:
        sport = int.from_bytes(out[40:42]) if forward is Forward.GUE else 0
        # GUE: the inner checksum does not cover the chain, so there is none to be had.
        assert out == wrapped(packet, V6.server, forward, sport=sport)
        return
    there = replace(asked, dst=V6.server, ttl=8)
    if forward is Forward.FULLNAT:
        at = 40 + sum(len(body) for _, body in chain)
        there = replace(there, src=V6.own, sport=int.from_bytes(out[at : at + 2]))
    assert out == extended(there.ip, *chain)


@pytest.mark.parametrize("below", ["prefix", "any-port", "range"])
@pytest.mark.parametrize("packet", ["too-many", "too-far"])
def test_a_chain_without_end_is_dropped_for_every_kind_of_vip(rig: Rig, below: str, packet: str):
    """What cannot be read cannot be told from what is served."""
    match below:
        case "prefix":
            rig.serve(service(backend("a"), vip="2001:db8::", vip_bits=64, port=0))
        case "any-port":
            rig.serve(service(backend("a"), vip=VIP6, port=0))
        case "range":
            rig.serve(service(backend("a"), vip=VIP6, port=70, port_last=90))
    chain = [extension(DESTINATION)] * 7 if packet == "too-many" else [extension(ROUTING, 224)]
    assert rig.verdict(framed(extended(asked_by().ip, *chain))) == Verdict.DROP
    assert rig.reasons() == {"extension": 1}
    assert forwarded(rig, extended(asked_by().ip, *chain[1:]))


@kinds
def test_an_icmp_error_behind_a_chain_follows(rig: Rig, kind: int):
    serve(rig)
    error = icmp(V6.router, VIP6, *V6.too_big, quoted(answer_to(asked_by()).ip))
    assert forwarded(rig, extended(error, extension(kind)))
    assert rig.reasons() == {}
