"""Random and mutated bytes by the hundred thousand: an exact verdict for each, by the oracle."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from agent.model import Forward, NoBackend, Protocol, Service
from tests.packet import oracle
from tests.packet.frames import CLIENT4, CLIENT6, VIP4, VIP6
from tests.packet.harness import Rig, Verdict, backend, mac_of, service
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
EACH = 30_000
# Lengths, protocols, extension headers, types: what makes one packet another.
INTERESTING = (0, 1, 2, 3, 4, 5, 6, 7, 8, 0x0B, 0x0C, 0x0F, 0x11, 0x20, 0x28, 0x29, 0x2B, 0x2C,
               0x33, 0x3A, 0x3C, 0x40, 0x45, 0x4F, 0x60, 0x7F, 0x80, 0x81, 0x86, 0x88, 0xA8, 0xDD,
               0xFF)  # fmt: skip
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


def target_of(each: Service) -> oracle.Target:
    key = each.key
    network = ip_network((key.vip, key.vip.max_prefixlen if key.vip_bits is None else key.vip_bits))
    last = key.port_last or key.port or 65_535
    return oracle.Target(
        network, key.port, last, key.protocol.number, each.forward.value,
        each.backends[0].name not in DOWN, each.no_backend is NoBackend.RESET,
    )  # fmt: skip


TARGETS = {target_of(each): each for each in SERVICES}


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
    return [each.ip for each in (*four, *six, *others)] + pieces() + chains() + errors()


def pieces() -> list[bytes]:
    """Fragments; those of one datagram come more than once, so that some follow."""
    found: list[bytes] = []
    for whole in (
        Packet(payload=bytes(150), flags="PA"),
        Packet(dport=8004, payload=bytes(150), flags="PA"),
        Packet(CLIENT6, VIP6, payload=bytes(150), flags="PA"),
        Packet(CLIENT6, BELOW6, dport=222, flags=None, payload=bytes(150)),
    ):
        found += fragments(whole.ip, 64)
    chained = extended(Packet(CLIENT6, VIP6, payload=bytes(90)).ip, extension(DESTINATION))
    return found + fragments(chained, 64, ident=9)


def chains() -> list[bytes]:
    """Extension headers, as far as they are followed, and further."""
    asked = Packet(CLIENT6, VIP6)
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


def mutated(draw: random.Random) -> bytes:
    """A valid packet with a few things wrong, or nothing."""
    frame = bytearray(framed(draw.choice(VALID), tags=draw.choice(TAGS)))
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


def check_output(each: Service, packet: bytes, out: bytes) -> None:
    """The IP packet as it must get to the service's only backend, and no tags."""
    address = each.backends[0].address
    assert out[:6].hex(":") == mac_of(address)
    if each.forward.is_tunnel:
        is_gue = each.forward is Forward.GUE
        inner = packet[: oracle.length_of(packet)]
        trailer = len(packet) - len(inner)
        assert oracle.is_tunnelled(out[: len(out) - trailer], inner, address.packed, gue=is_gue)
    else:
        assert out[12:] == (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet


def check(rig: Rig, judge: oracle.Oracle, frame: bytes) -> oracle.Judgement:
    judged = judge.judge(frame)
    done = rig.send(frame)
    if judged.answer:
        assert done.verdict == Verdict.TX, (judged, frame.hex())
        assert oracle.is_answer(done.data, frame, judged), (judged.answer, frame.hex())
    elif not judged.reason:
        assert judged.target is not None
        assert done.verdict == Verdict.TX, frame.hex()
        check_output(TARGETS[judged.target], judged.packet, done.data)
    elif judged.reason in ("not-ip", "not-vip", "fragment"):
        assert (done.verdict, done.data) == (Verdict.PASS, frame), (judged, frame.hex())
    else:
        assert done.verdict == Verdict.DROP, (judged, frame.hex())
    return judged


def serve(rig: Rig) -> oracle.Oracle:
    rig.serve(*SERVICES, down=DOWN)
    return oracle.Oracle(tuple(TARGETS))


def throw(rig: Rig, make, seed: int) -> Counter[str]:
    """Send what ``make`` makes; each verdict must be the oracle's."""
    judge = serve(rig)
    draw = random.Random(seed)
    found: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for _ in range(EACH):
        judged = check(rig, judge, make(draw))
        found[judged.reason] += 1
        answers[judged.answer] += 1
    assert rig.reasons() == {reason: n for reason, n in found.items() if reason}
    replied = int(rig.tables.service_count["replied"].sum())
    assert replied == sum(n for answer, n in answers.items() if answer)
    return found + Counter({answer: n for answer, n in answers.items() if answer})


@pytest.mark.parametrize("seed", range(4))
def test_mutated_packets_get_the_verdict_they_deserve(rig: Rig, seed: int):
    found = throw(rig, mutated, seed)
    often = ("", "not-ip", "not-vip", "malformed", "fragment", "no-backend", "ttl-exceeded",
             "time-exceeded", "reset")  # fmt: skip
    assert min(found[what] for what in often) > EACH / 100, found
    assert min(found[what] for what in ("extension", "no-flow", "unreachable")) > 50, found


@pytest.mark.parametrize("seed", range(10, 13))
def test_random_bytes_get_the_verdict_they_deserve(rig: Rig, seed: int):
    found = throw(rig, random_frame, seed)
    assert min(found[what] for what in ("malformed", "extension")) > EACH / 100, found
    assert 5 < found[""] < EACH / 5, found


def test_every_length_of_every_valid_packet_has_an_exact_verdict(rig: Rig):
    judge = serve(rig)
    for packet in VALID:
        for tags in ((), TAGS[-1]):
            whole = framed(packet, tags=tags)
            for length in range(14, len(whole) + 20):
                check(rig, judge, whole[:length].ljust(length, b"\xa5"))


def test_the_oracle_knows_every_valid_packet_for_what_it_is():
    judge = oracle.Oracle(tuple(TARGETS))
    found = Counter(judge.judge(framed(packet)).reason for packet in VALID)
    assert set(found) == {"", "not-vip", "no-backend", "no-flow", "ttl-exceeded", "extension"}
    assert found[""] > len(VALID) / 2
