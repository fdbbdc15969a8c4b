"""A packet in mid-connection of which nothing is known here: once to another balancer."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from agent.dataplane import abi, peers
from agent.dataplane.counters import of_sync
from agent.dataplane.peers import PeerPath
from agent.model import Forward, NextHop, NoBackend, Protocol, Scheduler, SynProtection
from tests.packet.frames import BALANCER4, BALANCER6, BALANCER_MAC, CLIENT4, ROUTER_MAC, VIP4
from tests.packet.harness import Rig, Verdict, backend, mac_of, service
from tests.packet.nodes import Case, case, opened, serve, where
from tests.packet.wires import Packet, checksum, ether

PEER4, PEER6 = "10.0.0.2", "fd00::2"
GUE_PORT = 6080
SPORT_FIRST = 49_152
MARK = b"STYL"
WINDOW = 1000  # packets of a CPU in a tenth of a second

BOTH = pytest.mark.parametrize("outer", [4, 6])
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def ends(outer: int) -> tuple[str, str]:
    """The address of the peer, and ours."""
    return (PEER4, BALANCER4) if outer == 4 else (PEER6, BALANCER6)


def alive(rig: Rig, outer: int = 4, *, mtu: int = 1500, seconds: float = 3.0) -> None:
    """The peer is known, and alive for so long."""
    address, own = map(ip_address, ends(outer))
    hop = NextHop(address, rig.dataplane.ifindex, mac_of(address), BALANCER_MAC, mtu, on_link=True)
    until = rig.dataplane.now_jiffies() + round(seconds * rig.clock.hz)
    peers.accept(rig.tables, [(address, own)])
    peers.pass_on(rig.tables, [(PeerPath(address, own, hop, 0), until)])


def wrapped(inner: bytes, outer: int, sport: int = 50_000, tos: int = 0, **changed: str) -> bytes:
    """The IP packet around an inner one, as the peer of ``ends`` is sent it; swap them for what it
    sends.
    """
    to, source = ends(outer)
    source, to = changed.get("source", source), changed.get("to", to)
    protocol = 4 if inner[0] >> 4 == 4 else 41
    length = 16 + len(inner)
    udp = struct.pack("!4HBBH4s", sport, GUE_PORT, length, 0, 1, protocol, 0, MARK) + inner
    both = ip_address(source).packed + ip_address(to).packed
    if outer == 6:
        return struct.pack("!IHBB", 6 << 28 | tos << 20, length, 17, 64) + both + udp
    words = [0x45, tos, 20 + length, 0, 0x4000, 64, 17, 0]
    words[7] = checksum(struct.pack("!BBHHHBBH", *words) + both)
    return struct.pack("!BBHHHBBH", *words) + both + udp


def sport_of(frame: bytes, outer: int) -> int:
    at = 14 + (20 if outer == 4 else 40)
    return int.from_bytes(frame[at : at + 2])


def from_peer(packet: Packet, outer: int = 4, **changed: str) -> bytes:
    """The frame in which the peer passes a packet on."""
    address, own = ends(outer)
    around = wrapped(packet.frame()[14:], outer, **{"source": address, "to": own} | changed)
    return ether(BALANCER_MAC, ROUTER_MAC, outer) + around


def hops_less(packet: Packet) -> bytes:
    """The IP packet after one more hop."""
    return replace(packet, ttl=packet.ttl - 1).frame()[14:]


def recorded(rig: Rig) -> int:
    return int(np.count_nonzero(rig.tables.flows))


def simple(rig: Rig, forward: Forward = Forward.DSR, family: int = 4) -> Case:
    it = case(forward, family)
    rig.serve(it.service)
    return it


# -- what is sent on


@BOTH
@FAMILIES
def test_a_packet_of_an_unknown_connection_goes_to_the_peer(hooked: Rig, family: int, outer: int):
    it = simple(hooked, family=family)
    alive(hooked, outer)
    packet = replace(it.goes_on(1), tos=0xB8)
    done = hooked.send(packet.frame())
    around = wrapped(hops_less(packet), outer, sport_of(done.data, outer), tos=0xB8)
    head = ether(mac_of(ip_address(ends(outer)[0])), BALANCER_MAC, outer)
    assert (done.verdict, done.data) == (Verdict.TX, head + around)
    assert sport_of(done.data, outer) >= SPORT_FIRST
    assert recorded(hooked) == 0, "whoever has it keeps it"
    assert of_sync(hooked.tables)["passed_on"] == 1
    assert hooked.reasons() == {}


def test_what_answers_a_challenge_stays_here(rig: Rig):
    """The other balancer has not asked for it, and has other secrets."""
    rig.serve(service(backend("a"), syn_protection=SynProtection.ALWAYS))
    alive(rig)
    asked = Packet()
    told = rig.send(asked.frame())
    number = int.from_bytes(told.data[42:46])
    assert rig.verdict(replace(asked, flags="R", seq=number).frame()) == Verdict.DROP
    assert rig.reasons() == {"challenged": 1, "verified": 1}
    assert of_sync(rig.tables)["passed_on"] == 0
    assert rig.verdict(asked.frame()) == Verdict.TX
    # What may be in the middle of a connection goes on as ever.
    assert rig.verdict(Packet("192.0.2.77", flags="A", ack=1).frame()) == Verdict.TX
    assert of_sync(rig.tables)["passed_on"] == 1


@pytest.mark.parametrize("scheduler", list(Scheduler))
@pytest.mark.parametrize("forward", list(Forward))
def test_so_it_is_for_every_scheduler_and_mode(rig: Rig, forward: Forward, scheduler: Scheduler):
    members = (backend("a", "10.1.2.3"), backend("b", "10.1.2.4"))
    rig.serve(service(*members, forward=forward, scheduler=scheduler))
    alive(rig)
    for flags in ("A", "PA", "FA", "R", "RA"):
        out = rig.send(Packet(CLIENT4, VIP4, 4000, 80, b"x", flags).frame()).data
        assert out[:6].hex(":") == mac_of(ip_address(PEER4)), flags
    assert recorded(rig) == 0


@pytest.mark.parametrize("what", ["dead", "late", "nobody", "syn", "known", "datagram", "fragment"])
def test_what_is_picked_for_as_ever(rig: Rig, what: str):
    it = case(Forward.DSR, 4, "udp" if what == "datagram" else "port")
    rig.serve(it.service)
    if what != "nobody":
        alive(rig, seconds={"dead": 0, "late": -1, "known": -1}.get(what, 3))
    frame = (it.client(1) if what == "syn" else it.goes_on(1)).frame()
    if what == "known":
        rig.send(frame)
        alive(rig)
    if what == "fragment":
        frame = frame[:20] + b"\x20\0" + frame[22:]
    assert rig.backend_of(frame) in "abcde"
    assert of_sync(rig.tables)["passed_on"] == 0


def test_a_word_that_is_about_too_much_is_none(rig: Rig):
    """As after jiffies have come all the way round, with nobody to say anything new."""
    it = simple(rig)
    for seconds in (5.0, 1e6, 4e6):
        alive(rig, seconds=seconds)
        assert rig.backend_of(it.goes_on(round(seconds) % 1000).frame()) in "abcde"


def test_a_flood_of_made_up_packets_is_not_passed_on_without_bound(rig: Rig):
    it = simple(rig)
    alive(rig)
    count = 5000
    frame = it.goes_on(1).frame()
    ports = np.arange(1024, 1024 + count, dtype=">u2")
    started = rig.dataplane.now_jiffies()
    for port in ports:
        rig.send(frame[:34] + port.tobytes() + frame[36:])
    windows = (rig.dataplane.now_jiffies() - started) // (rig.clock.hz // 10) + 2
    counts = of_sync(rig.tables)
    cpus = rig.tables.sync_count["passed_on"].astype(bool).sum()
    assert 0 < counts["passed_on"] <= windows * WINDOW * cpus
    assert counts["passed_on"] + counts["not_passed"] <= count


def test_beyond_the_bound_a_packet_is_picked_for(rig: Rig):
    it = simple(rig)

    def is_picked_for() -> bool:
        """With all of this tenth of a second used up, if it is not over at once."""
        alive(rig)
        rig.tables.sync_count["window"] = rig.dataplane.now_jiffies() % 2**32
        rig.tables.sync_count["in_window"] = WINDOW
        out = rig.send(it.goes_on(1).frame())
        return out.data[:6].hex(":") != mac_of(ip_address(PEER4))

    assert any(is_picked_for() for _ in range(100))
    assert of_sync(rig.tables)["not_passed"] == 1
    assert recorded(rig) == 1


def test_one_that_does_not_fit_is_answered_and_comes_again_smaller(rig: Rig):
    it = simple(rig)
    alive(rig, mtu=1500)
    packet = replace(it.goes_on(1), payload=bytes(1460))
    assert len(packet.frame()) == 14 + 1500
    done = rig.send(packet.frame())
    assert done.verdict == Verdict.TX
    icmp = done.data[14 + 20 :]
    assert (icmp[0], icmp[1], int.from_bytes(icmp[6:8])) == (3, 4, 1500 - 36)
    smaller = replace(packet, payload=bytes(1460 - 36))
    assert rig.send(smaller.frame()).data[:6].hex(":") == mac_of(ip_address(PEER4))


# -- what comes


@BOTH
@FAMILIES
@pytest.mark.parametrize("forward", [Forward.DSR, Forward.IPIP, Forward.GUE])
def test_the_peer_sends_it_where_its_record_says(
    hooked: Rig, forward: Forward, family: int, outer: int
):
    """As if it had come from the client, but for the hop that it has been."""
    it = simple(hooked, forward, family)
    there = opened(hooked, it)
    straight = {n: hooked.send(replace(it.goes_on(n), ttl=63).frame()).data for n in there}
    alive(hooked, outer)
    for number in there:
        frame = from_peer(replace(it.goes_on(number), ttl=63), outer)
        done = hooked.send(frame)
        assert (done.verdict, done.data) == (Verdict.TX, straight[number])
    assert of_sync(hooked.tables)["taken"] == len(there)
    assert recorded(hooked) == len(there)


@pytest.mark.parametrize("tags", [((0x8100, 7),), ((0x88A8, 5), (0x8100, 9))])
def test_it_comes_in_the_vlans_of_the_balancers(rig: Rig, tags):
    it = simple(rig)
    there = opened(rig, it)
    alive(rig)
    frame = from_peer(it.goes_on(1))
    inside = b"".join(struct.pack("!HH", *tag) for tag in tags)
    assert rig.backend_of(frame[:12] + inside + frame[12:]) == there[1]


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
def test_answers_of_nat_go_the_way_that_the_client_came(rig: Rig, other: Rig, forward: Forward):
    """Not to the balancer that has passed the client's packet on."""
    it = case(forward, 4)
    serve(rig, other, it)
    opened(rig, it, 1)
    ways = rig.tables.flows_warm.copy()
    alive(rig)
    frame = from_peer(it.goes_on(0))
    assert rig.verdict(frame[:6] + bytes.fromhex("02cc00000099") + frame[12:]) == Verdict.TX
    for field in ("mac", "source_mac", "vlan", "tags", "ifindex"):
        assert (rig.tables.flows_warm[field] == ways[field]).all(), field


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_one_of_which_the_peer_has_no_record_either_is_picked_for(rig: Rig, scheduler: Scheduler):
    rig.serve(service(backend("a"), backend("b"), scheduler=scheduler))
    alive(rig)
    packet = Packet(CLIENT4, VIP4, 4000, 80, b"x", "PA")
    done = rig.send(from_peer(packet))
    assert done.verdict == Verdict.TX
    assert done.data[14:] == packet.frame()[14:]
    assert rig.name_of_mac(done.data[:6]) in "ab"
    assert recorded(rig) == 1
    assert of_sync(rig.tables)["passed_on"] == 0, "never again"


def test_what_two_balancers_do_together(rig: Rig, other: Rig):
    """What one sends the other, to the byte, goes where the other has it."""
    it = case(Forward.DSR, 4)
    serve(rig, other, it)
    there = opened(other, it)
    alive(rig)
    address, own = map(ip_address, ends(4))
    peers.accept(other.tables, [(own, address)])
    for number in there:
        passed = rig.send(it.goes_on(number).frame()).data
        assert passed[26:34] == own.packed + address.packed
        assert other.backend_of(passed) == there[number]
    assert where(other, it, range(len(there))) == there
    assert recorded(rig) == 0


@pytest.mark.parametrize(
    "changed",
    [{"source": "10.0.0.9"}, {"to": "10.0.0.9"}, {"source": BALANCER4, "to": PEER4}],
    ids=["stranger", "elsewhere", "mirrored"],
)
def test_who_is_no_peer_is_not_listened_to(hooked: Rig, changed: dict[str, str]):
    it = simple(hooked)
    opened(hooked, it)
    alive(hooked)
    frame = from_peer(it.goes_on(1), **changed)
    before = hooked.tables.flows.copy()
    done = hooked.send(frame)
    assert (done.verdict, done.data) == (Verdict.PASS, frame)
    counts = of_sync(hooked.tables)
    assert (counts["strangers"], counts["taken"]) == (1, 0)
    assert (hooked.tables.flows == before).all()


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5, 6, 7])
def test_gue_of_another_kind_is_the_hosts(rig: Rig, at: int):
    """Each byte of the header has to be as it is."""
    it = simple(rig)
    alive(rig)
    frame = bytearray(from_peer(it.goes_on(1)))
    frame[14 + 28 + at] ^= 0x40
    done = rig.send(bytes(frame))
    assert (done.verdict, done.data) == (Verdict.PASS, bytes(frame))
    assert of_sync(rig.tables)["taken"] == 0


def test_a_peer_that_is_not_alive_is_listened_to_all_the_same(rig: Rig):
    """It may know more of this one than this one of it."""
    it = simple(rig)
    there = opened(rig, it)
    alive(rig, seconds=-1)
    assert rig.backend_of(from_peer(it.goes_on(1))) == there[1]


@pytest.mark.parametrize("what", ["no service", "no backend", "malformed", "short"])
def test_what_a_peer_passes_on_for_nothing_ends_here(hooked: Rig, what: str):
    """It is not the host's, and its frame is no place to answer the client."""
    it = simple(hooked)
    down = "abcde" if what == "no backend" else ""
    hooked.serve(replace(it.service, no_backend=NoBackend.RESET), down=down)
    alive(hooked)
    packet = it.goes_on(1)
    if what == "no service":
        packet = replace(packet, dport=81)
    frame = from_peer(packet)
    if what == "malformed":
        frame = frame[:-20]
    if what == "short":
        frame = frame[: 14 + 20 + 8 + 8 + 3]
    assert hooked.verdict(frame) == Verdict.DROP
    assert recorded(hooked) == 0


def test_nothing_that_is_cut_off_or_changed_harms(hooked: Rig):
    it = simple(hooked)
    alive(hooked)
    frame = from_peer(it.goes_on(1))
    draw = np.random.default_rng(5)
    for end in range(14, len(frame)):
        hooked.send(frame[: max(end, 54)])
    for _ in range(500):
        changed = bytearray(frame)
        for at in draw.integers(12, len(frame), 3):
            changed[at] = draw.integers(256)
        hooked.send(bytes(changed))
    assert of_sync(hooked.tables)["passed_on"] == 0


# -- what the agent writes


def test_rows_are_shared_by_those_who_live(rig: Rig):
    ways = []
    for number in (2, 3, 4):
        address = ip_address(f"10.0.0.{number}")
        hop = NextHop(address, 1, mac_of(address), BALANCER_MAC, 1500, on_link=True)
        ways.append((PeerPath(address, ip_address(BALANCER4), hop, number), 77))
    peers.pass_on(rig.tables, ways)
    rows = rig.tables.peers
    assert sorted(rows["ifindex"].tolist()) == [2, 2, 2, 3, 3, 3, 4, 4]
    assert set(rows["until"].tolist()) == {77}
    assert set(rows["forward"].tolist()) == {abi.ForwardId.PEER}
    assert not rows["service"].any()
    peers.pass_on(rig.tables, [])
    assert not rows["until"].any()


def test_who_is_no_peer_any_more_is_forgotten(rig: Rig):
    one, two, own = map(ip_address, ("10.0.0.2", "fd00::2", BALANCER4))
    peers.accept(rig.tables, [(one, own), (two, ip_address(BALANCER6))])
    assert len(list(rig.tables.items("peers"))) == 2
    peers.accept(rig.tables, [(one, own)])
    assert len(list(rig.tables.items("peers"))) == 1
    peers.accept(rig.tables, [])
    assert not list(rig.tables.items("peers"))


def test_udp_services_have_no_middle(rig: Rig):
    rig.serve(service(backend("a"), protocol=Protocol.UDP))
    alive(rig)
    assert rig.backend_of(Packet(CLIENT4, VIP4, 4000, 80, b"x", None).frame()) == "a"
