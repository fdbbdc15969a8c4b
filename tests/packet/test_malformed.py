"""Random and mutated bytes by the hundred thousand: an exact verdict for each, by the oracle."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Raw

from agent.model import Forward, Protocol, Service
from tests.packet import oracle
from tests.packet.frames import CLIENT4, CLIENT6, VIP4, VIP6, ether, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service

ANY4 = "203.0.113.77"
EACH = 30_000
INTERESTING = (
    0,
    1,
    4,
    5,
    6,
    7,
    8,
    0x0F,
    0x11,
    0x28,
    0x29,
    0x2C,
    0x3C,
    0x45,
    0x4F,
    0x60,
    0x7F,
    0x80,
    0xFF,
)
SERVICES = (
    service(backend("a")),
    service(backend("b", "10.1.2.3"), name="tunnel", port=443, forward=Forward.IPIP),
    service(backend("c"), name="dns", port=53, protocol=Protocol.UDP),
    service(backend("d"), name="any", vip=ANY4, port=0),
    service(backend("e", "fd00:1::5"), name="web6", vip=VIP6),
    service(backend("f", "10.1.2.4"), name="tunnel6", vip=VIP6, port=443, forward=Forward.IPIP),
    service(
        backend("g", "fd00:1::7"), name="dns6", vip=VIP6, port=53, protocol=Protocol.UDP,
        forward=Forward.IPIP,
    ),
)  # fmt: skip
KEYS = {(s.key.vip.packed, s.key.port, s.key.protocol.number): s for s in SERVICES}
VALID = (
    *(tcp(flags, port=port, payload=b"x" * 10) for flags in ("S", "A", "FA") for port in (80, 443)),
    *(tcp(flags, vip=VIP6, port=port) for flags in ("S", "A", "R") for port in (80, 443)),
    udp(),
    udp(vip=VIP6),
    tcp(vip=ANY4, port=12_345),
    tcp(vip="203.0.113.99"),
    udp(vip=ANY4),
    bytes(ether() / IP(src=CLIENT4, dst=VIP4, options=b"\x01" * 8) / TCP(dport=80) / Raw(b"x" * 9)),
    bytes(ether() / IP(src=CLIENT4, dst=VIP4, flags="MF") / TCP(dport=80) / Raw(b"x" * 8)),
    bytes(ether() / IP(src=CLIENT4, dst=VIP4, frag=3, proto=6) / Raw(b"x" * 40)),
    bytes(ether() / IPv6(src=CLIENT6, dst=VIP6) / IPv6ExtHdrFragment() / TCP(dport=80)),
    bytes(ether() / IPv6(src=CLIENT6, dst=VIP6) / IPv6ExtHdrDestOpt() / TCP(dport=80)),
)


def mutated(draw: random.Random) -> bytes:
    """A valid packet with a few things wrong, or nothing."""
    frame = bytearray(draw.choice(VALID))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 6))):
        at = draw.randrange(12, len(frame)) if draw.random() < 0.9 else draw.randrange(len(frame))
        match draw.randrange(5):
            case 0:
                frame[at] = draw.randrange(256)
            case 1:
                frame[at] ^= 1 << draw.randrange(8)
            case 2:
                frame[at] = draw.choice(INTERESTING)
            case 3:
                frame = frame[: max(14, at)]
            case 4:
                frame += bytes(draw.randrange(1, 30))
        if len(frame) <= 14:
            break
    return bytes(frame)


def random_frame(draw: random.Random) -> bytes:
    """Random bytes that look a little like IP for a VIP."""
    frame = bytearray(draw.randbytes(draw.randrange(14, 130)))
    if draw.random() < 0.95:
        is_v4 = draw.random() < 0.5
        frame[12:14] = b"\x08\x00" if is_v4 else b"\x86\xdd"
        if len(frame) > 54 and draw.random() < 0.9:
            vip = ip_address(draw.choice((VIP4, ANY4)) if is_v4 else VIP6).packed
            at = 30 if is_v4 else 38
            frame[at : at + len(vip)] = vip
            frame[14] = draw.choice((0x45, 0x45, 0x46, 0x4F) if is_v4 else (0x60, 0x6F))
            frame[23 if is_v4 else 20] = draw.choice((6, 6, 17, 44, 60, 1))
            if is_v4:
                frame[20] &= draw.choice((0x00, 0x40, 0xFF))
                frame[21] &= draw.choice((0, 0xFF))
            if draw.random() < 0.7:
                frame[16 if is_v4 else 18] = 0
    return bytes(frame)


def check_output(service: Service, frame: bytes, out: bytes) -> None:
    if service.forward is Forward.IPIP:
        assert oracle.is_tunnelled(out, frame, service.backends[0].address.packed)
    else:
        assert out[12:] == frame[12:]


def throw(rig: Rig, make, seed: int) -> Counter[str]:
    """Send what ``make`` makes; each verdict must be the oracle's."""
    rig.serve(*SERVICES)
    draw = random.Random(seed)
    keys = frozenset(KEYS)
    found: Counter[str] = Counter()
    for _ in range(EACH):
        frame = make(draw)
        judged = oracle.judge(keys, frame)
        done = rig.send(frame)
        found[judged.reason] += 1
        if not judged.reason:
            assert done.verdict == Verdict.TX, frame.hex()
            check_output(KEYS[judged.key], frame, done.data)
        elif judged.reason in ("not-ip", "not-vip"):
            assert (done.verdict, done.data) == (Verdict.PASS, frame), frame.hex()
        else:
            assert done.verdict == Verdict.DROP, (judged, frame.hex())
    assert rig.reasons() == {reason: n for reason, n in found.items() if reason}
    return found


@pytest.mark.parametrize("seed", range(4))
def test_mutated_packets_get_the_verdict_they_deserve(rig: Rig, seed: int):
    found = throw(rig, mutated, seed)
    assert min(found[r] for r in ("", "not-ip", "not-vip", "malformed", "fragment")) > EACH / 100
    assert found["extension"] > 0


@pytest.mark.parametrize("seed", range(10, 13))
def test_random_bytes_get_the_verdict_they_deserve(rig: Rig, seed: int):
    found = throw(rig, random_frame, seed)
    assert found["malformed"] > EACH / 100
    assert found[""] < EACH / 5


def test_every_length_of_every_valid_packet_has_an_exact_verdict(rig: Rig):
    rig.serve(*SERVICES)
    for whole in VALID:
        for length in range(14, len(whole) + 20):
            frame = whole[:length].ljust(length, b"\xa5")
            judged = oracle.judge(frozenset(KEYS), frame)
            verdict = rig.verdict(frame)
            assert (verdict == Verdict.TX) == (judged.reason == ""), frame.hex()
            assert (verdict == Verdict.PASS) == (judged.reason in ("not-ip", "not-vip"))
