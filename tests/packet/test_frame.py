"""Step 6: the frame around the packet, VLAN tags included, to the byte."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.model import Forward, Protocol
from tests.packet.frames import BALANCER_MAC, ROUTER_MAC
from tests.packet.harness import Rig, TcRig, Verdict, backend, mac_of, service
from tests.packet.pieces import fragments, framed, icmp, quoted, wrapped
from tests.packet.places import PLACES, Place, answer_to, sport_of
from tests.packet.wires import Packet, Tags

Q, AD = 0x8100, 0x88A8  # IEEE 802.1Q, IEEE 802.1ad
# Priority, drop eligibility and id of what comes in; of what goes out the id alone.
COMING: dict[str, Tags] = {
    "untagged": (),
    "tagged": ((Q, 0xF005),),
    "priority": ((Q, 0xE000),),
    "service": ((AD, 0x2007),),
    "QinQ": ((AD, 0x2007), (Q, 0x0064)),
    "two-of-802.1Q": ((Q, 7), (Q, 100)),
}
GOING: dict[str, Tags] = {
    "untagged": (),
    "tagged": ((Q, 9),),
    "service": ((AD, 10),),
    "QinQ": ((AD, 0xFFE), (Q, 1)),
}
coming = pytest.mark.parametrize("come", COMING.values(), ids=COMING)
going = pytest.mark.parametrize("go", GOING.values(), ids=GOING)


def serve(rig: Rig, at: Place, forward: Forward, go: Tags, flags: str | None = "S",
          **more: object) -> None:  # fmt: skip
    protocol = Protocol.UDP if flags is None else Protocol.TCP
    web = service(backend("a", at.server), vip=at.vip, forward=forward, protocol=protocol)
    rig.serve(web, vlans={"a": go}, **more)


def to_backend(rig: Rig, packet: bytes, go: Tags) -> bytes:
    return framed(packet, mac_of(rig.address_of("a")), BALANCER_MAC, go)


def expected(at: Place, forward: Forward, asked: Packet, out: bytes, go: Tags) -> bytes:
    """The IP packet for the backend; GUE's and fullnat's port as it is in ``out``."""
    shifted = out[4 * len(go) :]
    if forward is Forward.DSR:
        return asked.ip
    if forward.is_tunnel:
        sport = sport_of(shifted, at) if forward is Forward.GUE else 0
        return wrapped(asked.ip, at.server, forward, sport=sport, summed=":" in at.server)
    there = replace(asked, dst=at.server, ttl=asked.ttl - 1)
    if forward is Forward.FULLNAT:
        there = replace(there, src=at.own, sport=sport_of(shifted, at))
    return there.ip


@pytest.mark.pairs
@PLACES
@coming
@going
@pytest.mark.parametrize("forward", Forward)
def test_tags_are_added_swapped_and_taken_off(
    hooked: Rig, at: Place, come: Tags, go: Tags, forward: Forward
):
    serve(hooked, at, forward, go)
    if isinstance(hooked, TcRig):
        go = go[1:]  # the outer tag is not in the frame
    new = Packet(at.client, at.vip)
    goes_on = replace(new, payload=b"hello", flags="PA")
    for asked in (new, goes_on):
        done = hooked.send(asked.frame(tags=come))
        assert done.verdict == Verdict.TX
        assert done.data == to_backend(hooked, expected(at, forward, asked, done.data, go), go)
    counts = hooked.counts("a")
    assert (counts.packets, counts.bytes) == (2, len(new.ip + goes_on.ip)), "tags are not counted"


@PLACES
@coming
@going
def test_a_tag_does_not_change_whose_packet_it_is(rig: Rig, at: Place, come: Tags, go: Tags):
    """A flow is known by its addresses and ports, whatever segment it comes from."""
    members = [backend(name) for name in "abcdef"]
    rig.serve(service(*members, vip=at.vip), vlans={"a": go, "b": go})
    for port in range(1000, 1020):
        asked = Packet(at.client, at.vip, sport=port)
        there = rig.backend_of(asked.frame())
        assert rig.backend_of(replace(asked, flags="A").frame(tags=come)) == there
    assert sum(rig.counts(name).opened for name in "abcdef") == 20


@PLACES
@coming
def test_what_is_not_ours_keeps_its_tags(rig: Rig, at: Place, come: Tags):
    serve(rig, at, Forward.IPIP, ((Q, 9),))
    for packet in (
        Packet(at.client, at.vip, dport=81).ip,
        icmp(at.client, at.vip, 8 if "." in at.vip else 128, 0, 1, b"ping"),
    ):
        done = rig.send(framed(packet, tags=come))
        assert (done.verdict, done.data) == (Verdict.PASS, framed(packet, tags=come))
    assert rig.reasons() == {"not-vip": 2}


@pytest.mark.parametrize(
    "kind", [0x0806, 0x88CC, 0x9100, 0x8847, 0x88E5, 0x0000], ids=lambda kind: f"{kind:#06x}"
)
@coming
def test_tagged_frames_without_ip_pass_untouched(rig: Rig, come: Tags, kind: int):
    frame = Packet().frame(tags=come)
    at = 12 + 4 * len(come)
    frame = frame[:at] + kind.to_bytes(2) + frame[at + 2 :]
    done = rig.send(frame)
    assert (done.verdict, done.data) == (Verdict.PASS, frame)
    assert rig.reasons() == {"not-ip": 1}


def test_three_tags_are_more_than_we_read(rig: Rig):
    rig.serve(service(backend("a")))
    frame = Packet().frame(tags=((AD, 1), (Q, 2), (Q, 3)))
    done = rig.send(frame)
    assert (done.verdict, done.data) == (Verdict.PASS, frame)
    assert rig.reasons() == {"not-ip": 1}


@PLACES
@pytest.mark.parametrize("come", [COMING["tagged"], COMING["QinQ"]], ids=["tagged", "QinQ"])
def test_no_cut_of_a_tagged_packet_is_forwarded(rig: Rig, at: Place, come: Tags):
    serve(rig, at, Forward.DSR, ())
    frame = Packet(at.client, at.vip, payload=b"0123456789").frame(tags=come)
    for length in range(14, len(frame)):
        assert rig.verdict(frame[:length]) != Verdict.TX
    assert rig.verdict(frame) == Verdict.TX


@PLACES
@coming
@going
def test_fragments_get_the_same_tags(rig: Rig, at: Place, come: Tags, go: Tags):
    serve(rig, at, Forward.DSR, go)
    asked = Packet(at.client, at.vip, payload=bytes(900), flags="PA")
    for piece in fragments(asked.ip, 320):
        done = rig.send(framed(piece, tags=come))
        assert (done.verdict, done.data) == (Verdict.TX, to_backend(rig, piece, go))


@PLACES
@coming
@going
def test_icmp_errors_get_the_same_tags(rig: Rig, at: Place, come: Tags, go: Tags):
    serve(rig, at, Forward.DSR, go)
    asked = Packet(at.client, at.vip)
    error = icmp(at.router, at.vip, *at.too_big, quoted(answer_to(asked).ip))
    done = rig.send(framed(error, tags=come))
    assert (done.verdict, done.data) == (Verdict.TX, to_backend(rig, error, go))


@pytest.mark.pairs
@PLACES
@coming
@going
@pytest.mark.parametrize("flags", ["A", None], ids=["tcp", "udp"])
@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
def test_answers_go_back_with_the_tags_of_the_question(
    rig: Rig, at: Place, come: Tags, go: Tags, flags, forward: Forward
):
    serve(rig, at, forward, go, flags)
    asked = Packet(at.client, at.vip, flags=flags)
    out = rig.send(replace(asked, flags=flags and "S").frame(tags=come)).data
    end, port = at.client, asked.sport
    if forward is Forward.FULLNAT:
        end, port = at.own, sport_of(out[4 * len(go) :], at)
    answered = Packet(at.server, end, asked.dport, port, b"answer", flags, ttl=33)
    back = replace(answered, src=at.vip, dst=at.client, dport=asked.sport, ttl=32)
    for piece, wanted in zip(
        (answered.ip, *fragments(answered.ip, 8 if flags is None else 24)),
        (back.ip, *fragments(back.ip, 8 if flags is None else 24)),
        strict=True,
    ):
        done = rig.send(framed(piece, tags=go))
        assert done.verdict == Verdict.TX
        assert done.data == framed(wanted, ROUTER_MAC, BALANCER_MAC, come)


@PLACES
@pytest.mark.parametrize("forward", Forward)
def test_tags_are_of_a_backend_and_change_with_it(rig: Rig, at: Place, forward: Forward):
    asked = Packet(at.client, at.vip)
    for go in GOING.values():
        serve(rig, at, forward, go)
        done = rig.send(asked.frame(tags=((Q, 5),)))
        assert done.data[: 14 + 4 * len(go)] == to_backend(rig, asked.ip, go)[: 14 + 4 * len(go)]
    assert rig.counts("a").opened == 1, "the flow stays"


@PLACES
def test_a_tag_goes_out_by_another_interface_too(rig: Rig, at: Place):
    serve(rig, at, Forward.DSR, GOING["tagged"], ifindexes={"a": 4711})
    asked = Packet(at.client, at.vip)
    done = rig.send(asked.frame())
    assert done.verdict == Verdict.REDIRECT
    assert done.data == to_backend(rig, asked.ip, GOING["tagged"])
