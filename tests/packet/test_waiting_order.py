"""Request bytes that wait, when a client's segments come late, twice, or in another order: what
is counted does not change, and the clock starts with the segment that was missing.
"""

from __future__ import annotations

import pytest

from agent.dataplane.abi import Talk
from agent.model import Forward
from tests.packet.harness import Rig
from tests.packet.pauses import undisturbed
from tests.packet.talks import ANSWER, LATE_MS, MODES, POST, Wire, opened
from tests.packet.tls import ANSWER as TLS_ANSWER
from tests.packet.tls import (
    CHANGE,
    DATA,
    FINISHED_13,
    FINISHED_13_384,
    HANDSHAKE,
    REQUEST,
    SERVER_FLIGHT,
    TICKETS,
    answered,
    hello,
    record,
)

LONG_HELLO = record(HANDSHAKE, 1551, version=1)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def swapped(wire: Wire, first: bytes, second: bytes) -> None:
    """Two pieces of the stream, the second one before the first."""
    start = wire.seq
    wire.seq += len(first)
    wire.ask(second)
    wire.client("A", first, seq=start)


# -- the first segment was overtaken


@MODES
@pytest.mark.parametrize("first", [b"\x17\x03\x03\x00", b"PRI ", b"\x5a\x5a\x5a\x5a"])
@undisturbed
def test_a_hello_whose_beginning_was_overtaken_is_a_handshake(hooked: Rig, forward, first: bytes):
    wire = opened(hooked, forward)
    swapped(wire, LONG_HELLO[:1448], first + LONG_HELLO[1452:])
    assert (wire.waiting, wire.talk, wire.answers) == (0, Talk.TLS_HANDSHAKE, 0)
    wire.gets(SERVER_FLIGHT)
    wire.ask(FINISHED_13).ask(REQUEST)
    assert (wire.waiting, wire.talk, wire.answers) == (len(REQUEST), Talk.TLS_FIRST, 0)


@MODES
def test_a_preface_that_was_overtaken_is_known(hooked: Rig, forward):
    wire = opened(hooked, forward)
    swapped(wire, PREFACE, b"\x5a" * 300)
    assert (wire.waiting, wire.talk) == (324, Talk.HTTP2_FIRST)


@MODES
def test_what_is_neither_waits_on_and_is_plain(hooked: Rig, forward):
    wire = opened(hooked, forward)
    swapped(wire, POST, b"\x16\x03\x01\x00" + bytes(96))
    wire.ask(b"PRI " + bytes(96))
    whole = len(POST) + 200
    assert (wire.waiting, wire.talk) == (whole, Talk.UNKNOWN), "whatever its other segments say"
    wire.client("A", b"x" * 100, seq=wire.seq - 300)
    assert wire.waiting == whole
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.talk, wire.answers) == (0, Talk.PLAIN, 1)


# -- TLS: a request before the Finished


@MODES
@pytest.mark.parametrize(
    "finished", [FINISHED_13, FINISHED_13_384, CHANGE + record(HANDSHAKE, 45)], ids=len
)
@pytest.mark.parametrize("first", [b"\x17\x03", b"\x5a\x5a"], ids=["record", "middle"])
@undisturbed
def test_a_request_may_overtake_the_finished(hooked: Rig, forward, finished: bytes, first: bytes):
    wire = hello(hooked, forward)
    swapped(wire, finished, first + REQUEST[2:])
    assert (wire.waiting, wire.talk) == (len(REQUEST), Talk.TLS_FIRST)
    wire.after(1).gets(TICKETS)
    assert (wire.waiting, wire.answers) == (len(REQUEST), 0)
    wire.after(LATE_MS).gets(TLS_ANSWER)
    assert (wire.waiting, wire.answers, wire.talk) == (0, 1, Talk.TLS)


@MODES
def test_what_is_missing_beyond_the_finished_is_of_the_request(hooked: Rig, forward):
    wire = hello(hooked, forward)
    swapped(wire, FINISHED_13_384 + REQUEST[:700], REQUEST[700:])
    assert wire.waiting == len(REQUEST)


@MODES
def test_a_farewell_that_overtakes_the_finished_is_no_request(hooked: Rig, forward):
    wire = hello(hooked, forward)
    swapped(wire, FINISHED_13_384, record(DATA, 24))
    assert wire.waiting == 0


@MODES
@undisturbed
def test_the_tickets_follow_a_finished_that_came_long_after_the_request(hooked: Rig, forward):
    wire = hello(hooked, forward)
    start = wire.seq
    wire.seq += len(FINISHED_13)
    wire.warm_set("request", 1)
    wire.ask(REQUEST)
    assert wire.talk is Talk.TLS_FIRST
    wire.after(LATE_MS).client("A", FINISHED_13, seq=start)
    wire.gets(TICKETS)
    assert (wire.waiting, wire.answers) == (len(REQUEST), 0)


@MODES
def test_a_hello_of_which_the_middle_is_missing_is_no_request(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(LONG_HELLO[:500], "A")
    swapped(wire, LONG_HELLO[500:1000], LONG_HELLO[1000:])
    assert (wire.waiting, wire.talk) == (0, Talk.TLS_HANDSHAKE)


# -- the end of a request before the rest of it


@MODES
@pytest.mark.parametrize("tail", [13, 40, 56])
def test_a_short_end_of_a_request_may_overtake_it(hooked: Rig, forward, tail: int):
    """By its own length it would be a control frame."""
    wire = answered(hooked, forward)
    swapped(wire, REQUEST, b"\x5a" * tail)
    assert wire.waiting == len(REQUEST) + tail


@MODES
def test_so_may_control_frames_that_follow_it(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(PREFACE)
    window = bytes.fromhex("000004 08 00 00000000 00010000")
    swapped(wire, b"\x5a" * 300, window)
    assert (wire.waiting, wire.talk) == (300 + len(window), Talk.HTTP2_FIRST)


# -- the clock


@MODES
@undisturbed
def test_the_clock_starts_with_the_segment_that_was_missing(hooked: Rig, forward):
    wire = opened(hooked, forward)
    start = wire.seq
    wire.ask(POST, "A").ask(POST).after(5000)
    wire.client("A", POST, seq=start)
    wire.gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)
    assert hooked.latency("a")["first_byte_us"] < 1_000_000


@MODES
@pytest.mark.parametrize("payload", [b"", b"\0"])
def test_a_keep_alive_probe_does_not_start_it(hooked: Rig, forward, payload: bytes):
    wire = opened(hooked, forward).ask(POST).after(5000)
    wire.client("A", payload, seq=wire.seq - 1)
    wire.gets(ANSWER)
    assert hooked.latency("a")["first_byte_us"] >= 5_000_000


@MODES
def test_what_comes_again_after_the_answer_starts_nothing(hooked: Rig, forward):
    wire = opened(hooked, forward)
    start = wire.seq
    wire.ask(POST).after(LATE_MS).gets(ANSWER)
    wire.client("PA", POST, seq=start)
    wire.gets(b"y" * 1000)
    assert (wire.waiting, wire.answers) == (0, 1)


# -- handshakes that look like others


@MODES
@pytest.mark.parametrize("length", [45, 101, 512], ids=["tls12", "tls12-cbc", "second-hello"])
def test_a_handshake_record_behind_a_change_of_ciphers_is_no_request(
    hooked: Rig, forward, length: int
):
    """TLS 1.2 that is resumed; TLS 1.3, the server wants another key share (RFC 8446, 4.1.4)."""
    wire = hello(hooked, forward).ask(CHANGE + record(HANDSHAKE, length))
    assert (wire.waiting, wire.talk) == (0, Talk.TLS_HANDSHAKE)
    wire.gets(SERVER_FLIGHT)
    wire.ask(FINISHED_13).ask(REQUEST)
    assert (wire.waiting, wire.answers) == (len(REQUEST), 0)


@pytest.mark.parametrize("finished", [FINISHED_13, FINISHED_13_384], ids=len)
def test_a_request_behind_the_finished_counts_to_the_byte(hooked: Rig, finished: bytes):
    wire = hello(hooked, Forward.DSR).ask(finished + REQUEST)
    assert wire.waiting == len(REQUEST)
