"""The program of backends without a tunnel device: takes our outer header off, nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import GRE, IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw

from agent.dataplane import libbpf, sources
from agent.dataplane.compile import Compiled, compile_program
from agent.model import Forward
from tests.packet.frames import L3, VIP4, VIP6, ether, tcp
from tests.packet.harness import Rig, Verdict, backend, service

VIPS = ("203.0.113.10", "2001:db8::10")
OUTER = {
    4: IP(src="10.0.0.1", dst="10.0.0.21", flags="DF", id=0),
    6: IPv6(src="fd00::1", dst="fd00::21"),
}
NUMBER = {4: 4, 6: 41}


@pytest.fixture(scope="module")
def program() -> Iterator[Compiled]:
    compiled = compile_program(sources.joined("decap.c"), "decap", {})
    for vip in VIPS:
        key = ip_address(vip).packed.ljust(16, b"\0")
        libbpf.map_update(compiled.handle[b"decap_vips"].map_fd, key, b"\1")
    return compiled


@pytest.fixture
def decap(program: Compiled) -> Callable[[bytes], libbpf.TestRun]:
    return lambda frame: libbpf.test_run(program.fd, frame)


def wrapped(outer: int, inner: bytes, **fields: object) -> bytes:
    """The IP packet of the frame ``inner`` in an outer header."""
    head: Packet = OUTER[outer].copy()
    number = NUMBER[4 if inner[L3] >> 4 == 4 else 6]
    setattr(head, "proto" if outer == 4 else "nh", number)
    for name, value in fields.items():
        setattr(head, name, value)
    return bytes(ether() / head / Raw(inner[L3:]))


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 1400])
def test_the_inner_packet_comes_out_with_the_macs_of_the_outer(
    decap, vip: str, outer: int, size: int
):
    inner = tcp("A", vip=vip, payload=bytes(n & 255 for n in range(size)))
    done = decap(wrapped(outer, inner))
    assert (done.verdict, done.data) == (Verdict.PASS, inner)


@pytest.mark.parametrize("vip", VIPS)
@pytest.mark.parametrize("outer", [4, 6])
def test_what_is_not_for_a_vip_of_ours_stays_as_it_is(decap, vip: str, outer: int):
    other = {VIP4: "203.0.113.11", VIP6: "2001:db8::11"}[vip]
    for frame in (wrapped(outer, tcp(vip=other)), tcp(vip=vip), tcp(vip=other)):
        done = decap(frame)
        assert (done.verdict, done.data) == (Verdict.PASS, frame)


MALFORMED = {
    "header-only": wrapped(4, tcp())[:14],
    "cut-outer": wrapped(4, tcp())[:33],
    "cut-inner": wrapped(4, tcp())[:53],
    "cut-outer6": wrapped(6, tcp())[:53],
    "cut-inner6": wrapped(6, tcp(vip=VIP6))[:93],
    "outer-options": bytes(ether() / IP(proto=4, options=b"\x01" * 4) / Raw(tcp()[L3:])),
    "outer-first-fragment": wrapped(4, tcp(), flags="MF"),
    "outer-later-fragment": wrapped(4, tcp(), frag=5),
    "outer-version-5": wrapped(4, tcp())[:14] + b"\x55" + wrapped(4, tcp())[15:],
    "says-ipv6-is-ipv4": wrapped(4, tcp(), proto=41),
    "says-ipv4-is-ipv6": wrapped(4, tcp(vip=VIP6), proto=4),
    "gre": bytes(ether() / OUTER[4] / GRE() / Raw(tcp()[L3:])),
    "outer6-extension": bytes(ether() / OUTER[6] / IPv6ExtHdrDestOpt(nh=4) / Raw(tcp()[L3:])),
    "arp": bytes(12) + b"\x08\x06" + bytes(46),
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_what_cannot_be_taken_apart_is_the_hosts_to_judge(decap, frame: bytes):
    done = decap(frame)
    assert (done.verdict, done.data) == (Verdict.PASS, frame)


def test_only_one_header_is_taken_off(decap):
    twice = wrapped(4, wrapped(4, tcp()))
    done = decap(twice)
    assert done.data == twice, "the inner destination is the backend, no VIP"


def test_random_bytes_pass_or_lose_exactly_a_header(decap):
    draw = random.Random(1)
    whole = [wrapped(outer, tcp(vip=vip)) for outer in (4, 6) for vip in VIPS]
    for _ in range(40_000):
        frame = bytearray(draw.choice(whole))
        for _ in range(draw.randrange(4)):
            frame[draw.randrange(12, len(frame))] = draw.randrange(256)
        length = draw.choice((len(frame), draw.randrange(14, len(frame))))
        sent = bytes(frame[:length])
        done = decap(sent)
        assert done.verdict == Verdict.PASS
        taken = len(sent) - len(done.data)
        if taken:
            assert taken == (20 if sent[12:14] == b"\x08\x00" else 40)
            eth_type = b"\x08\x00" if done.data[14] >> 4 == 4 else b"\x86\xdd"
            assert done.data == sent[:12] + eth_type + sent[14 + taken :]
        else:
            assert done.data == sent


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize("address", ["10.1.2.3", "fd00:1::3"])
def test_what_the_balancer_wraps_the_backend_unwraps(rig: Rig, decap, vip: str, address: str):
    rig.serve(service(backend("a", address), vip=vip, forward=Forward.IPIP))
    frame = tcp("PA", vip=vip, payload=b"GET / HTTP/1.1\r\n")
    out = rig.send(frame).data
    assert decap(out).data == out[:12] + frame[12:]
