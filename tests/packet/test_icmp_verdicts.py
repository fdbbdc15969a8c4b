"""Which ICMP errors are ours: about flows that we have, or know where to send."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from agent.model import AdminState, DownFlows, Forward, Scheduler
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pieces import (
    fragments,
    framed,
    icmp,
    quoted,
)
from tests.packet.places import (
    NATS,
    PLACES,
    V4,
    Place,
    answer_to,
    asked_of,
    error_of,
    passes,
    sent,
    serve,
)
from tests.packet.wires import Packet

# Not with maglev, where the packet tells; but in nat and fullnat nothing is forwarded unrecorded.
NO_TELLING = [
    (forward, scheduler)
    for forward in Forward
    for scheduler in Scheduler
    if forward in NATS or scheduler is not Scheduler.MAGLEV
]

# -- what passes


@PLACES
def test_pings_and_what_is_no_error_pass_untouched(rig: Rig, at: Place):
    serve(rig, at)
    asked = asked_of(at)
    sent(rig, asked.ip)
    kinds = set(range(256)) - ({3, 4, 11, 12} if at is V4 else {1, 2, 3, 4})
    for kind in kinds:
        packet = icmp(at.router, at.vip, kind, 0, 0, quoted(answer_to(asked).ip))
        assert passes(rig, packet), kind
    assert rig.reasons() == {"not-vip": len(kinds)}


@PLACES
@pytest.mark.parametrize("forward", Forward)
def test_errors_about_what_is_not_ours_pass_untouched(rig: Rig, at: Place, forward: Forward):
    serve(rig, at, forward)
    asked = asked_of(at)
    sent(rig, asked.ip)
    other = at.vip[:-2] + "99"
    answered = answer_to(asked)
    whole = answered.ip
    error = error_of(at.too_big)
    version_5 = b"\x55" + whole[1:]
    protocol = 9 if at is V4 else 6
    echo = whole[:protocol] + bytes((1,)) + whole[protocol + 1 :]
    for packet in (
        error(at.router, other, replace(answered, src=other)),  # another address
        error(at.router, at.vip, replace(answered, sport=81)),  # another port
        error(at.router, at.vip, replace(answered, flags=None)),  # another protocol
        error(at.router, at.vip, replace(answered, src=other)),  # not to whom it quotes
        error(at.router, at.own, answered),  # likewise
        icmp(at.router, at.vip, *at.too_big, quoted(version_5)),
        icmp(at.router, at.vip, *at.too_big, quoted(echo)),
        icmp(at.router, at.vip, *at.too_big, quoted(whole, 7)),
        icmp(at.router, at.vip, *at.too_big, whole[:19]),
        icmp(at.router, at.vip, *at.too_big, b""),
        icmp(at.router, at.vip, *at.too_big, quoted(fragments(whole, 64)[1], 16)),
    ):
        assert passes(rig, packet), packet.hex()
    assert rig.reasons() == {"not-vip": 11}


@PLACES
def test_errors_in_fragments_are_the_hosts(rig: Rig, at: Place):
    serve(rig, at)
    asked = asked_of(at)
    sent(rig, asked.ip)
    packet = icmp(at.router, at.vip, *at.too_big, quoted(answer_to(asked).ip, 548))
    assert all(passes(rig, piece) for piece in fragments(packet, 256))


@PLACES
@pytest.mark.parametrize("forward", NATS)
def test_errors_of_backends_about_flows_that_nobody_knows_are_the_hosts(
    rig: Rig, at: Place, forward: Forward
):
    serve(rig, at, forward)
    source = at.own if forward is Forward.FULLNAT else at.client
    seen = Packet(source, at.server, dport=8080, sport=10_300)
    assert passes(rig, error_of(at.unreachable)(at.server, source, seen))
    assert rig.reasons() == {"not-vip": 1}


# -- flows that are not recorded, or whose backend is gone


@PLACES
@pytest.mark.parametrize("forward", [f for f in Forward if f not in NATS])
def test_an_error_of_an_unknown_flow_goes_where_the_ring_says(
    rig: Rig, at: Place, forward: Forward
):
    members = [backend(name) for name in "abcdef"]
    rig.serve(service(*members, vip=at.vip, forward=forward))
    error = error_of(at.too_big)
    gone = set()
    for port in range(1000, 1040):
        asked = asked_of(at, sport=port)
        there = rig.backend_of(framed(error(at.router, at.vip, answer_to(asked))))
        assert not rig.tables.flows.any(), "it opens nothing"
        assert rig.backend_of(framed(asked.ip)) == there
        rig.tables.flows[:] = 0
        gone.add(there)
    assert len(gone) > 3
    assert rig.reasons() == {}


@PLACES
@pytest.mark.parametrize(("forward", "scheduler"), NO_TELLING)
def test_an_error_of_an_unknown_flow_is_dropped_where_the_packet_cannot_tell(
    rig: Rig, at: Place, forward: Forward, scheduler: Scheduler
):
    members = [backend(name, f"{at.server}{i}") for i, name in enumerate("abc")]
    rig.serve(service(*members, vip=at.vip, forward=forward, scheduler=scheduler))
    error = error_of(at.too_big)(at.router, at.vip, answer_to(asked_of(at)))
    assert rig.verdict(framed(error)) == Verdict.DROP
    assert rig.reasons() == {"no-flow": 1}
    assert rig.service_counts().drops["no-flow"] == 1
    assert not rig.tables.flows.any()
    there = rig.backend_of(framed(asked_of(at).ip))
    assert rig.backend_of(framed(error)) == there, "once it is recorded, it is known"


@PLACES
def test_an_error_follows_a_flow_to_a_backend_that_takes_no_new_ones(rig: Rig, at: Place):
    a, b = backend("a"), backend("b")
    rig.serve(service(a, b, vip=at.vip))
    asked = asked_of(at)
    first = rig.backend_of(framed(asked.ip))
    rig.serve(service(*(replace(m, admin=AdminState.DRAIN) if m.name == first else m
                        for m in (a, b)), vip=at.vip))  # fmt: skip
    error = error_of(at.too_big)(at.router, at.vip, answer_to(asked))
    assert rig.backend_of(framed(error)) == first


@PLACES
@pytest.mark.parametrize("forward", Forward)
def test_an_error_for_a_backend_that_gave_up_its_flows_is_dropped(
    rig: Rig, at: Place, forward: Forward
):
    web = service(backend("a", at.server), vip=at.vip, forward=forward,
                  down_flows=DownFlows.REROUTE)  # fmt: skip
    rig.serve(web)
    asked = asked_of(at)
    sent(rig, asked.ip)
    rig.serve(web, down=["a"])
    sent(rig, error_of(at.too_big)(at.router, at.vip, answer_to(asked)), Verdict.DROP)
    assert rig.reasons() == {"no-flow": 1}


@PLACES
def test_errors_of_a_range_and_of_a_prefix_follow(rig: Rig, at: Place):
    below = str(ip_address(at.vip) + 3)
    bits = 28 if at is V4 else 64
    network = str(ip_network(f"{at.vip}/{bits}", strict=False).network_address)
    rig.serve(
        service(backend("a"), vip=network, vip_bits=bits),
        service(backend("b"), name="range", vip=network, vip_bits=bits, port=8000, port_last=8009),
        service(backend("c"), name="any", vip=below, port=0),
    )
    error = error_of(at.too_big)
    for vip, port, name in ((at.vip, 80, "a"), (at.vip, 8005, "b"), (below, 999, "c")):
        asked = Packet(at.client, vip, dport=port)
        for _ in range(2):
            packet = error(at.router, vip, answer_to(asked))
            assert rig.backend_of(framed(packet)) == name
            rig.send(framed(asked.ip))
    assert rig.reasons() == {}


# -- errors about errors


@PLACES
@pytest.mark.parametrize("forward", [f for f in Forward if f is not Forward.DSR])
@pytest.mark.parametrize("ttl", [0, 1])
def test_an_error_at_the_end_of_its_ttl_is_dropped_without_a_word(
    hooked: Rig, at: Place, forward: Forward, ttl: int
):
    serve(hooked, at, forward)
    asked = asked_of(at)
    sent(hooked, asked.ip)
    packet = icmp(at.router, at.vip, *at.too_big, quoted(answer_to(asked).ip), ttl=ttl)
    sent(hooked, packet, Verdict.DROP)
    assert hooked.reasons() == {"ttl-exceeded": 1}
    assert hooked.service_counts().replied == 0


@PLACES
@pytest.mark.parametrize("forward", [Forward.IPIP, Forward.GUE])
def test_an_error_that_does_not_fit_is_dropped_without_a_word(
    hooked: Rig, at: Place, forward: Forward
):
    serve(hooked, at, forward, mtu=600)
    asked = asked_of(at)
    sent(hooked, asked.ip)
    packet = icmp(at.router, at.vip, *at.too_big, quoted(answer_to(asked).ip, 560))
    sent(hooked, packet, Verdict.DROP)
    assert hooked.reasons() == {"too-big": 1}
    assert hooked.service_counts().replied == 0


@PLACES
@pytest.mark.parametrize("forward", Forward)
def test_an_error_whose_quote_goes_beyond_its_packet_is_malformed(
    rig: Rig, at: Place, forward: Forward
):
    serve(rig, at, forward)
    asked = asked_of(at)
    sent(rig, asked.ip)
    packet = icmp(at.router, at.vip, *at.too_big, quoted(answer_to(asked).ip))
    length = 2 if at is V4 else 4
    short = (int.from_bytes(packet[length : length + 2]) - 1).to_bytes(2)
    sent(rig, packet[:length] + short + packet[length + 2 :], Verdict.DROP)
    assert rig.reasons() == {"malformed": 1}
