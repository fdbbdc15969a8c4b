"""Which checks go by the VIP, and what they look like where a test of packets has none."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import (
    Backend,
    CheckKind,
    Forward,
    HealthCheck,
    NextHop,
    Protocol,
    Service,
    ServiceKey,
    Via,
)
from agent.state.segment import RST, SYN, Segment
from agent.state.way import (
    Frames,
    Way,
    frame,
    full_size,
    narrow,
    padding,
    refusal,
    silence,
    smaller_sizes,
    way_of,
)

VIP, SERVER = ip_address("10.9.0.100"), ip_address("10.0.0.21")
MEMBER = Backend("a", SERVER)
WEB = Service("web", ServiceKey(VIP, 80, Protocol.TCP), Forward.DSR, backends=(MEMBER,))
WAY = Way(Forward.DSR, VIP, 80, SERVER)


@pytest.mark.parametrize("forward", Forward)
def test_it_goes_where_packets_to_the_vip_go(forward: Forward):
    found = way_of(replace(WEB, forward=forward), MEMBER)
    assert found == (None if forward.is_nat else replace(WAY, forward=forward))


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"health": HealthCheck(via=Via.HOST)}, None),
        ({"health": HealthCheck(CheckKind.NONE)}, None),
        ({"health": HealthCheck(CheckKind.HTTP, port=8081)}, WAY),  # clients do not ask that port
        ({"health": HealthCheck(CheckKind.EXEC, command=("true",))}, WAY),
        ({"key": ServiceKey(VIP, 80, Protocol.UDP)}, None),
        ({"key": ServiceKey(VIP, 80, Protocol.TCP, port_last=90)}, WAY),
        ({"key": ServiceKey(VIP, 0, Protocol.TCP)}, None),
        (
            {"key": ServiceKey(VIP, 0, Protocol.TCP), "health": HealthCheck(port=8000)},
            replace(WAY, port=8000),
        ),
        (
            {"key": ServiceKey(ip_address("10.9.1.0"), 80, Protocol.TCP, vip_bits=24)},
            replace(WAY, vip=ip_address("10.9.1.1")),
        ),
        ({"key": ServiceKey(ip_address("fd09::100"), 80, Protocol.TCP)}, None),
    ],
)
def test_what_is_asked_is_what_clients_ask(fields: dict[str, object], found: Way | None):
    assert way_of(replace(WEB, **fields), MEMBER) == found


def test_tags_are_put_on():
    tags = ((0x88A8, 7), (0x8100, 100))
    hop = NextHop(
        SERVER, 2, "02:aa:00:00:00:01", "02:bb:00:00:00:02", 1500, on_link=True, vlans=tags
    )
    packet = Segment(ip_address("10.0.0.1"), 20_480, VIP, 80, 1, 0, SYN).packet()
    made = frame(WAY, hop, packet, SERVER, 6080)
    assert made[:22].hex() == "02aa0000000102bb0000000288a80007810000640800"
    assert made[22:] == packet


@pytest.mark.parametrize("forward", [each for each in Forward if not each.is_nat])
@pytest.mark.parametrize(
    ("vip", "server", "ours"),
    [("10.9.0.100", "10.0.0.21", "10.0.0.1"), ("fd09::100", "fd00::21", "fd00::1")],
)
@given(
    port=st.integers(0, 2**16 - 1),
    seq=st.integers(0, 2**32 - 1),
    flags=st.sampled_from([SYN, RST]),
    data=st.sampled_from([0, 0, 0, 1, 1400]),
)
def test_frames_that_are_made_in_part_before_are_those_that_are_made_anew(
    forward: Forward, vip: str, server: str, ours: str, port: int, seq: int, flags: int, data: int
):
    way = Way(forward, ip_address(vip), 80, ip_address(server))
    source, outer = ip_address(ours), ip_address(ours) + 7
    hop = NextHop(way.backend, 2, "02:aa:00:00:00:01", "02:bb:00:00:00:02", 1500, True, source)
    packet = Segment(source, port, way.vip, 80, seq, 0, flags, data).packet()
    wanted = frame(way, hop, packet, outer, 6080)
    assert Frames(way, hop, outer, 6080).frame(port, seq, flags, data) == wanted


def test_ways_are_told_apart():
    others = [
        replace(WAY, forward=Forward.IPIP),
        replace(WAY, vip=VIP + 1),
        replace(WAY, port=81),
        replace(WAY, backend=SERVER + 1),
    ]
    assert len({WAY, replace(WAY), *others}) == 1 + len(others)


def test_what_fails_says_where_to_look():
    v6 = Way(Forward.GUE, ip_address("fd09::100"), 80, ip_address("fd00::21"))
    assert silence(v6, "1 s") == (
        "no answer from [fd09::100]:80 by gue within 1 s: does it take gue, and is the VIP on "
        "its lo?"
    )
    assert silence(WAY, "500 ms") == (
        "no answer from 10.9.0.100:80 by dsr within 500 ms: is the VIP on its lo?"
    )
    assert refusal(WAY) == (
        "connection refused at 10.9.0.100:80 by dsr: does its server listen on the VIP?"
    )


SIX = Way(Forward.DSR, ip_address("fd09::100"), 80, ip_address("fd00::21"))


@pytest.mark.parametrize(
    ("way", "mtu", "mss", "size"),
    [
        (WAY, 1500, 1460, 1500),
        (WAY, 9000, 1460, 1500),  # clients do as the server says
        (WAY, 1500, 8960, 1500),
        (WAY, 1500, 0, 0),
        (SIX, 1500, 1440, 1500),
        (replace(WAY, forward=Forward.IPIP), 1500, 1460, 1480),
        (replace(WAY, forward=Forward.GUE), 1500, 1460, 1472),
        (replace(SIX, forward=Forward.IPIP), 1500, 1440, 1460),
        (replace(SIX, forward=Forward.GUE), 1520, 1440, 1472),
        (replace(WAY, forward=Forward.IPIP), 1520, 1460, 1500),
    ],
)
def test_full_packets_are_those_of_clients(way: Way, mtu: int, mss: int, size: int):
    assert full_size(way, mtu, mss) == size


@pytest.mark.parametrize("way", [WAY, SIX, replace(WAY, forward=Forward.GUE),
                                 replace(SIX, forward=Forward.IPIP)])  # fmt: skip
def test_a_full_frame_is_as_large_as_the_interface_takes(way: Way):
    size = full_size(way, 1500, 9000)
    ours = ip_address("fd00::1" if way.vip.version == 6 else "10.0.0.1")
    packet = Segment(ours, 20_480, way.vip, 80, 1, 0, SYN, padding(way, size)).packet()
    hop = NextHop(way.backend, 2, "02:00:00:00:00:21", "02:00:00:00:00:01", 1500, on_link=True)
    assert len(packet) == size
    assert len(frame(way, hop, packet, ours, 6080)) == 14 + 1500


def test_smaller_sizes_are_tried_the_largest_first():
    assert smaller_sizes(1480)[:2] == (1472, 1464)
    assert list(smaller_sizes(9000)) == sorted(smaller_sizes(9000), reverse=True)
    assert smaller_sizes(500) == ()


def test_what_fits_is_said():
    assert "of 1400 bytes arrive" in narrow(WAY, 1500, 1400)
    assert "small ones arrive" in narrow(WAY, 1500, 0)
