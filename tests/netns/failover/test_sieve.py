"""What the kernel sorts out before a packet costs the failover process anything."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from agent import sockfilter
from agent.failover.model import Authentication, Instance
from agent.failover.plan import VirtualRouter
from agent.failover.vrrp import headers, packet
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.channel import Channel
from agent.failover.vrrp.checksum import GROUP_V4, internet
from agent.failover.vrrp.headers import Datagram
from agent.failover.vrrp.listener import Listener
from agent.failover.vrrp.sieve import Lane
from agent.model import Address
from lbctl.lab import netns
from tests.netns.failover.waiting import readable

pytestmark = pytest.mark.kernel

KEY = b"k" * 32
HERE, THERE = ip_address("10.9.0.1"), ip_address("10.9.0.2")
HERE6, THERE6 = ip_address("fe80::1"), ip_address("fe80::2")
VIP, VIP6 = ip_address("10.9.0.100"), (ip_address("fe80::9"), ip_address("fd09::100"))
WEB = Instance("web", vrid=51)
HMAC = replace(WEB, vrid=52, authentication=Authentication.HMAC)
PASSWORD = replace(
    WEB, vrid=53, version=2, authentication=Authentication.PASSWORD, password="secret"
)
AH = replace(PASSWORD, vrid=54, authentication=Authentication.AH)
MAC = bytes.fromhex("020000000901")


@dataclass
class Wire:
    """``here`` is where we listen; frames that are sent ``there`` arrive."""

    here: str
    tap: socket.socket

    def send(self, data: bytes) -> None:
        ethertype = b"\x08\x00" if data[0] >> 4 == 4 else b"\x86\xdd"
        self.tap.send(MAC + bytes.fromhex("020000000902") + ethertype + data)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    here, there = (f"st-sieve-{os.getpid()}-{end}" for end in "ab")
    try:
        netns.ip([f"netns add {here}", f"netns add {there}"])
        peer = f"peer name eth0 netns {there}"
        setup = [f"link add eth0 address {MAC.hex(':')} type veth {peer}", "link set eth0 up"]
        netns.ip([*setup, f"address add {HERE}/24 dev eth0"], here)
        netns.ip(["address add fe80::1/64 dev eth0 nodad"], here)
        netns.ip(["link set eth0 up"], there)
        with netns.inside(there):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with tap:
            tap.bind(("eth0", 0))
            yield Wire(here, tap)
    finally:
        netns.ip([f"netns del {here}", f"netns del {there}"])


def router(instance: Instance, family: int = 4) -> VirtualRouter:
    vips: tuple[Address, ...] = (VIP,) if family == 4 else VIP6
    return VirtualRouter(f"web{instance.vrid}", instance, "eth0", family, vips, "web")


class Everything:
    """A member that only writes down what it is given."""

    def __init__(self, of: VirtualRouter) -> None:
        self.own = packet.Own(of, HERE if of.family == 4 else HERE6, KEY)
        self.heard: list[Datagram] = []

    def hear(self, heard: Datagram) -> bool:
        self.heard.append(heard)
        return True


@contextlib.contextmanager
def listening(wire: Wire, family: int, *instances: Instance) -> Iterator[Listener]:
    with netns.inside(wire.here):
        made = Listener("eth0", family)
    with contextlib.closing(made):
        for instance in instances:
            made.join(Everything(router(instance, family)))
        yield made


def lane(wire: Wire, listener: Listener, data: bytes) -> Lane:
    """By which of the two a packet comes."""
    wire.send(data)
    ready = readable([source.socket for source in listener._sources], 60)
    (found,) = (source for source in listener._sources if source.socket in ready)
    found.socket.recv(4096)
    return found.lane


def sent(
    instance: Instance, family: int = 4, vips: tuple[Address, ...] = (), to: Address | None = None
) -> bytes:
    """What a peer set up so sends."""
    of = router(instance, family)
    own = packet.Own(replace(of, vips=vips or of.vips), THERE if family == 4 else THERE6, KEY)
    return packet.ip_packet(own, 100, to or headers.group(family), counter=1, identifier=1)


def changed(data: bytes, at: int, value: int) -> bytes:
    """With another byte, and a right checksum of the IP header."""
    data = data[:at] + bytes((value,)) + data[at + 1 :]
    if data[0] >> 4 == 6:
        return data
    size = 4 * (data[0] & 0xF)
    head = data[:10] + b"\0\0" + data[12:size]
    return head[:10] + internet(head).to_bytes(2) + head[12:] + data[size:]


def longer(data: bytes, more: bytes) -> bytes:
    return changed(data[:2] + (len(data) + len(more)).to_bytes(2) + data[4:] + more, 1, 0)


@pytest.mark.parametrize(
    "instance", [WEB, HMAC, PASSWORD, AH], ids=["none", "hmac", "password", "ah"]
)
@pytest.mark.parametrize("count", [1, 2, 16, 17, 200])
def test_adverts_of_ipv4_are_expected(wire: Wire, instance: Instance, count: int) -> None:
    vips = tuple(VIP + number for number in range(count))
    with listening(wire, 4, WEB, HMAC, PASSWORD, AH) as listener:
        assert lane(wire, listener, sent(instance, vips=vips)) is Lane.EXPECTED
        assert lane(wire, listener, sent(instance, vips=vips, to=HERE)) is Lane.EXPECTED


@pytest.mark.parametrize("instance", [WEB, HMAC], ids=["none", "hmac"])
@pytest.mark.parametrize("count", [1, 2, 6, 7, 74])
def test_adverts_of_ipv6_are_expected(wire: Wire, instance: Instance, count: int) -> None:
    vips = tuple(VIP6[1] + number for number in range(count))
    with listening(wire, 6, WEB, HMAC) as listener:
        assert lane(wire, listener, sent(instance, 6, vips)) is Lane.EXPECTED


def test_what_is_no_advert_of_ours_is_not_expected(wire: Wire) -> None:
    """Every byte that the form of an advert fixes, and every one that its checksum covers."""
    data = sent(WEB)
    foreign = changed(data, 21, 77)
    strange = {
        "TTL 254": changed(data, 8, 254),
        "VRID 77": foreign,
        "another type": changed(data, 20, 0x32),
        "no VIPs": changed(data, 23, 0),
        "two VIPs in the place of one": changed(data, 23, 2),
        "too short": changed(data[:2] + b"\0\x18" + data[4:24], 1, 0),
        "too long": longer(data, b"\0"),
        "IP options": changed(b"\x46" + data[1:2] + b"\0\x24" + data[4:20] + bytes(4), 1, 0)
        + data[20:],
        "AH's in the open": sent(AH)[:9] + b"\x70" + sent(AH)[10:20] + sent(AH)[44:],
    }
    at = {f"byte {at}": changed(data, at, data[at] ^ 0x10) for at in (22, 24, 25, 26, 28, 31)}
    with listening(wire, 4, WEB, AH) as listener:
        for name, each in (strange | at).items():
            if name == "AH's in the open":
                each = changed(each[:2] + len(each).to_bytes(2) + each[4:], 1, 0)
            assert lane(wire, listener, each) is Lane.OTHER, name
        assert lane(wire, listener, data) is Lane.EXPECTED


def test_ipv6_is_sorted_the_same_way(wire: Wire) -> None:
    data = sent(WEB, 6)
    with listening(wire, 6, WEB) as listener:
        for at in (7, 40, 41, 43, 46, 60):
            assert lane(wire, listener, changed(data, at, data[at] ^ 0x10)) is Lane.OTHER, at
        assert lane(wire, listener, data) is Lane.EXPECTED


def test_other_ipsec_is_not_for_us_and_ah_is_expected_only_where_it_is_set(wire: Wire) -> None:
    data = sent(AH)
    with listening(wire, 4, WEB, AH) as listener:
        wire.send(changed(data, 20, 6))  # TCP in it: nobody gets that
        assert lane(wire, listener, changed(data, 45, 51)) is Lane.OTHER
        assert lane(wire, listener, data) is Lane.EXPECTED
        listener.leave(listener._members[AH.vrid])
        assert lane(wire, listener, data) is Lane.OTHER


def test_a_filter_without_checksums_is_the_same_otherwise(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels before 6.8 let a socket have 20 kB of options."""
    attach = sockfilter.attach

    def little_room(to: socket.socket, steps: tuple[sockfilter.Step, ...]) -> None:
        if len(steps) > 150:
            raise OSError(12, "Cannot allocate memory")
        attach(to, steps)

    monkeypatch.setattr(sockfilter, "attach", little_room)
    with listening(wire, 4, WEB) as listener:
        assert lane(wire, listener, sent(WEB)) is Lane.EXPECTED
        assert lane(wire, listener, changed(sent(WEB), 26, 0)) is Lane.EXPECTED
        assert lane(wire, listener, changed(sent(WEB), 8, 64)) is Lane.OTHER


def test_adverts_do_not_wait_behind_junk(wire: Wire) -> None:
    """Of thousands of junk packets, some are looked at; the advert behind them is found."""
    with netns.inside(wire.here):
        channel = Channel(router(WEB), HERE)
    with contextlib.closing(channel):
        junk = changed(sent(WEB), 26, 0)
        for _ in range(5000):
            wire.send(junk)
        wire.send(sent(WEB))
        found: list[object] = []
        while not any(isinstance(each, Advert) for each in found):
            assert readable(channel.sockets[:1], 60)
            found += channel.receive()
        assert len(found) <= 1 + 32


def test_what_only_the_key_refutes_is_verified_a_few_times_a_turn(wire: Wire) -> None:
    with netns.inside(wire.here):
        channel = Channel(router(HMAC), HERE, b"another key" * 3)
    with contextlib.closing(channel):
        channel._guard.clock_ns = lambda: 0
        for _ in range(500):
            wire.send(sent(HMAC))
        assert readable(channel.sockets[:1], 60)
        listener = channel._listener
        found = channel.receive()
        while not listener.is_flooded:
            found = channel.receive()
        assert 0 < len(found) <= 64
        assert listener._sources[0].awake_s > 0
        listener._sources[0].awake_s = 2**40
        assert channel.receive() == [], "it rests"


def test_many_virtual_routers_share_the_sockets(wire: Wire) -> None:
    instances = [replace(WEB, vrid=vrid) for vrid in range(1, 256)]
    with listening(wire, 4, *instances) as listener:
        for vrid in (1, 128, 255):
            wire.send(sent(instances[vrid - 1]))
        members = {vrid: listener._members[vrid] for vrid in (1, 128, 255)}
        while not all(of.heard for of in members.values()):  # type: ignore[attr-defined]
            assert readable(listener.sockets, 60)
            listener.read()
        for vrid, of in members.items():
            assert [each.payload[1] for each in of.heard] == [vrid]  # type: ignore[attr-defined]
        assert len(listener.sockets) == 4
        assert all(len(of.heard) <= 1 for of in listener._members.values())  # type: ignore[attr-defined]


def test_our_vips_under_another_vrid_are_reported_to_whose_they_are(wire: Wire) -> None:
    with netns.inside(wire.here):
        listener = Listener("eth0", 4)
        web = Channel(router(WEB), HERE, listener=listener)
        other = Channel(replace(router(HMAC), vips=(VIP + 1,)), HERE, KEY, listener=listener)
    with contextlib.closing(listener), contextlib.closing(web), contextlib.closing(other):
        wire.send(sent(replace(WEB, vrid=99), to=GROUP_V4))
        found: list[object] = []
        while not found:
            assert readable(listener.sockets, 60)
            found = web.receive()  # type: ignore[assignment]
        assert "as virtual router 99" in str(found)
        assert other.taken() == []
