"""Fragments: the first one has the ports, the others go after it."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from agent.dataplane import abi
from agent.model import DownFlows, Forward, Protocol
from tests.packet.frames import (
    BALANCER4,
    BALANCER6,
    BALANCER_MAC,
    CLIENT4,
    CLIENT6,
    ROUTER_MAC,
    VIP4,
    VIP6,
)
from tests.packet.harness import Rig, Verdict, backend, mac_of, service
from tests.packet.pauses import packet_sent, undisturbed
from tests.packet.pieces import (
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    decremented,
    extended,
    extension,
    fragments,
    framed,
    icmp,
    summed,
    wrapped,
)
from tests.packet.wires import Packet

SERVER4, SERVER6 = "10.1.2.3", "fd00:1::2:3"
FAMILIES = pytest.mark.parametrize(
    ("vip", "client", "server", "own"),
    [(VIP4, CLIENT4, SERVER4, BALANCER4), (VIP6, CLIENT6, SERVER6, BALANCER6)],
    ids=["v4", "v6"],
)
ENDS = pytest.mark.parametrize(
    ("vip", "client"), [(VIP4, CLIENT4), (VIP6, CLIENT6)], ids=["v4", "v6"]
)
TRANSPORTS = pytest.mark.parametrize("flags", ["PA", None], ids=["tcp", "udp"])
PAYLOAD = bytes(i * 7 & 255 for i in range(1999))
AGE_S = 30


def serve(rig: Rig, forward: Forward = Forward.DSR, server: str = SERVER4, vip: str = VIP4,
          flags: str | None = "PA", **more: object) -> None:  # fmt: skip
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    rig.serve(service(backend("a", server), vip=vip, forward=forward, protocol=protocol), **more)


def sent(rig: Rig, pieces: list[bytes]) -> list[bytes]:
    """The pieces as they leave; all of them must."""
    done = [rig.send(framed(piece)) for piece in pieces]
    assert [each.verdict for each in done] == [Verdict.TX] * len(pieces)
    return [each.data for each in done]


def pieces_of(client: str = CLIENT4, vip: str = VIP4, **fields: object) -> list[bytes]:
    return fragments(Packet(client, vip, payload=PAYLOAD, flags="PA", **fields).ip, 720)


def passes(rig: Rig, piece: bytes) -> bool:
    """Untouched."""
    done = rig.send(framed(piece))
    return (done.verdict, done.data) == (Verdict.PASS, framed(piece))


def sport_of(frame: bytes, at: int) -> int:
    return int.from_bytes(frame[at : at + 2])


@FAMILIES
@TRANSPORTS
@pytest.mark.parametrize("forward", Forward)
def test_all_fragments_go_one_way_to_the_byte(
    hooked: Rig, forward: Forward, vip, client, server, own, flags
):
    serve(hooked, forward, server, vip, flags)
    asked = Packet(client, vip, payload=PAYLOAD, flags=flags, ttl=9, tos=0xB9)
    pieces = fragments(asked.ip, 720)
    assert len(pieces) == 3
    syn = [replace(asked, payload=b"", flags="S").ip] * (flags is not None)
    out = sent(hooked, syn + pieces)[len(syn) :]
    if forward is Forward.DSR:
        wanted = pieces
    elif forward.is_tunnel:
        outer = 14 + (20 if server == SERVER4 else 40)
        ports = {sport_of(frame, outer) for frame in out}
        assert forward is Forward.IPIP or len(ports) == 1, "one path for all of them"
        wanted = [wrapped(piece, server, forward, tos=0xB9, sport=max(ports)) for piece in pieces]
    else:
        there = replace(asked, dst=server, ttl=8)
        if forward is Forward.FULLNAT:
            at = 14 + (20 if server == SERVER4 else 40 + 8)
            there = replace(there, src=own, sport=sport_of(out[0], at))
        wanted = fragments(there.ip, 720)
    mac = mac_of(hooked.address_of("a"))
    assert out == [framed(piece, mac, BALANCER_MAC) for piece in wanted]
    counts = hooked.counts("a")
    assert (counts.packets, counts.opened) == (len(syn) + 3, 1)
    assert counts.bytes == sum(map(len, syn + pieces))
    assert hooked.reasons() == {}


@FAMILIES
@TRANSPORTS
@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
def test_the_fragments_of_an_answer_find_back(
    hooked: Rig, forward: Forward, vip, client, server, own, flags
):
    serve(hooked, forward, server, vip, flags)
    asked = Packet(client, vip, flags=flags and "S")
    out = hooked.send(asked.frame()).data
    end = (client, asked.sport)
    if forward is Forward.FULLNAT:
        end = (own, sport_of(out, 14 + (20 if server == SERVER4 else 40)))
    answered = Packet(server, end[0], asked.dport, end[1], PAYLOAD, flags, ttl=3)
    wanted = replace(answered, src=vip, dst=client, dport=asked.sport, ttl=2)
    pieces = fragments(answered.ip, 720)
    assert sent(hooked, pieces) == [
        framed(piece, ROUTER_MAC, BALANCER_MAC) for piece in fragments(wanted.ip, 720)
    ]
    counts = hooked.counts("a")
    assert (counts.reply_packets, counts.reply_bytes) == (3, sum(map(len, pieces)))
    assert counts.packets == 1


def test_the_rest_of_an_answer_does_not_go_to_who_has_the_place_of_its_flow(rig: Rig):
    serve(rig, Forward.NAT)
    (client, port), *others = rig.clients_in_bucket(5, 1 + abi.FLOW_EMBRYONIC_WAYS)
    rig.send(Packet(str(client), sport=port).frame())
    answered = Packet(SERVER4, str(client), 80, port, bytes(90), "SA")
    first, *rest = fragments(answered.ip, 64)
    sent(rig, [first])
    for other, its_port in others:
        rig.send(Packet(str(other), sport=its_port).frame(src="02:00:00:00:00:66"))
    assert rig.state(str(client), port) == abi.FlowState.FREE
    assert all(passes(rig, piece) for piece in rest)
    assert rig.reasons() == {"not-vip": len(rest)}


@ENDS
def test_each_datagram_goes_after_its_own_first_fragment(rig: Rig, vip: str, client: str):
    rig.serve(service(*(backend(name) for name in "abcdef"), vip=vip))
    firsts, rest = {}, {}
    for ident in range(1, 60):
        asked = Packet(client, vip, sport=ident, payload=PAYLOAD, flags="PA")
        first, *rest[ident] = fragments(asked.ip, 720, ident)
        firsts[ident] = rig.backend_of(framed(first))
    assert len(set(firsts.values())) == 6
    for ident, pieces in rest.items():
        assert {rig.backend_of(framed(piece)) for piece in pieces} == {firsts[ident]}
    assert rig.reasons() == {}


@ENDS
def test_a_fragment_that_overtakes_the_first_passes_untouched(rig: Rig, vip: str, client: str):
    serve(rig, vip=vip)
    first, second, third = pieces_of(client, vip)
    assert passes(rig, third)
    sent(rig, [first, second])
    assert passes(rig, pieces_of(client, vip)[1]) is False
    assert rig.reasons() == {"fragment": 1}


@ENDS
def test_only_what_belongs_to_the_datagram_follows(rig: Rig, vip: str, client: str):
    serve(rig, vip=vip)
    asked = Packet(client, vip, payload=PAYLOAD, flags="PA")
    first, second, _ = fragments(asked.ip, 720, ident=7)
    sent(rig, [first])
    near = client[:-1] + "8"
    others = {
        "id": fragments(asked.ip, 720, ident=8)[1],
        "client": fragments(replace(asked, src=near).ip, 720, ident=7)[1],
    }
    if vip == VIP4:
        # RFC 791: ids are told apart by protocol; of IPv6 they are not (RFC 8200, 4.5)
        others["protocol"] = fragments(replace(asked, flags=None).ip, 720, ident=7)[1]
    for name, piece in others.items():
        assert passes(rig, piece), name
    assert rig.reasons() == {"fragment": len(others)}
    sent(rig, [second])


@ENDS
def test_fragments_for_others_pass_and_are_not_remembered(rig: Rig, vip: str, client: str):
    serve(rig, vip=vip)
    other = vip[:-2] + "99"
    assert all(passes(rig, piece) for piece in pieces_of(client, other))
    assert all(passes(rig, piece) for piece in pieces_of(client, vip, dport=81)[:1])
    assert rig.reasons() == {"not-vip": 4}
    assert not list(rig.tables.items("fragments"))


@ENDS
def test_fragmented_pings_and_other_protocols_are_the_hosts(rig: Rig, vip: str, client: str):
    serve(rig, vip=vip)
    ping = icmp(client, vip, 8 if vip == VIP4 else 128, 0, 1, PAYLOAD)
    gre = ping[:9] + b"\x2f" + ping[10:] if vip == VIP4 else ping[:6] + b"\x2f" + ping[7:]
    for packet in (ping, gre):
        pieces = fragments(packet, 720)
        assert all(passes(rig, piece) for piece in pieces)
    assert rig.reasons() == {"not-vip": 6}


@pytest.mark.parametrize("age_s", [AGE_S - 1, AGE_S + 1])
@undisturbed
def test_where_a_first_fragment_went_is_known_for_thirty_seconds(rig: Rig, age_s: int):
    serve(rig)
    first, second, _ = pieces_of()
    since_ns = time.monotonic_ns()
    sent(rig, [first])
    ((key, value),) = rig.tables.items("fragments")
    row = np.frombuffer(bytearray(value), dtype=abi.FRAGMENT)
    row["seen"] -= age_s * rig.clock.hz
    rig.tables.put("fragments", key, row.tobytes())
    done = rig.send(framed(second))
    packet_sent(rig, since_ns)
    if age_s < AGE_S:
        assert done.verdict == Verdict.TX
    else:
        assert (done.verdict, done.data) == (Verdict.PASS, framed(second)), "untouched"
        assert rig.reasons() == {"fragment": 1}
        sent(rig, [first, second])


def test_an_id_that_is_used_anew_leads_to_where_its_new_first_fragment_went(rig: Rig):
    rig.serve(service(*(backend(name) for name in "abcdef")))
    seen = set()
    for port in range(1000, 1040):
        asked = Packet(sport=port, payload=PAYLOAD, flags="PA")
        first, second, _ = fragments(asked.ip, 720, ident=9)
        there = rig.backend_of(framed(first))
        assert rig.backend_of(framed(second)) == there
        seen.add(there)
    assert len(seen) == 6


def test_a_first_fragment_that_went_nowhere_leaves_no_trace(rig: Rig):
    serve(rig, down=["a"])
    first, second, _ = pieces_of()
    assert rig.verdict(framed(first)) == Verdict.DROP
    assert passes(rig, second)
    assert rig.reasons() == {"no-backend": 1, "fragment": 1}


def test_fragments_do_not_go_to_a_backend_that_gave_up_its_flows(rig: Rig):
    web = service(backend("a"), down_flows=DownFlows.REROUTE)
    rig.serve(web)
    first, second, third = pieces_of()
    sent(rig, [first, second])
    rig.serve(web, down=["a"])
    assert rig.verdict(framed(third)) == Verdict.DROP
    assert rig.reasons() == {"no-backend": 1}


@pytest.mark.parametrize("forward", [f for f in Forward if f is not Forward.DSR])
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_later_fragment_at_the_end_of_its_ttl_is_dropped_without_a_word(
    hooked: Rig, forward: Forward, ttl: int
):
    serve(hooked, forward)
    first, second, _ = pieces_of(ttl=2)
    sent(hooked, [Packet().ip, first])
    for late in (second[:8] + bytes((ttl,)) + second[9:],):
        assert hooked.verdict(framed(summed(late))) == Verdict.DROP
    assert hooked.reasons() == {"ttl-exceeded": 1}
    assert hooked.service_counts().replied == 0


@pytest.mark.parametrize("forward", [Forward.IPIP, Forward.GUE])
def test_a_later_fragment_that_does_not_fit_is_dropped_without_a_word(
    hooked: Rig, forward: Forward
):
    serve(hooked, forward, mtu=720)
    asked = Packet(payload=PAYLOAD, flags="PA")
    first, second = fragments(asked.ip, 640)[0], fragments(asked.ip, 720)[1]
    sent(hooked, [first])
    assert hooked.verdict(framed(second)) == Verdict.DROP
    assert hooked.service_counts().drops["too-big"] == 1
    assert hooked.service_counts().replied == 0


@ENDS
def test_a_later_fragment_that_is_longer_than_its_frame_is_malformed(
    rig: Rig, vip: str, client: str
):
    serve(rig, vip=vip)
    first, second, _ = pieces_of(client, vip)
    sent(rig, [first])
    assert rig.verdict(framed(second)[:-1]) == Verdict.DROP
    assert rig.reasons() == {"malformed": 1}


@pytest.mark.parametrize("forward", Forward)
def test_fragments_with_extension_headers_behind_the_fragment_header_follow(
    hooked: Rig, forward: Forward
):
    """All fragments then name the extension header, and only the first one has it."""
    serve(hooked, forward, SERVER6, VIP6)
    asked = Packet(CLIENT6, VIP6, payload=PAYLOAD, flags="PA", ttl=9)
    pieces = fragments(extended(asked.ip, extension(DESTINATION, 16)), 720)
    _, *out = sent(hooked, [Packet(CLIENT6, VIP6).ip, *pieces])
    if forward is Forward.DSR:
        assert [frame[14:] for frame in out] == pieces
    elif forward is Forward.NAT:
        there = replace(asked, dst=SERVER6, ttl=8)
        wanted = fragments(extended(there.ip, extension(DESTINATION, 16)), 720)
        assert [frame[14:] for frame in out] == wanted
    elif forward is Forward.IPIP:
        assert [frame[14 + 40 :] for frame in out] == [decremented(piece) for piece in pieces]


def test_fragments_with_extension_headers_in_front_of_the_fragment_header_follow(rig: Rig):
    serve(rig, vip=VIP6)
    pieces = [extended(piece, extension(HOP_BY_HOP)) for piece in pieces_of(CLIENT6, VIP6)]
    assert [frame[14:] for frame in sent(rig, pieces)] == pieces
    assert rig.reasons() == {}


def test_a_fragment_that_is_the_whole_packet_is_none(rig: Rig):
    """RFC 6946: it stands for itself, whatever has its id."""
    serve(rig, vip=VIP6)
    (atomic,) = fragments(Packet(CLIENT6, VIP6).ip, 720)
    assert [frame[14:] for frame in sent(rig, [atomic])] == [atomic]
    assert not list(rig.tables.items("fragments"))


def test_a_fragment_header_that_is_none_does_not_hide_the_one_that_is(rig: Rig):
    serve(rig, vip=VIP6)
    whole = extended(Packet(CLIENT6, VIP6, payload=bytes(150)).ip, extension(FRAGMENT))
    pieces = fragments(whole, 64, ident=9)
    assert [frame[14:] for frame in sent(rig, pieces)] == pieces


@FAMILIES
@pytest.mark.parametrize("forward", Forward)
@pytest.mark.parametrize("rest", [1, 3, 7])
def test_the_last_fragment_may_have_a_few_bytes_alone(
    hooked: Rig, forward: Forward, rest: int, vip, client, server, own
):
    """Where nothing pads its frame."""
    serve(hooked, forward, server, vip, flags=None)
    asked = Packet(client, vip, payload=bytes(16 + rest), flags=None)
    last = fragments(asked.ip, 24)[-1]
    out = sent(hooked, fragments(asked.ip, 24))[-1]
    if forward.is_tunnel:
        sport = sport_of(out, 14 + (20 if server == SERVER4 else 40))
        last = wrapped(last, server, forward, sport=sport)
    elif forward is not Forward.DSR:
        source = own if forward is Forward.FULLNAT else client
        last = fragments(replace(asked, src=source, dst=server, ttl=63).ip, 24)[-1]
    assert out == framed(last, mac_of(hooked.address_of("a")), BALANCER_MAC)


@ENDS
def test_a_first_fragment_without_its_whole_tcp_header_is_malformed(
    rig: Rig, vip: str, client: str
):
    serve(rig, vip=vip)
    for size in (8, 16):
        tiny = fragments(Packet(client, vip, payload=PAYLOAD, flags="PA").ip, size)[0]
        assert rig.verdict(framed(tiny)) == Verdict.DROP
    assert rig.reasons() == {"malformed": 2}
    assert not rig.tables.flows.any()
    sent(rig, [fragments(Packet(client, vip, payload=PAYLOAD, flags="PA").ip, 24)[0]])


@ENDS
@pytest.mark.parametrize("forward", [Forward.DSR, Forward.NAT])
def test_the_first_fragment_of_a_datagram_may_be_its_header_alone(
    rig: Rig, vip: str, client: str, forward: Forward
):
    server = SERVER4 if vip == VIP4 else SERVER6
    serve(rig, forward, server, vip, None)
    asked = Packet(client, vip, payload=b"12345678" * 3, flags=None)
    there = replace(asked, dst=server, ttl=63) if forward is Forward.NAT else asked
    out = sent(rig, fragments(asked.ip, 8))
    assert [frame[14:] for frame in out] == fragments(there.ip, 8)
