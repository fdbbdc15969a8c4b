"""ICMP errors go where the flow is that they are about, and mean there what they meant here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.dataplane.abi import FlowState
from agent.model import Forward
from tests.packet.frames import BALANCER_MAC, ROUTER_MAC
from tests.packet.harness import Rig
from tests.packet.pieces import (
    DESTINATION,
    decremented,
    extended,
    extension,
    framed,
    summed,
    wrapped,
)
from tests.packet.places import (
    MTU,
    NATS,
    PLACES,
    TRANSPORTS,
    V4,
    V6,
    Place,
    answer_to,
    asked_of,
    error_of,
    sent,
    serve,
    sport_of,
    to_backend,
)
from tests.packet.wires import Packet, cancelling

# Type, code and second word: all errors but the redirect, which is for a host's own routes.
ERRORS4 = [*((3, code, MTU if code == 4 else 0) for code in range(16)), (4, 0, 0), (11, 0, 0),
           (11, 1, 0), (12, 0, 20 << 24)]  # fmt: skip
ERRORS6 = [*((1, code, 0) for code in range(8)), (2, 0, MTU), (3, 0, 0), (3, 1, 0), (4, 0, 40),
           (4, 1, 6), (4, 2, 42)]  # fmt: skip


def expected(
    at: Place, forward: Forward, out: bytes, error: Callable[[str, str, Packet], bytes],
    answered: Packet, source: str, port: int,
) -> bytes:  # fmt: skip
    """The error as the backend must get it; ``port``: that it answers to."""
    if forward is Forward.DSR:
        return error(source, at.vip, answered)
    if forward.is_tunnel:
        sport = sport_of(out, at) if forward is Forward.GUE else 0
        return wrapped(error(source, at.vip, answered), at.server, forward, sport=sport,
                       summed=at is V6)  # fmt: skip
    own = replace(answered, src=at.server, sport=8080)
    if forward is Forward.FULLNAT:
        own, source = replace(own, dst=at.own, dport=port), at.own
    return decremented(error(source, at.server, own))


@pytest.mark.pairs
@PLACES
@TRANSPORTS
@pytest.mark.parametrize("forward", Forward)
@pytest.mark.parametrize("transport", [8, 12, 20, 548], ids=lambda n: f"{n}-bytes")
@pytest.mark.parametrize("of", ["router", "client"])
def test_an_error_about_an_answer_reaches_its_backend_to_the_byte(
    hooked: Rig, at: Place, forward: Forward, flags, transport: int, of: str
):
    serve(hooked, at, forward, flags)
    asked = asked_of(at, flags)
    there = sent(hooked, asked.ip)
    kind = at.too_big if of == "router" else at.unreachable
    error, source = error_of(kind, transport), getattr(at, of)
    answered = answer_to(asked)
    out = sent(hooked, error(source, at.vip, answered))
    port = sport_of(there, at)
    wanted = expected(at, forward, out, error, answered, source, port)
    assert out == to_backend(hooked, wanted)
    assert hooked.reasons() == {}
    assert hooked.counts("a").packets == 1, "it is none of the client's"
    assert hooked.state(at.client) == FlowState.EMBRYONIC, "and tells nothing about the flow"


@PLACES
@pytest.mark.parametrize("forward", Forward)
def test_errors_of_every_type_and_code_follow(rig: Rig, at: Place, forward: Forward):
    serve(rig, at, forward)
    asked = asked_of(at)
    port = sport_of(sent(rig, asked.ip), at)
    for kind in ERRORS4 if at is V4 else ERRORS6:
        error, answered = error_of(kind), answer_to(asked)
        out = sent(rig, error(at.router, at.vip, answered))
        wanted = expected(at, forward, out, error, answered, at.router, port)
        assert out == to_backend(rig, wanted), kind


@pytest.mark.pairs
@PLACES
@TRANSPORTS
@pytest.mark.parametrize("forward", NATS)
@pytest.mark.parametrize("transport", [8, 12, 20, 548], ids=lambda n: f"{n}-bytes")
@pytest.mark.parametrize("of", ["server", "router"])
def test_an_error_about_a_question_reaches_its_client_to_the_byte(
    hooked: Rig, at: Place, forward: Forward, flags, transport: int, of: str
):
    serve(hooked, at, forward, flags)
    asked = asked_of(at, flags, payload=bytes(700))
    port = sport_of(sent(hooked, asked.ip), at)
    seen = replace(asked, dst=at.server, dport=8080, ttl=60)
    if forward is Forward.FULLNAT:
        seen = replace(seen, src=at.own, sport=port)
    kind = at.too_big if of == "router" else at.unreachable
    error = error_of(kind, transport)
    out = sent(hooked, error(getattr(at, of), seen.src, seen))
    # A router between us is shown as itself, the server as what the client knows it for.
    source = at.vip if of == "server" else at.router
    wanted = decremented(error(source, at.client, replace(asked, ttl=60)))
    assert out == framed(wanted, ROUTER_MAC, BALANCER_MAC)
    assert hooked.reasons() == {}
    assert hooked.counts("a").reply_packets == 0


@PLACES
@pytest.mark.parametrize("forward", NATS)
def test_errors_of_every_type_and_code_find_back(rig: Rig, at: Place, forward: Forward):
    serve(rig, at, forward)
    asked = asked_of(at)
    port = sport_of(sent(rig, asked.ip), at)
    seen = replace(asked, dst=at.server, dport=8080)
    if forward is Forward.FULLNAT:
        seen = replace(seen, src=at.own, sport=port)
    for kind in ERRORS4 if at is V4 else ERRORS6:
        error = error_of(kind)
        out = sent(rig, error(at.router, seen.src, seen))
        wanted = decremented(error(at.router, at.client, asked))
        assert out == framed(wanted, ROUTER_MAC, BALANCER_MAC), kind


@pytest.mark.parametrize("at", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("forward", NATS)
def test_a_quoted_datagram_without_checksum_keeps_none(hooked: Rig, at: Place, forward: Forward):
    serve(hooked, at, forward, None)
    asked = asked_of(at, None)
    port = sport_of(sent(hooked, asked.ip), at)
    answered = answer_to(asked, unsummed=True)
    error = error_of(at.too_big)
    out = sent(hooked, error(at.router, at.vip, answered))
    assert out[14:] == expected(at, forward, out, error, answered, at.router, port)


@PLACES
@pytest.mark.parametrize("forward", NATS)
def test_a_quoted_checksum_that_was_zero_is_written_as_its_sender_wrote_it(
    hooked: Rig, at: Place, forward: Forward
):
    """RFC 768: as ones; zeros would say that there is none."""
    serve(hooked, at, forward, None)
    asked = asked_of(at, None)
    asked = replace(asked, payload=cancelling(asked))
    assert asked.l4[6:8] == b"\xff\xff"
    seen = replace(asked, dst=at.server, dport=8080, ttl=60)
    port = sport_of(sent(hooked, asked.ip), at)
    if forward is Forward.FULLNAT:
        seen = replace(seen, src=at.own, sport=port)
    error = error_of(at.too_big)
    out = sent(hooked, error(at.router, seen.src, seen))
    wanted = decremented(error(at.router, at.client, replace(asked, ttl=60)))
    assert out == framed(wanted, ROUTER_MAC, BALANCER_MAC)


@pytest.mark.parametrize("forward", Forward)
def test_options_in_the_quoted_header_are_stepped_over(rig: Rig, forward: Forward):
    serve(rig, V4, forward)
    asked = asked_of(V4)
    port = sport_of(sent(rig, asked.ip), V4)
    error = error_of(V4.too_big)
    for words in range(1, 11):
        answered = answer_to(asked, ip_options=b"\x01" * 4 * words)
        out = sent(rig, error(V4.router, V4.vip, answered))
        assert out[14:] == expected(V4, forward, out, error, answered, V4.router, port)


@pytest.mark.parametrize("forward", NATS)
def test_options_and_extension_headers_in_front_of_the_error_stay(rig: Rig, forward: Forward):
    for at in (V4, V6):
        serve(rig, at, forward)
        asked = asked_of(at)
        port = sport_of(sent(rig, asked.ip), at)
        error, answered = error_of(at.too_big), answer_to(asked)
        plain = error(at.router, at.vip, answered)
        wanted = expected(at, forward, b"", error, answered, at.router, port)
        out = sent(rig, lengthened(plain))[14:]
        assert out == lengthened(wanted)
        rig.reset()


def lengthened(packet: bytes) -> bytes:
    """With eight bytes of options, or an extension header."""
    if packet[0] >> 4 == 6:
        return extended(packet, extension(DESTINATION))
    length = (int.from_bytes(packet[2:4]) + 8).to_bytes(2)
    return summed(b"\x47" + packet[1:2] + length + packet[4:20] + b"\x01" * 8 + packet[20:])


@pytest.mark.parametrize("forward", NATS)
def test_an_error_with_a_wrong_checksum_stays_wrong(rig: Rig, forward: Forward):
    serve(rig, V4, forward)
    asked = asked_of(V4)
    port = sport_of(sent(rig, asked.ip), V4)
    error, answered = error_of(V4.too_big), answer_to(asked)
    right = error(V4.router, V4.vip, answered)
    wrong = right[:20] + bytes((right[20] ^ 8,)) + right[21:]
    out = sent(rig, wrong)[14:]
    wanted = expected(V4, forward, b"", error, answered, V4.router, port)
    assert out == wanted[:20] + bytes((wanted[20] ^ 8,)) + wanted[21:]
