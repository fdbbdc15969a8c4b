"""What the balancer answers itself, to the byte: time exceeded, too big, RST, port unreachable."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from agent.dataplane import pins
from agent.model import Config, Forward, NoBackend, Protocol, Scheduler
from tests.packet.frames import BALANCER_MAC, CLIENT4, ROUTER_MAC, VIP4
from tests.packet.harness import (
    KEYS,
    SMALL,
    Rig,
    Verdict,
    all_features,
    backend,
    instance_name,
    load,
    mac_of,
    service,
)
from tests.packet.pieces import (
    DESTINATION,
    extended,
    extension,
    fragments,
    framed,
    header,
    icmp,
    summed,
)
from tests.packet.places import NATS, PLACES, TRANSPORTS, V4, V6, Place
from tests.packet.wires import FLAGS, TCP, Packet, Tags, checksum, pseudo_header

ROUTED = [f for f in Forward if f is not Forward.DSR]
TUNNELS = [Forward.IPIP, Forward.GUE]
OUTER = {Forward.IPIP: 0, Forward.GUE: 8}  # besides the IP header
QUOTE = 128
PAYLOAD = bytes(range(100)) * 7
RECORD_ROUTE = bytes((7, 39, 4)).ljust(40, b"\0")
TAGS: list[Tags] = [(), ((0x8100, 0x6005),), ((0x88A8, 7), (0x8100, 100))]


def serve(
    rig: Rig,
    at: Place,
    forward: Forward = Forward.DSR,
    flags: str | None = "S",
    address: str = "",
    no_backend: NoBackend = NoBackend.DROP,
    scheduler: Scheduler = Scheduler.MAGLEV,
    **more: object,
) -> None:
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    rig.serve(
        service(backend("a", address or at.server), vip=at.vip, forward=forward,
                protocol=protocol, no_backend=no_backend, scheduler=scheduler),
        **more,
    )  # fmt: skip


def serve_none(rig: Rig, at: Place, flags: str | None = "S", **more: object) -> None:
    """Nobody is usable, and clients are told."""
    serve(rig, at, flags=flags, no_backend=NoBackend.RESET, down=["a"], **more)


def exceeded(at: Place, packet: bytes, *, source: str = "") -> bytes:
    """RFC 792, RFC 4443, section 3.3: in transit."""
    kind = 11 if at is V4 else 3
    return icmp(source or at.vip, source_of(packet), kind, 0, 0, quote(packet))


def too_big(at: Place, packet: bytes, mtu: int) -> bytes:
    """RFC 1191, section 4; RFC 4443, section 3.2."""
    kind = (3, 4) if at is V4 else (2, 0)
    return icmp(at.vip, source_of(packet), *kind, mtu, quote(packet))


def quote(packet: bytes) -> bytes:
    """Whole words, so that the checksum can be summed up by them."""
    return packet[: min(len(packet), QUOTE) // 4 * 4]


def source_of(packet: bytes) -> str:
    raw = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
    return str(ip_address(raw))


def reset(asked: Packet, seq: int, ack: int, flags: str) -> bytes:
    bits = sum(FLAGS[flag] for flag in flags)
    blank = struct.pack(
        "!HHIIBBHHH", asked.dport, asked.sport, seq, ack, 5 << 4, bits, 0, 0, 0
    )  # fmt: skip
    value = checksum(pseudo_header(asked.dst, asked.src, TCP, 20) + blank).to_bytes(2)
    return header(asked.dst, asked.src, TCP, 20) + blank[:16] + value + blank[18:]


def answered(rig: Rig, packet: bytes, answer: bytes, reason: str, tags: Tags = ()) -> None:
    """The packet must come back as ``answer``, to the router, and be counted."""
    done = rig.send(framed(packet, tags=tags))
    wanted = framed(answer, ROUTER_MAC, BALANCER_MAC, tags)
    assert (done.verdict, done.data) == (Verdict.TX, wanted)
    assert rig.reasons() == {reason: 1}
    assert rig.service_counts().drops[reason] == 1
    assert rig.service_counts().replied == 1


def dropped(rig: Rig, packet: bytes, reason: str) -> None:
    assert rig.verdict(framed(packet)) == Verdict.DROP
    assert rig.reasons() == {reason: 1}
    assert rig.service_counts().replied == 0


# -- time exceeded


@pytest.mark.pairs
@PLACES
@TRANSPORTS
@pytest.mark.parametrize("forward", ROUTED)
@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 700])
def test_a_packet_at_the_end_of_its_ttl_is_answered(
    hooked: Rig, at: Place, flags, forward: Forward, ttl: int, size: int
):
    serve(hooked, at, forward, flags)
    packet = Packet(
        at.client, at.vip, flags=flags, payload=bytes(range(100)) * 7, ttl=ttl, tos=0xB8
    )
    packet = replace(packet, payload=packet.payload[:size])
    answered(hooked, packet.ip, exceeded(at, packet.ip), "ttl-exceeded")


@PLACES
@pytest.mark.parametrize("forward", Forward)
def test_a_ttl_of_two_goes_on_and_dsr_does_not_look_at_it(hooked: Rig, at: Place, forward: Forward):
    serve(hooked, at, forward)
    ttl = 0 if forward is Forward.DSR else 2
    done = hooked.send(Packet(at.client, at.vip, ttl=ttl).frame())
    assert (done.verdict, done.data[:6].hex(":")) == (
        Verdict.TX,
        mac_of(hooked.address_of("a")),
    )
    assert hooked.service_counts().replied == 0


@PLACES
@pytest.mark.parametrize("forward", ROUTED)
@pytest.mark.parametrize("tags", TAGS, ids=len)
def test_the_answer_keeps_the_tags(rig: Rig, at: Place, forward: Forward, tags: Tags):
    serve(rig, at, forward, vlans={"a": ((0x8100, 9),)})
    packet = Packet(at.client, at.vip, ttl=1, payload=bytes(90))
    answered(rig, packet.ip, exceeded(at, packet.ip), "ttl-exceeded", tags)


@PLACES
@pytest.mark.parametrize("forward", NATS)
def test_a_servers_packet_at_the_end_of_its_ttl_is_answered_as_by_whom_it_talks_to(
    hooked: Rig, at: Place, forward: Forward
):
    serve(hooked, at, forward)
    asked = Packet(at.client, at.vip)
    out = hooked.send(asked.frame()).data
    end, port = (at.client, asked.sport)
    if forward is Forward.FULLNAT:
        end, port = at.own, int.from_bytes(out[at.l4 : at.l4 + 2])
    reply = Packet(at.server, end, asked.dport, port, b"hello", "PA", ttl=1)
    own = at.own if forward is Forward.FULLNAT else at.vip
    wanted = exceeded(at, reply.ip, source=own)
    done = hooked.send(framed(reply.ip))
    assert (done.verdict, done.data) == (Verdict.TX, framed(wanted, ROUTER_MAC, BALANCER_MAC))
    assert hooked.reasons() == {"ttl-exceeded": 1}
    assert hooked.service_counts().replied == 1


def test_options_and_extension_headers_are_quoted(rig: Rig):
    serve(rig, V4, Forward.IPIP)
    plain = Packet(ttl=1, ip_options=RECORD_ROUTE)
    answered(rig, plain.ip, exceeded(V4, plain.ip), "ttl-exceeded")
    rig.reset()
    serve(rig, V6, Forward.IPIP)
    packet = extended(Packet(V6.client, V6.vip, ttl=1).ip, extension(DESTINATION, 32))
    answered(rig, packet, exceeded(V6, packet), "ttl-exceeded")


@PLACES
def test_a_first_fragment_at_the_end_of_its_ttl_is_answered(hooked: Rig, at: Place):
    serve(hooked, at, Forward.NAT)
    whole = Packet(at.client, at.vip, flags="PA", payload=bytes(900), ttl=1)
    hooked.send(replace(whole, ttl=9, flags="S").frame())
    first, second = fragments(whole.ip, 640)
    answered(hooked, first, exceeded(at, first), "ttl-exceeded")
    assert hooked.verdict(framed(second)) == Verdict.PASS, "the first went nowhere"


# -- too big


@PLACES
@TRANSPORTS
@pytest.mark.parametrize("forward", TUNNELS)
@pytest.mark.parametrize("address", [V4.server, V6.server], ids=["in4", "in6"])
def test_what_does_not_fit_is_answered_with_what_fits(
    hooked: Rig, at: Place, flags, forward: Forward, address: str
):
    serve(hooked, at, forward, flags, address, mtu=1400)
    fits = 1400 - OUTER[forward] - (20 if address == V4.server else 40)
    packet = Packet(at.client, at.vip, flags=flags and "PA", payload=bytes(1400))
    head = len(packet.ip) - 1400
    done = hooked.send(replace(packet, payload=bytes(fits - head)).frame())
    assert len(done.data) == 14 + 1400
    packet = replace(packet, payload=bytes(fits - head + 1))
    answered(hooked, packet.ip, too_big(at, packet.ip, fits), "too-big")


@pytest.mark.parametrize("forward", TUNNELS)
@pytest.mark.parametrize("frag", [0, 0x4000], ids=["may-fragment", "DF"])
def test_nothing_is_fragmented_whatever_the_packet_allows(rig: Rig, forward: Forward, frag: int):
    serve(rig, V4, forward, mtu=576)
    packet = Packet(flags="PA", payload=bytes(600)).ip
    packet = summed(packet[:6] + frag.to_bytes(2) + packet[8:])
    answered(rig, packet, too_big(V4, packet, 556 - OUTER[forward]), "too-big")


@PLACES
@pytest.mark.parametrize("tags", TAGS, ids=len)
def test_too_big_keeps_the_tags(rig: Rig, at: Place, tags: Tags):
    serve(rig, at, Forward.IPIP, mtu=1000)
    packet = Packet(at.client, at.vip, flags="PA", payload=bytes(1000))
    mtu = 1000 - (20 if at is V4 else 40)
    answered(rig, packet.ip, too_big(at, packet.ip, mtu), "too-big", tags)


@PLACES
@TRANSPORTS
@pytest.mark.parametrize("forward", NATS)
def test_what_is_routed_to_a_narrower_way_is_answered_with_what_fits(
    hooked: Rig, at: Place, flags, forward: Forward
):
    serve(hooked, at, forward, flags, mtu=1400)
    packet = Packet(at.client, at.vip, flags=flags, payload=bytes(1400))
    head = len(packet.ip) - 1400
    done = hooked.send(replace(packet, payload=bytes(1400 - head)).frame())
    assert len(done.data) == 14 + 1400
    packet = replace(packet, payload=bytes(1401 - head))
    answered(hooked, packet.ip, too_big(at, packet.ip, 1400), "too-big")


@PLACES
@pytest.mark.parametrize("forward", NATS)
def test_answers_go_back_whatever_the_way_to_the_backend_has_room_for(
    rig: Rig, at: Place, forward: Forward
):
    serve(rig, at, forward, mtu=576)
    asked = Packet(at.client, at.vip)
    out = rig.send(asked.frame()).data
    end, port = at.client, asked.sport
    if forward is Forward.FULLNAT:
        end, port = at.own, int.from_bytes(out[at.l4 : at.l4 + 2])
    reply = Packet(at.server, end, asked.dport, port, bytes(1400), "PA")
    assert rig.verdict(framed(reply.ip)) == Verdict.TX


@PLACES
def test_in_dsr_nothing_is_too_big(rig: Rig, at: Place):
    serve(rig, at, mtu=576)
    assert rig.verdict(Packet(at.client, at.vip, payload=bytes(1400)).frame()) == Verdict.TX


# -- no usable backend


@PLACES
@pytest.mark.parametrize("payload", [b"", b"x", b"GET / HTTP/1.1\r\n"])
@pytest.mark.parametrize("flags", ["S", "SP", "A", "PA", "FA", "SA", "PAU"])
def test_without_a_backend_a_segment_is_reset(hooked: Rig, at: Place, flags: str, payload: bytes):
    """RFC 9293, section 3.10.7.1."""
    serve_none(hooked, at)
    asked = Packet(at.client, at.vip, flags=flags, payload=payload, seq=2**32 - 3, ack=0xDEADBEEF)
    if "A" in flags:
        wanted = reset(asked, 0xDEADBEEF, 0, "R")
    else:
        wanted = reset(asked, 0, (2**32 - 3 + len(payload) + 1) % 2**32, "RA")
    answered(hooked, asked.ip, wanted, "no-backend")
    assert not hooked.tables.flows.any()


@PLACES
def test_a_reset_is_not_answered(rig: Rig, at: Place):
    for flags in ("R", "RA"):
        serve_none(rig, at)
        dropped(rig, Packet(at.client, at.vip, flags=flags).ip, "no-backend")
        rig.reset()


@PLACES
@pytest.mark.parametrize("tags", TAGS, ids=len)
def test_a_reset_keeps_the_tags_and_drops_options(rig: Rig, at: Place, tags: Tags):
    serve_none(rig, at)
    asked = Packet(at.client, at.vip, options=b"\x02\x04\x05\xb4" + b"\x01" * 36, seq=7)
    packet = asked.ip
    if at is V4:
        packet = replace(asked, ip_options=b"\x01" * 12).ip
    else:
        packet = extended(packet, extension(DESTINATION, 64))
    answered(rig, packet, reset(asked, 0, 8, "RA"), "no-backend", tags)


@PLACES
def test_a_reset_of_a_padded_frame_has_no_padding(rig: Rig, at: Place):
    serve_none(rig, at)
    asked = Packet(at.client, at.vip, seq=7)
    done = rig.send(asked.frame() + bytes(20))
    assert done.data == framed(reset(asked, 0, 8, "RA"), ROUTER_MAC, BALANCER_MAC)


@PLACES
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 300])
def test_without_a_backend_a_datagram_is_answered_with_port_unreachable(
    hooked: Rig, at: Place, size: int
):
    serve_none(hooked, at, None)
    asked = Packet(at.client, at.vip, flags=None, payload=PAYLOAD[:size])
    wanted = icmp(at.vip, at.client, *at.unreachable, quote(asked.ip))
    answered(hooked, asked.ip, wanted, "no-backend")


@PLACES
@TRANSPORTS
@pytest.mark.parametrize("forward", Forward)
@pytest.mark.parametrize("scheduler", Scheduler)
def test_the_answer_is_the_same_whatever_way_it_would_have_gone(
    rig: Rig, at: Place, flags, forward: Forward, scheduler: Scheduler
):
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    rig.serve(
        service(backend("a", at.server), vip=at.vip, forward=forward, scheduler=scheduler,
                protocol=protocol, no_backend=NoBackend.RESET),
        down=["a"],
    )  # fmt: skip
    asked = Packet(at.client, at.vip, flags=flags, seq=7)
    if flags is None:
        wanted = icmp(at.vip, at.client, *at.unreachable, quote(asked.ip))
    else:
        wanted = reset(asked, 0, 8, "RA")
    answered(rig, asked.ip, wanted, "no-backend")


@PLACES
@TRANSPORTS
def test_the_policy_drop_says_nothing(rig: Rig, at: Place, flags):
    serve(rig, at, flags=flags, down=["a"])
    dropped(rig, Packet(at.client, at.vip, flags=flags).ip, "no-backend")


@PLACES
@TRANSPORTS
def test_a_recorded_flow_is_not_reset_while_its_backend_keeps_its_flows(rig: Rig, at: Place, flags):
    serve(rig, at, flags=flags, no_backend=NoBackend.RESET)
    asked = Packet(at.client, at.vip, flags=flags)
    rig.send(asked.frame())
    serve_none(rig, at, flags)
    assert rig.verdict(replace(asked, flags=flags and "A").frame()) == Verdict.TX
    assert rig.service_counts().replied == 0


@PLACES
@TRANSPORTS
def test_fragments_are_not_reset(rig: Rig, at: Place, flags):
    serve_none(rig, at, flags)
    first, _ = fragments(
        Packet(at.client, at.vip, flags=flags and "PA", payload=bytes(900)).ip, 640
    )
    dropped(rig, first, "no-backend")


# -- to whom nothing is said


def nobody(source: str) -> list[Packet]:
    return [Packet(source, VIP4 if "." in source else V6.vip, flags=flags, ttl=1)
            for flags in ("S", None)]  # fmt: skip


@pytest.mark.parametrize(
    "source",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.9.9.9", "240.0.0.1", "255.255.255.255",
     "::", "ff02::1"],
)  # fmt: skip
def test_nothing_is_said_to_what_is_no_single_host(hooked: Rig, source: str):
    """RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e.6)."""
    at = V4 if "." in source else V6
    for packet in nobody(source):
        for forward, down in ((Forward.IPIP, []), (Forward.DSR, ["a"])):
            serve(hooked, at, forward, packet.flags, no_backend=NoBackend.RESET, down=down)
            dropped(hooked, packet.ip, "martian")
            hooked.reset()


@PLACES
@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01"])
def test_nothing_is_said_to_what_came_to_many(hooked: Rig, at: Place, mac: str):
    """RFC 1122, section 3.2.2."""
    serve(hooked, at, Forward.IPIP)
    asked = Packet(at.client, at.vip)
    assert hooked.verdict(asked.frame()) == Verdict.TX
    at_its_end = replace(asked, flags="A", ttl=1)
    assert hooked.verdict(at_its_end.frame(dst=mac)) == Verdict.DROP
    assert hooked.reasons() == {"ttl-exceeded": 1}
    assert hooked.service_counts().replied == 0


def test_a_client_next_to_those_is_answered(rig: Rig):
    for source in ("1.0.0.1", "126.0.0.1", "128.0.0.1", "223.255.255.254", CLIENT4):
        serve_none(rig, V4)
        asked = Packet(source, VIP4, seq=7)
        answered(rig, asked.ip, reset(asked, 0, 8, "RA"), "no-backend")
        rig.reset()
    for source in ("fe80::1", "fd00::1", "::1:0:1"):
        serve_none(rig, V6)
        asked = Packet(source, V6.vip, seq=7)
        answered(rig, asked.ip, reset(asked, 0, 8, "RA"), "no-backend")
        rig.reset()


# -- a connection that nobody knows


UNKNOWN = pytest.mark.parametrize(
    ("forward", "scheduler"),
    [(Forward.FULLNAT, s) for s in (Scheduler.MAGLEV, Scheduler.LEAST_LOAD)]
    + [
        (Forward.NAT, s)
        for s in (Scheduler.LEAST_LOAD, Scheduler.LEAST_CONN, Scheduler.ROUND_ROBIN)
    ],
)


@PLACES
@UNKNOWN
@pytest.mark.parametrize("flags", ["A", "PA", "SA"])
def test_what_goes_on_with_a_connection_that_nobody_knows_is_reset(
    hooked: Rig, at: Place, forward: Forward, scheduler: Scheduler, flags: str
):
    """A server could do no more; and it takes no slot, no port and no packet of a server."""
    serve(hooked, at, forward, scheduler=scheduler)
    asked = Packet(at.client, at.vip, flags=flags, payload=b"GET /", ack=0xDEADBEEF)
    answered(hooked, asked.ip, reset(asked, 0xDEADBEEF, 0, "R"), "no-flow")
    assert not hooked.tables.flows.any()
    assert not hooked.tables.nat_slots["owner"].any()
    assert hooked.counts("a").packets == 0


@UNKNOWN
def test_such_resets_are_limited_and_are_not_answers_to_resets(
    rig: Rig, forward: Forward, scheduler: Scheduler
):
    serve(rig, V4, forward, scheduler=scheduler)
    packet = Packet(flags="PA", payload=b"GET /")
    assert asks(rig, packet, 100) == [Verdict.TX] * 100
    spent(rig, 0.5, ALL_OF_IT)
    assert asks(rig, packet, 20) == [Verdict.DROP] * 20
    assert (rig.service_counts().replied, rig.service_counts().not_replied) == (100, 20)
    spent(rig, 0.0, 0.0)
    assert rig.verdict(Packet(flags="RA").frame()) == Verdict.DROP
    assert rig.service_counts().replied == 100


@pytest.mark.parametrize("scheduler", [Scheduler.MAGLEV, Scheduler.SOURCE])
def test_where_the_ring_tells_whose_a_connection_of_nat_is_it_goes_on(
    rig: Rig, scheduler: Scheduler
):
    """So it outlives a balancer that has told nobody of it."""
    members = [backend(name, f"10.1.2.{n}") for n, name in enumerate("abcd", 1)]
    web = service(*members, forward=Forward.NAT, scheduler=scheduler)
    clients = [f"198.51.100.{n}" for n in range(1, 30)]
    rig.serve(web)
    opened = {client: rig.backend_of(Packet(client).frame()) for client in clients}
    rig.reset()
    rig.serve(web)
    goes_on = {c: rig.backend_of(Packet(c, flags="PA", payload=b"x").frame()) for c in clients}
    assert goes_on == opened
    assert len(set(opened.values())) == 4


# -- how many


def asks(rig: Rig, packet: Packet, times: int) -> list[Verdict]:
    return [rig.verdict(packet.frame()) for _ in range(times)]


# A second is the whole budget. An hour is not earned back while a test runs, however slow the host.
ALL_OF_IT = 3600.0


def spent(rig: Rig, of_all: float, of_source: float) -> None:
    """As if so much of a second's answers had been sent at this moment."""
    now = time.monotonic_ns()
    rig.budgets[0] = now + int(of_all * 1e9)
    rig.budgets[1:] = now + int(of_source * 1e9)


@PLACES
@pytest.mark.parametrize("flags", ["S", "PA", None])
def test_a_source_is_refused_a_hundred_times_a_second(rig: Rig, at: Place, flags: str | None):
    """Nobody has us send more than that to whom he names as the sender."""
    serve_none(rig, at, flags)
    packet = Packet(at.client, at.vip, flags=flags)
    assert asks(rig, packet, 100) == [Verdict.TX] * 100
    spent(rig, 0.5, ALL_OF_IT)
    assert asks(rig, packet, 20) == [Verdict.DROP] * 20
    counts = rig.service_counts()
    assert (counts.replied, counts.not_replied) == (100, 20)
    assert rig.reasons() == {"no-backend": 120}


@PLACES
def test_the_end_of_a_ttl_is_told_a_hundred_times_a_second(rig: Rig, at: Place):
    serve(rig, at, Forward.NAT)
    packet = Packet(at.client, at.vip, ttl=1)
    assert asks(rig, packet, 1) == [Verdict.TX]
    spent(rig, 0.5, ALL_OF_IT)
    assert asks(rig, packet, 3) == [Verdict.DROP] * 3
    assert rig.service_counts().not_replied == 3


def test_each_source_has_its_own_and_all_together_ten_thousand_a_second(rig: Rig):
    serve_none(rig, V4)
    sources = [Packet(f"198.51.100.{n}") for n in range(1, 200)]
    spent(rig, 0.5, 0.5)
    held = rig.budgets.copy()
    assert {rig.verdict(packet.frame()) for packet in sources} == {Verdict.TX}
    assert int((rig.budgets[1:] > held[1:]).sum()) > 180, "of few another's hash is the same"
    assert rig.budgets[0] >= held[0] + len(sources) * 100_000
    paid_ns = int((rig.budgets[1:] - held[1:]).sum())
    assert paid_ns >= len(sources) * 10_000_000, "a hundredth of a second each"
    spent(rig, ALL_OF_IT, 0.0)
    held = rig.budgets.copy()
    assert {rig.verdict(packet.frame()) for packet in sources} == {Verdict.DROP}
    assert (rig.budgets == held).all(), "a source did not pay for all"


@PLACES
def test_neighbours_do_not_share_a_budget_whatever_the_secrets_are(at: Place):
    """This multiplier takes 256 neighbours to one place, or two, after two steps of the hash."""
    keys = replace(KEYS, mul1=0x9E37_79B9_7F40_0001)
    config = Config(instance_name("neighbours"), "lo", tables=SMALL)
    dataplane = load(config, all_features(), keys=keys)
    try:
        rig = Rig(dataplane)
        serve_none(rig, at)
        for n in range(1, 200):
            rig.send(
                Packet(f"198.51.100.{n}" if at is V4 else f"2001:db8:c:{n:x}::1", at.vip).frame()
            )
        assert np.count_nonzero(rig.budgets[1:]) > 180
    finally:
        dataplane.tables.close()
        pins.remove(dataplane.pins)


def test_an_ipv6_source_is_the_first_64_bits(rig: Rig):
    serve_none(rig, V6)
    net = "2001:db8:c:1:"
    for n in range(1, 30):
        rig.send(Packet(f"{net}:{n}", V6.vip).frame())
    assert np.count_nonzero(rig.budgets[1:]) == 1
    rig.send(Packet("2001:db8:c:2::1", V6.vip).frame())
    assert np.count_nonzero(rig.budgets[1:]) == 2


def test_what_was_not_used_does_not_gather(rig: Rig):
    """A second's worth at most, however long nobody was answered."""
    serve_none(rig, V4)
    rig.budgets[:] = 1
    before = time.monotonic_ns()
    rig.send(Packet().frame())
    now = time.monotonic_ns()
    used = rig.budgets[rig.budgets > 1]
    assert len(used) == 2
    assert ((before < used) & (used <= now + 10_000_000)).all()


@pytest.mark.parametrize("forward", ROUTED)
def test_that_a_packet_is_too_big_is_always_told(rig: Rig, forward: Forward):
    """Else whoever spends the answers of all takes the path's MTU away from everybody."""
    serve(rig, V4, forward, mtu=600)
    packet = Packet(flags="PA", payload=PAYLOAD)
    assert rig.verdict(Packet().frame()) == Verdict.TX
    spent(rig, ALL_OF_IT, ALL_OF_IT)
    assert asks(rig, packet, 3) == [Verdict.TX] * 3
    assert rig.reasons() == {"too-big": 3}
