"""Random and mutated bytes: an exact verdict for each, and exact bytes, by the model."""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import Forward, NoBackend, Protocol
from tests.packet.frames import CLIENT4, CLIENT6, VIP4, VIP6
from tests.packet.harness import Rig, backend, service
from tests.packet.model.mirror import Mirror
from tests.packet.model.mutations import mutated
from tests.packet.pieces import (
    AUTHENTICATION,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    ROUTING,
    extended,
    extension,
    fragments,
    framed,
    icmp,
    quoted,
)
from tests.packet.wires import Packet

ANY4, BELOW4, BELOW6 = "203.0.113.77", "198.18.0.9", "2001:db8:7::9"
EACH = 10_000
UDP = Protocol.UDP
SERVICES = (
    service(backend("a")),
    service(backend("b", "10.1.2.3"), name="tunnel", port=443, forward=Forward.IPIP),
    service(backend("c"), name="dns", port=53, protocol=UDP),
    service(backend("d"), name="any", vip=ANY4, port=0),
    service(backend("e", "fd00:1::5"), name="web6", vip=VIP6),
    service(backend("f", "10.1.2.4"), name="tunnel6", vip=VIP6, port=443, forward=Forward.IPIP),
    service(backend("g", "fd00:1::7"), name="dns6", vip=VIP6, port=53, protocol=UDP,
            forward=Forward.GUE),
    service(backend("h", "10.1.2.5"), name="range", port=8000, port_last=8009, forward=Forward.GUE),
    service(backend("i"), name="prefix", vip="198.18.0.0", vip_bits=24),
    service(backend("j", "fd00:1::8"), name="prefix6", vip="2001:db8:7::", vip_bits=48,
            port=100, port_last=300, protocol=UDP, forward=Forward.IPIP),
    service(backend("k"), name="reset", port=81, no_backend=NoBackend.RESET),
    service(backend("l"), name="reset6", vip=VIP6, port=81, protocol=UDP,
            no_backend=NoBackend.RESET),
    service(backend("m"), name="silent", port=82),
)  # fmt: skip
DOWN = "klm"


def packets() -> list[bytes]:
    """Valid packets of every kind."""
    four = [
        Packet(dport=port, flags=flags, payload=b"x" * 10, ttl=ttl)
        for port in (80, 443, 8004, 81, 82)
        for flags, ttl in (("S", 64), ("PA", 2), ("FA", 1))
    ]
    six = [
        Packet(CLIENT6, VIP6, dport=port, flags=flags, ttl=ttl)
        for port in (80, 443)
        for flags, ttl in (("S", 1), ("A", 64), ("R", 9))
    ]
    others = [
        Packet(dport=53, flags=None, payload=b"query"),
        Packet(CLIENT6, VIP6, dport=53, flags=None, payload=b"query"),
        Packet(CLIENT6, VIP6, dport=81, flags=None, payload=b"query"),
        Packet(dst=ANY4, dport=12_345),
        Packet(dst=ANY4, flags=None),
        Packet(dst="203.0.113.99"),
        Packet(dst=BELOW4, ip_options=b"\x01" * 8),
        Packet(dst=BELOW4, dport=81),
        Packet(CLIENT6, BELOW6, dport=222, flags=None, payload=b"x" * 30),
    ]
    # A connection of which no acknowledgement is known is not followed (after a failover).
    all_of_it = [replace(each, ack=0x01020304) for each in (*four, *six, *others)]
    return [each.ip for each in all_of_it] + pieces() + chains() + errors()


def pieces() -> list[bytes]:
    """Fragments; those of one datagram come more than once, so that some follow."""
    found: list[bytes] = []
    for whole in (
        Packet(payload=bytes(150), flags="PA", ack=0x01020304),
        Packet(dport=8004, payload=bytes(150), flags="PA", ack=0x01020304),
        Packet(CLIENT6, VIP6, payload=bytes(150), flags="PA", ack=0x01020304),
        Packet(CLIENT6, BELOW6, dport=222, flags=None, payload=bytes(150)),
    ):
        found += fragments(whole.ip, 64)
    chained = extended(
        Packet(CLIENT6, VIP6, payload=bytes(90), ack=0x01020304).ip, extension(DESTINATION)
    )
    return found + fragments(chained, 64, ident=9)


def chains() -> list[bytes]:
    """Extension headers, as far as they are followed, and further."""
    asked = Packet(CLIENT6, VIP6, ack=0x01020304)
    kinds = (HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AUTHENTICATION)
    return [
        *(extended(asked.ip, extension(kind)) for kind in kinds),
        extended(replace(asked, dport=443).ip, *map(extension, kinds), extension(DESTINATION, 64)),
        extended(asked.ip, *[extension(DESTINATION)] * 7),
        extended(Packet(CLIENT6, BELOW6, dport=222, flags=None).ip, extension(HOP_BY_HOP, 200)),
    ]


def errors() -> list[bytes]:
    """ICMP errors and what looks like them."""
    asked4 = (
        Packet(), Packet(dport=443), Packet(dport=8004), Packet(dst=ANY4, dport=9),
        Packet(dport=81), Packet(dst=BELOW4), Packet(dport=53, flags=None), Packet(dport=999),
    )  # fmt: skip
    found = [
        icmp("192.0.2.1", asked.dst, 3, 4, 1400, quoted(asked.reply(b"x").ip)) for asked in asked4
    ]
    for asked in (
        Packet(CLIENT6, VIP6), Packet(CLIENT6, VIP6, dport=443),
        Packet(CLIENT6, BELOW6, dport=222, flags=None), Packet(CLIENT6, VIP6, dport=81, flags=None),
    ):  # fmt: skip
        error = icmp("2001:db8:f::1", asked.dst, 2, 0, 1400, quoted(asked.reply(b"x").ip))
        found += [error, extended(error, extension(HOP_BY_HOP))]
    ping, ping6 = icmp(CLIENT4, VIP4, 8, 0, 1, b"hello"), icmp(CLIENT6, VIP6, 128, 0, 1, b"hello")
    return [*found, ping, ping6]


VALID = packets()
TAGS = ((), (), (), ((0x8100, 5),), ((0x88A8, 7), (0x8100, 100)))


def mutated_frame(draw: random.Random) -> bytes:
    """A valid packet with a few things wrong, or nothing."""
    return mutated(draw, framed(draw.choice(VALID), tags=draw.choice(TAGS)))


def random_frame(draw: random.Random) -> bytes:
    """Random bytes that look a little like IP for a VIP."""
    frame = bytearray(draw.randbytes(draw.randrange(14, 160)))
    if draw.random() < 0.95:
        is_v4 = draw.random() < 0.5
        frame[12:14] = b"\x08\x00" if is_v4 else b"\x86\xdd"
        if len(frame) > 54 and draw.random() < 0.9:
            vip = ip_address(draw.choice((VIP4, ANY4, BELOW4) if is_v4 else (VIP6, BELOW6))).packed
            at = 30 if is_v4 else 38
            frame[at : at + len(vip)] = vip
            frame[14] = draw.choice((0x45, 0x45, 0x46, 0x4F) if is_v4 else (0x60, 0x6F))
            protocol = draw.choice((6, 6, 17, 1, 58, 0, 43, 44, 51, 60))
            frame[23 if is_v4 else 20] = protocol
            if is_v4:
                frame[20] &= draw.choice((0x00, 0x40, 0xFF))
                frame[21] &= draw.choice((0, 0xFF))
            port = 36 if is_v4 else 56
            frame[port : port + 2] = draw.choice((b"\x00\x50", b"\x01\xbb", b"\x00\xde"))
            if draw.random() < 0.7:
                frame[16 if is_v4 else 18] = 0
    return bytes(frame)


def any_frame(draw: random.Random) -> bytes:
    return draw.choice((mutated_frame, random_frame))(draw)


def throw(
    rig: Rig, make: Callable[[random.Random], bytes], seed: int, count: int = EACH
) -> Counter[str]:
    """Send what ``make`` makes; kernel and model must agree on all of it."""
    mirror = Mirror(rig, SERVICES, down=DOWN)
    draw = random.Random(seed)
    for _ in range(count):
        mirror.send(make(draw))
    mirror.check_counters()
    return mirror.found


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, 10))]
)
def test_mutated_packets_get_the_verdict_they_deserve(rig: Rig, seed: int):
    found = throw(rig, mutated_frame, seed)
    often = ("", "not-ip", "not-vip", "malformed", "fragment", "no-backend", "ttl-exceeded",
             "answered")  # fmt: skip
    assert min(found[what] for what in often) > EACH / 100, found
    assert min(found[what] for what in ("extension", "no-flow")) > EACH / 600, found


@pytest.mark.parametrize(
    "seed", [10, *(pytest.param(n, marks=pytest.mark.soak) for n in range(11, 20))]
)
def test_random_bytes_get_the_verdict_they_deserve(rig: Rig, seed: int):
    found = throw(rig, random_frame, seed)
    assert min(found[what] for what in ("malformed", "extension")) > EACH / 100, found
    assert 0 < found[""] < EACH / 5, found


@pytest.mark.parametrize("budget_s", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_what_nobody_has_thrown_before_gets_the_verdict_it_deserves(rig: Rig, budget_s: int):
    """For a bounded time; the seed is in the message. Each for less time than fragments are known,
    which the model does not count.
    """
    end = time.monotonic() + budget_s
    while time.monotonic() < end:
        seed = secrets.randbits(32)
        rig.reset()
        try:
            throw(rig, any_frame, seed, 1000)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None


def test_every_length_of_every_valid_packet_has_an_exact_verdict(rig: Rig):
    mirror = Mirror(rig, SERVICES, down=DOWN)
    for packet in VALID:
        for tags in ((), TAGS[-1]):
            whole = framed(packet, tags=tags)
            for length in range(14, len(whole) + 20):
                mirror.send(whole[:length].ljust(length, b"\xa5"))


def test_the_valid_packets_are_what_they_are_meant_to_be(rig: Rig):
    mirror = Mirror(rig, SERVICES, down=DOWN)
    found = Counter(mirror.send(framed(packet)).reason for packet in VALID)
    assert set(found) == {"", "not-vip", "no-backend", "no-flow", "ttl-exceeded", "extension"}
    assert found[""] > len(VALID) / 2
