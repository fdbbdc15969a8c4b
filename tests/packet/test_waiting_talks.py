"""Request bytes that wait, under TLS and over HTTP/2: what is handshake, control and head, with
the sizes that OpenSSL, curl, nginx and gRPC send.
"""

from __future__ import annotations

import pytest

from agent.dataplane.abi import FlowState, Talk
from agent.model import Forward
from tests.packet.harness import Rig
from tests.packet.pauses import undisturbed
from tests.packet.talks import LATE_MS, MODES, Wire, delayed_ms, opened
from tests.packet.tls import (
    ALERT,
    ANSWER,
    CHANGE,
    CHANGE_CIPHER,
    DATA,
    FINISHED_12,
    FINISHED_13,
    FINISHED_13_384,
    HANDSHAKE,
    REQUEST,
    SERVER_FLIGHT,
    TICKETS,
    answered,
    hello,
    record,
    shaken,
)

# -- TLS: the client's handshake


@MODES
@pytest.mark.parametrize("finished", [FINISHED_13, FINISHED_13_384], ids=["sha256", "sha384"])
def test_a_tls_13_handshake_is_no_request(hooked: Rig, forward, finished: bytes):
    wire = hello(hooked, forward).ask(finished)
    assert (wire.waiting, wire.talk) == (0, Talk.TLS_FIRST)
    wire.ask(REQUEST)
    assert wire.waiting == len(REQUEST)


@MODES
@pytest.mark.parametrize("length", [58, 74])
@undisturbed
def test_a_finished_without_a_change_of_ciphers_is_no_request(hooked: Rig, forward, length: int):
    wire = hello(hooked, forward).ask(record(DATA, length))
    assert wire.waiting == 0
    wire.ask(REQUEST)
    assert (wire.waiting, wire.talk) == (len(REQUEST), Talk.TLS_FIRST)


@MODES
def test_a_change_of_ciphers_alone_is_no_request(hooked: Rig, forward):
    wire = hello(hooked, forward).ask(CHANGE)
    assert (wire.waiting, wire.talk) == (0, Talk.TLS_HANDSHAKE)
    wire.ask(record(DATA, 58)).ask(REQUEST)
    assert wire.waiting == len(REQUEST)


@MODES
@undisturbed
def test_a_tls_12_handshake_is_no_request(hooked: Rig, forward):
    wire = hello(hooked, forward).ask(FINISHED_12)
    assert wire.waiting == 0
    wire.gets(CHANGE + record(HANDSHAKE, 45))
    wire.ask(REQUEST)
    assert (wire.waiting, wire.talk) == (len(REQUEST), Talk.TLS_FIRST)


@MODES
@pytest.mark.parametrize("first", [b"\x17", b"\x14", b"\x16\x03", b"P", b"\x17\x03\x09"])
def test_a_long_hello_goes_on_in_a_segment_that_begins_with_anything(
    hooked: Rig, forward, first: bytes
):
    """With a post-quantum key share it has 1,551 bytes."""
    wire = opened(hooked, forward)
    whole = record(HANDSHAKE, 1551, version=1)
    wire.ask(whole[:1448], "A").ask(first + whole[1448 + len(first) :])
    assert (wire.waiting, wire.talk) == (0, Talk.TLS_HANDSHAKE)
    wire.gets(SERVER_FLIGHT)
    wire.ask(FINISHED_13).ask(REQUEST)
    assert wire.waiting == len(REQUEST)


@MODES
@undisturbed
def test_a_request_in_the_segment_of_the_finished_is_one(hooked: Rig, forward):
    wire = hello(hooked, forward).ask(FINISHED_13_384 + REQUEST)
    assert (wire.waiting, wire.talk) == (len(REQUEST), Talk.TLS_FIRST)


@MODES
def test_a_finished_that_comes_again_with_more_takes_nothing_from_nothing(hooked: Rig, forward):
    """Only ten bytes are new: no number may go below zero."""
    wire = hello(hooked, forward)
    start = wire.seq
    wire.client("A", b"\x00" * 190, seq=start)
    assert wire.waiting == 0
    wire.client("PA", FINISHED_13 + b"\xa5" * 136, seq=start)
    assert wire.waiting <= 10


@MODES
def test_a_request_whose_first_segment_was_overtaken_is_counted(hooked: Rig, forward):
    """After the Finished every byte counts, whatever a segment begins with."""
    wire = shaken(hooked, forward)
    start = wire.seq
    wire.client("A", b"\x9f" * 700, seq=start + 700)
    wire.client("A", REQUEST[:700], seq=start)
    assert wire.waiting == len(REQUEST)


@MODES
def test_the_middle_of_a_record_is_counted_whatever_its_bytes_are(hooked: Rig, forward):
    wire = shaken(hooked, forward)
    body = 0
    for first in (DATA, ALERT, HANDSHAKE, CHANGE_CIPHER, 0x00):
        wire.ask(bytes([first, 3, 3]) + b"\x5a" * 1445, "A")
        body += 1448
        assert wire.waiting == body


# -- TLS: what is no request


@MODES
@pytest.mark.parametrize(
    "control",
    [record(DATA, 24), record(ALERT, 31), record(DATA, 31), record(DATA, 35), record(DATA, 39),
     record(DATA, 48), record(DATA, 55), record(DATA, 56)],
    ids=len,
)  # fmt: skip
def test_close_notify_and_control_frames_are_no_request(hooked: Rig, forward, control: bytes):
    wire = answered(hooked, forward).ask(control)
    assert wire.waiting == 0
    wire.ask(REQUEST)
    clock = hooked.tables.flows_warm["request"][wire.index]
    wire.ask(control)
    assert wire.waiting == len(REQUEST)
    assert hooked.tables.flows_warm["request"][wire.index] == clock, "nor does it move the clock"


@MODES
def test_the_smallest_record_that_may_hold_a_request_counts(hooked: Rig, forward):
    assert answered(hooked, forward).ask(record(DATA, 57)).waiting == 57


@MODES
def test_a_tls_connection_that_is_closed_in_order_leaves_nothing(hooked: Rig, forward):
    wire = answered(hooked, forward).ask(record(DATA, 24))
    wire.client("FA")
    assert (wire.waiting, wire.state) == (0, FlowState.CLOSING)


# -- TLS: what is no answer


@MODES
@undisturbed
def test_session_tickets_are_no_answer(hooked: Rig, forward):
    wire = shaken(hooked, forward).ask(REQUEST)
    wire.after(2).gets(TICKETS)
    assert (wire.waiting, wire.answers) == (len(REQUEST), 0)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers, wire.talk) == (0, 1, Talk.TLS)


@MODES
def test_tickets_that_came_before_the_request_are_behind_it(hooked: Rig, forward):
    wire = shaken(hooked, forward)
    wire.gets(TICKETS)
    wire.ask(REQUEST)
    wire.client("A")
    assert wire.waiting == len(REQUEST)
    wire.after(LATE_MS).gets(ANSWER)
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
@pytest.mark.parametrize(
    ("size", "ms", "is_answer"),
    [(2048, 40, False), (2048, 60, True), (2049, 1, True), (128, 95, False), (128, 115, True)],
)
@undisturbed
def test_size_and_time_tell_a_ticket_from_an_answer(hooked: Rig, forward, size, ms, is_answer):
    wire = shaken(hooked, forward).ask(REQUEST)
    wire.after(ms + delayed_ms(forward, size)).gets(record(DATA, size))
    assert wire.waiting == (0 if is_answer else len(REQUEST))


@MODES
def test_a_first_request_long_after_the_handshake_meets_no_tickets(hooked: Rig, forward):
    wire = shaken(hooked, forward)
    wire.gets(TICKETS)
    wire.after(LATE_MS).ask(REQUEST)
    assert wire.talk is Talk.TLS
    wire.after(1).gets(record(DATA, 600))
    assert (wire.waiting, wire.answers) == (0, 1)


@MODES
@pytest.mark.parametrize(
    ("size", "ms", "is_answer"), [(512, 40, False), (512, 60, True), (513, 1, True)]
)
@undisturbed
def test_the_head_of_a_later_answer_is_small_and_early(hooked: Rig, forward, size, ms, is_answer):
    wire = answered(hooked, forward).ask(REQUEST)
    wire.after(ms + delayed_ms(forward, size)).gets(record(DATA, size))
    assert (wire.waiting, wire.answers) == ((0, 2) if is_answer else (len(REQUEST), 1))


@MODES
@undisturbed
def test_records_that_are_no_answer_add_up(hooked: Rig, forward):
    wire = answered(hooked, forward).ask(REQUEST)
    for size in (171, 35, 39):
        wire.after(1).gets(record(DATA, size))
        assert wire.waiting == len(REQUEST)
    wire.after(1).gets(record(DATA, 300))
    assert (wire.waiting, wire.answers) == (0, 2)


@MODES
@undisturbed
def test_new_request_bytes_begin_the_sum_anew(hooked: Rig, forward):
    """WINDOW_UPDATE frames of an upload."""
    wire = answered(hooked, forward)
    for n in range(1, 6):
        wire.ask(REQUEST)
        wire.after(1).gets(record(DATA, 200))
        assert wire.waiting == n * len(REQUEST)


# -- HTTP/2 without TLS


def frame(kind: int, length: int, flags: int = 0, stream: int = 1) -> bytes:
    """RFC 9113, section 4.1; ``length`` with the frame's header."""
    head = (length - 9).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4)
    return head + b"\x5a" * (length - 9)


H_DATA, H_HEADERS, H_RST, H_SETTINGS, H_PING, H_GOAWAY, H_WINDOW = 0, 1, 3, 4, 6, 7, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = frame(H_SETTINGS, 27, stream=0)
WINDOW = frame(H_WINDOW, 13, stream=0)
FIRST_FLIGHT = PREFACE + SETTINGS + WINDOW
CALL = frame(H_HEADERS, 80, flags=4) + frame(H_DATA, 500, flags=1)
CONTROLS = {
    "settings-ack": frame(H_SETTINGS, 9, flags=1, stream=0),
    "window": WINDOW,
    "windows": WINDOW + frame(H_WINDOW, 13),
    "ping": frame(H_PING, 17, stream=0),
    "grpc": WINDOW * 2 + frame(H_PING, 17, stream=0),
    "goaway": frame(H_GOAWAY, 26, stream=0),
    "reset": frame(H_RST, 13),
}
# gRPC's client closes its side of a stream so, after a request that it may send on.
CLOSES = frame(H_DATA, 9, flags=1)
ANSWERS = {
    "data": frame(H_DATA, 300),
    "end": frame(H_HEADERS, 60, flags=5),
    "head-and-data": frame(H_HEADERS, 50, flags=4) + frame(H_DATA, 73, flags=1),
    "middle": b"\x5a" * 200,
}
controls = pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)


def called(rig: Rig, forward: Forward) -> Wire:
    """The first call of a connection waits."""
    wire = opened(rig, forward).ask(FIRST_FLIGHT)
    assert (wire.waiting, wire.talk) == (0, Talk.HTTP2_FIRST)
    return wire.ask(CALL)


@MODES
def test_preface_and_settings_are_no_request(hooked: Rig, forward):
    assert called(hooked, forward).waiting == len(CALL)


@MODES
def test_a_call_may_come_with_the_preface(hooked: Rig, forward):
    wire = opened(hooked, forward).ask(FIRST_FLIGHT + frame(H_HEADERS, 80, flags=5))
    assert wire.waiting == len(FIRST_FLIGHT) + 80, "a segment counts as a whole"


@MODES
@pytest.mark.parametrize(
    "control",
    [*CONTROLS.values(), CLOSES, CLOSES + WINDOW * 2],
    ids=[*CONTROLS, "closes", "closes-and-windows"],
)
def test_control_frames_of_the_client_are_no_request(hooked: Rig, forward, control: bytes):
    wire = called(hooked, forward)
    wire.after(LATE_MS).gets(frame(H_DATA, 300))
    assert (wire.waiting, wire.answers) == (0, 1)
    wire.ask(control)
    assert wire.waiting == 0
    wire.ask(CALL).ask(control)
    assert wire.waiting == len(CALL)


@MODES
@pytest.mark.parametrize(
    "request_",
    [frame(H_HEADERS, 28, flags=5), frame(H_DATA, 12), WINDOW + frame(H_HEADERS, 60),
     b"\x5a" * 300, CLOSES + frame(H_HEADERS, 60), frame(H_DATA, 256 + 9, flags=1)],
    ids=["get", "data", "behind", "middle", "closes-and-calls", "256"],
)  # fmt: skip
def test_any_message_is_a_request(hooked: Rig, forward, request_: bytes):
    wire = called(hooked, forward)
    wire.after(LATE_MS).gets(frame(H_DATA, 300))
    assert wire.ask(request_).waiting == len(request_)


@MODES
@controls
@undisturbed
def test_control_frames_of_the_server_are_no_answer(hooked: Rig, forward, control: bytes):
    wire = called(hooked, forward)
    wire.after(1).gets(control)
    assert (wire.waiting, wire.answers) == (len(CALL), 0)
    wire.after(LATE_MS).gets(frame(H_DATA, 300))
    assert (wire.waiting, wire.answers, wire.talk) == (0, 1, Talk.HTTP2)


@pytest.mark.parametrize(
    "frames",
    [*CONTROLS.values(), SETTINGS + WINDOW, frame(H_HEADERS, 50, flags=4),
     WINDOW + frame(H_HEADERS, 120, flags=4)],
    ids=[*CONTROLS, "first", "head", "window-and-head"],
)  # fmt: skip
def test_where_frames_are_read_they_are_no_answer_however_late(hooked: Rig, frames: bytes):
    wire = called(hooked, Forward.NAT)
    for _ in range(3):
        wire.after(LATE_MS).gets(frames)
        assert (wire.waiting, wire.answers) == (len(CALL), 0)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_where_frames_are_read_a_message_is_the_answer_at_once(hooked: Rig, answer: bytes):
    wire = called(hooked, Forward.NAT)
    wire.after(0).gets(answer)
    assert (wire.waiting, wire.answers) == (0, 1)


@pytest.mark.parametrize(
    ("size", "ms", "is_answer"),
    [(256, 80, False), (256, 100, True), (257, 1, True), (128, 95, False), (128, 115, True)],
)
@undisturbed
def test_in_dsr_size_and_time_tell_frames_from_an_answer(hooked: Rig, size, ms, is_answer):
    wire = called(hooked, Forward.DSR)
    wire.after(ms).gets(bytes(size))
    assert (wire.waiting, wire.answers) == ((0, 1) if is_answer else (len(CALL), 0))
