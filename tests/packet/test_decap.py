"""The program of backends without a tunnel device: takes our outer header off, nothing else."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest
from click.testing import CliRunner
from scapy.layers.inet import GRE, IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1AD, Dot1Q
from scapy.packet import Packet, Raw

from agent.dataplane import helpers, libbpf
from agent.dataplane.compile import Compiled
from agent.main import cli
from agent.model import Forward
from tests.packet.frames import L3, VIP4, VIP6, ether, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service

type Decap = Callable[[bytes], libbpf.TestRun]

VIPS = (VIP4, VIP6)
GUE_PORT = 6080
OUTER = {
    4: IP(src="10.0.0.1", dst="10.0.0.21", flags="DF", id=0),
    6: IPv6(src="fd00::1", dst="fd00::21"),
}
NUMBER = {4: 4, 6: 41}
TUNNELS = ("ipip", "gue")
TAGS: dict[str, list[Packet]] = {
    "untagged": [],
    "tagged": [Dot1Q(vlan=100, prio=5)],
    "double-tagged": [Dot1AD(vlan=7), Dot1Q(vlan=100)],
}
NOT_ECT, ECT1, ECT0, CE = range(4)
DROPPED = -1
# RFC 6040, figure 4: (inner, outer) -> what leaves the tunnel.
LEAVING = {
    (NOT_ECT, NOT_ECT): NOT_ECT,
    (NOT_ECT, ECT0): NOT_ECT,
    (NOT_ECT, ECT1): NOT_ECT,
    (NOT_ECT, CE): DROPPED,
    (ECT0, NOT_ECT): ECT0,
    (ECT0, ECT0): ECT0,
    (ECT0, ECT1): ECT1,
    (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1,
    (ECT1, ECT0): ECT1,
    (ECT1, ECT1): ECT1,
    (ECT1, CE): CE,
    (CE, NOT_ECT): CE,
    (CE, ECT0): CE,
    (CE, ECT1): CE,
    (CE, CE): CE,
}


@pytest.fixture(scope="module")
def program() -> Iterator[Compiled]:
    return helpers.load_decap(tuple(map(ip_address, VIPS)), GUE_PORT)


@pytest.fixture
def decap(program: Compiled) -> Decap:
    return lambda frame: libbpf.test_run(program.fd, frame)


def version_of(frame: bytes) -> int:
    return frame[L3] >> 4


def wrapped(outer: int, inner: bytes, tunnel: str = "ipip", **fields: object) -> bytes:
    """The IP packet of the frame ``inner`` in an outer header; ``fields`` are of that."""
    head: Packet = OUTER[outer].copy()
    if tunnel == "gue":
        # A checksum that is no checksum: nobody looks at it.
        head /= UDP(sport=50_000, dport=GUE_PORT, chksum=0xBAD)
    else:
        setattr(head, "proto" if outer == 4 else "nh", NUMBER[version_of(inner)])
    for name, value in fields.items():
        setattr(head, name, value)
    return bytes(ether() / head / Raw(inner[L3:]))


def tagged(frame: bytes, tags: list[Packet]) -> bytes:
    """The frame with VLAN tags in front of its packet."""
    for tag in reversed(tags):
        tag_type = b"\x88\xa8" if isinstance(tag, Dot1AD) else b"\x81\x00"
        control = struct.pack("!H", tag.prio << 13 | tag.vlan)
        frame = frame[:12] + tag_type + control + frame[12:]
    return frame


def with_ecn(frame: bytes, ecn: int, **fields: object) -> bytes:
    """A frame whose IP header is marked like that, its checksum made anew by scapy."""
    name, kind = ("tos", IP) if version_of(frame) == 4 else ("tc", IPv6)
    packet = kind(frame[L3:])
    setattr(packet, name, getattr(packet, name) & ~3 | ecn)
    for field, value in fields.items():
        setattr(packet, field, value)
    if version_of(frame) == 4:
        del packet.chksum
    return frame[:L3] + bytes(packet)


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("tunnel", TUNNELS)
@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("size", [0, 1, 1400])
def test_the_inner_packet_comes_out_with_the_macs_and_tags_of_the_outer(
    decap: Decap, vip: str, outer: int, tunnel: str, tags: list[Packet], size: int
):
    inner = tcp("A", vip=vip, payload=bytes(n & 255 for n in range(size)))
    done = decap(tagged(wrapped(outer, inner, tunnel), tags))
    assert (done.verdict, done.data) == (Verdict.PASS, tagged(inner, tags))


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("tunnel", TUNNELS)
def test_what_is_not_for_a_vip_of_ours_stays_as_it_is(
    decap: Decap, vip: str, outer: int, tunnel: str
):
    other = {VIP4: "203.0.113.11", VIP6: "2001:db8::11"}[vip]
    for frame in (wrapped(outer, tcp(vip=other), tunnel), tcp(vip=vip), tcp(vip=other)):
        for sent in (frame, tagged(frame, TAGS["double-tagged"])):
            done = decap(sent)
            assert (done.verdict, done.data) == (Verdict.PASS, sent)


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("tunnel", TUNNELS)
@pytest.mark.parametrize(("inner_ecn", "outer_ecn"), list(itertools.product(range(4), repeat=2)))
def test_congestion_marks_are_combined_as_rfc_6040_says(
    decap: Decap, vip: str, outer: int, tunnel: str, inner_ecn: int, outer_ecn: int
):
    # Everything else of the two bytes that carry the mark is set, and has to stay.
    dscp = {4: {"tos": 0xB8}, 6: {"tc": 0xB8, "fl": 0xABCDE}}
    frame = tcp("A", vip=vip, payload=b"x", **dscp[ip_address(vip).version])
    inner = with_ecn(frame, inner_ecn)
    done = decap(with_ecn(wrapped(outer, inner, tunnel), outer_ecn))
    leaving = LEAVING[inner_ecn, outer_ecn]
    if leaving == DROPPED:
        assert done.verdict == Verdict.DROP
    else:
        assert (done.verdict, done.data) == (Verdict.PASS, with_ecn(frame, leaving))


def test_the_ipv4_checksum_follows_the_mark_whatever_it_was(decap: Decap):
    for ident in (*range(0, 65_536, 211), 65_535):
        inner = tcp("A", id=ident, tos=ECT0)
        done = decap(with_ecn(wrapped(4, inner), CE))
        assert done.data == with_ecn(inner, CE), ident


def test_a_wrong_checksum_stays_wrong(decap: Decap):
    inner = tcp("A", tos=ECT0, chksum=0x1234)
    done = decap(with_ecn(wrapped(4, inner), CE))
    assert done.data[L3 + 10 : L3 + 12] == struct.pack("!H", 0x1234 - 1)


def test_the_port_of_gue_is_the_configured_one(decap: Decap):
    program = helpers.load_decap((ip_address(VIP4),), 7777)
    frame = wrapped(4, tcp(), "gue")
    other = frame.replace(struct.pack("!H", GUE_PORT), struct.pack("!H", 7777))
    for run, passed, unpacked in (
        (decap, other, frame),
        (lambda sent: libbpf.test_run(program.fd, sent), frame, other),
    ):
        assert run(passed).data == passed
        assert run(unpacked).data == tcp()


GUE = wrapped(4, tcp(), "gue")
GUE_PAYLOAD = L3 + 20 + 8
AS_IT_CAME = {
    "header-only": wrapped(4, tcp())[:14],
    "cut-outer": wrapped(4, tcp())[:33],
    "cut-inner": wrapped(4, tcp())[:53],
    "cut-outer6": wrapped(6, tcp())[:53],
    "cut-inner6": wrapped(6, tcp(vip=VIP6))[:93],
    "cut-udp": GUE[: GUE_PAYLOAD - 1],
    "empty-udp": GUE[:GUE_PAYLOAD],
    "cut-inner-in-udp": GUE[: GUE_PAYLOAD + 19],
    "outer-options": bytes(ether() / IP(proto=4, options=b"\x01" * 4) / Raw(tcp()[L3:])),
    "outer-first-fragment": wrapped(4, tcp(), flags="MF"),
    "outer-later-fragment": wrapped(4, tcp(), frag=5),
    "outer-fragment-of-gue": wrapped(4, tcp(), "gue", flags="MF"),
    "outer-version-5": wrapped(4, tcp())[:14] + b"\x55" + wrapped(4, tcp())[15:],
    "outer6-version-5": wrapped(6, tcp())[:14] + b"\x50" + wrapped(6, tcp())[15:],
    "says-ipv6-is-ipv4": wrapped(4, tcp(), proto=41),
    "says-ipv4-is-ipv6": wrapped(4, tcp(vip=VIP6), proto=4),
    "gre": bytes(ether() / OUTER[4] / GRE() / Raw(tcp()[L3:])),
    "outer6-extension": bytes(ether() / OUTER[6] / IPv6ExtHdrDestOpt(nh=4) / Raw(tcp()[L3:])),
    "outer6-fragment": bytes(ether() / OUTER[6] / IPv6ExtHdrFragment(nh=4) / Raw(tcp()[L3:])),
    "arp": bytes(12) + b"\x08\x06" + bytes(46),
    "cut-tag": tagged(wrapped(4, tcp()), TAGS["tagged"])[:17],
    "three-tags": tagged(wrapped(4, tcp()), [Dot1Q(vlan=n) for n in (1, 2, 3)]),
    # Variant 0 has a header of its own, and a balancer never sends it.
    "gue-variant-0": GUE[:GUE_PAYLOAD] + b"\x00\x04\x00\x00" + tcp()[L3:],
    "gue-version-5": GUE[:GUE_PAYLOAD] + b"\x55" + GUE[GUE_PAYLOAD + 1 :],
    "datagram-to-the-vip": udp(port=GUE_PORT),
    "datagram-from-the-port": wrapped(4, tcp(), "gue", dport=53, sport=GUE_PORT),
}


@pytest.mark.parametrize("frame", AS_IT_CAME.values(), ids=AS_IT_CAME)
def test_what_cannot_be_taken_apart_is_the_hosts_to_judge(decap: Decap, frame: bytes):
    done = decap(frame)
    assert (done.verdict, done.data) == (Verdict.PASS, frame)


@pytest.mark.parametrize("tunnel", TUNNELS)
def test_only_one_header_is_taken_off(decap: Decap, tunnel: str):
    twice = wrapped(4, wrapped(4, tcp()), tunnel)
    done = decap(twice)
    assert done.data == twice, "the inner destination is the backend, no VIP"


def _inner_of(packet: bytes) -> tuple[int, int] | None:
    """Of an outer IP packet that we would take apart: its mark, and where the inner one begins."""
    if packet[:1] == b"\x45" and len(packet) >= 20 and not (packet[6] & 0x3F or packet[7]):
        ecn, number, at = packet[1] & 3, packet[9], 20
    elif packet[:1] and packet[0] >> 4 == 6 and len(packet) >= 40:
        ecn, number, at = packet[1] >> 4 & 3, packet[6], 40
    else:
        return None
    versions = {4: {4}, 41: {6}}.get(number, set())
    if number == 17 and packet[at + 2 : at + 4] == struct.pack("!H", GUE_PORT):
        versions, at = {4, 6}, at + 8
    inner = packet[at:]
    if not inner or inner[0] >> 4 not in versions or len(inner) < {4: 20, 6: 40}[inner[0] >> 4]:
        return None
    vip = inner[16:20] if inner[0] >> 4 == 4 else inner[24:40]
    return (ecn, at) if vip in {ip_address(known).packed for known in VIPS} else None


def model(frame: bytes) -> bytes | None:
    """What becomes of a frame, by a second reading of the rules; None: it is dropped."""
    at = 14
    for _ in range(2):
        if frame[at - 2 : at] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
    eth_type = {4: b"\x08\x00", 6: b"\x86\xdd"}
    packet = frame[at:]
    if not packet or frame[at - 2 : at] != eth_type.get(packet[0] >> 4):
        return frame
    found = _inner_of(packet)
    if found is None:
        return frame
    outer_ecn, begin = found
    inner = bytearray(packet[begin:])
    version = inner[0] >> 4
    inner_ecn = inner[1] & 3 if version == 4 else inner[1] >> 4 & 3
    leaving = LEAVING[inner_ecn, outer_ecn]
    if leaving == DROPPED:
        return None
    if version == 4:
        (checksum,) = struct.unpack_from("!H", inner, 10)
        if leaving != inner_ecn:
            # Of the one's complement sums that mean the same, the one that is not 0.
            total = 0xFFFF - checksum + 0xFFFF - inner_ecn + leaving
            struct.pack_into("!H", inner, 10, 0xFFFF - (total - 1) % 0xFFFF - 1)
        inner[1] = inner[1] & ~3 | leaving
    else:
        inner[1] = inner[1] & ~0x30 | leaving << 4
    return frame[: at - 2] + eth_type[version] + bytes(inner)


def test_random_bytes_become_what_the_model_says(decap: Decap):
    draw = random.Random(1)
    whole = [
        tagged(with_ecn(wrapped(outer, with_ecn(tcp(vip=vip), inner), tunnel), mark), tags)
        for outer, vip, tunnel in itertools.product((4, 6), VIPS, TUNNELS)
        for tags in TAGS.values()
        for inner, mark in ((NOT_ECT, NOT_ECT), (ECT0, CE), (ECT1, CE), (ECT0, ECT1))
    ]
    taken = 0
    for _ in range(40_000):
        frame = bytearray(draw.choice(whole))
        for _ in range(draw.randrange(4)):
            frame[draw.randrange(12, len(frame))] = draw.randrange(256)
        length = draw.choice((len(frame), len(frame), draw.randrange(14, len(frame))))
        sent = bytes(frame[:length])
        done = decap(sent)
        wanted = model(sent)
        if wanted is None:
            assert done.verdict == Verdict.DROP, sent.hex()
        else:
            assert (done.verdict, done.data) == (Verdict.PASS, wanted), sent.hex()
            taken += wanted != sent
    assert taken > 10_000, "or the random frames test nothing"


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize("address", ["10.1.2.3", "fd00:1::3"])
@pytest.mark.parametrize("forward", [Forward.IPIP, Forward.GUE])
def test_what_the_balancer_wraps_the_backend_unwraps(
    rig: Rig, decap: Decap, vip: str, address: str, forward: Forward
):
    rig.serve(service(backend("a", address), vip=vip, forward=forward))
    ttl = "ttl" if ip_address(vip).version == 4 else "hlim"
    frame, hop_later = (
        tcp("PA", vip=vip, payload=b"GET / HTTP/1.1\r\n", **{ttl: left}) for left in (64, 63)
    )
    out = rig.send(frame).data
    assert decap(out).data == out[:12] + hop_later[12:]


# -- --from


SENDERS = tuple(map(ip_network, ("10.0.0.0/30", "10.9.9.9/32", "fd00::/64", "2001:db8::9/128")))
BALANCERS = ("10.0.0.0", "10.0.0.3", "10.9.9.9", "fd00::1", "fd00::ffff", "2001:db8::9")
STRANGERS = ("10.0.0.4", "10.9.9.8", "9.255.255.255", "fd00:0:0:1::1", "2001:db8::8",
             "::ffff:10.0.0.1", "::10.0.0.1")  # fmt: skip


@pytest.fixture(scope="module")
def choosy() -> Iterator[Compiled]:
    return helpers.load_decap(tuple(map(ip_address, VIPS)), GUE_PORT, SENDERS)


@pytest.mark.parametrize("tunnel", TUNNELS)
@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("sender", BALANCERS)
def test_the_balancers_packets_are_taken(choosy: Compiled, sender: str, vip: str, tunnel: str):
    inner = tcp(vip=vip)
    outer = wrapped(ip_address(sender).version, inner, tunnel, src=sender)
    done = libbpf.test_run(choosy.fd, outer)
    assert (done.verdict, done.data[L3:]) == (Verdict.PASS, inner[L3:])


@pytest.mark.parametrize("tunnel", TUNNELS)
@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("sender", STRANGERS)
def test_those_of_strangers_stay_as_they_came(
    choosy: Compiled, decap: Decap, sender: str, vip: str, tunnel: str
):
    """Else whoever reaches a backend speaks to it in the name of any client."""
    outer = wrapped(ip_address(sender).version, tcp(vip=vip), tunnel, src=sender)
    done = libbpf.test_run(choosy.fd, outer)
    assert (done.verdict, done.data) == (Verdict.PASS, outer)
    assert decap(outer).data != outer, "without --from it is taken"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("10.0.0.1/24", "10.0.0.1/24 is inside of 10.0.0.0/24; give that, or 10.0.0.1 alone"),
        ("lb1", "'lb1' is neither an address nor a prefix, as in 10.0.0.1 or 10.0.0.0/28"),
        ("", "'' is neither an address nor a prefix"),
    ],
)
def test_a_sender_that_is_none_is_named_with_what_to_give(given: str, message: str):
    words = ["decap", "--interface", "lo", "--vip", VIP4, "--from", given]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert message in done.output
