"""What a server of plain HTTP/1.1 says before it has computed anything, where its answers pass:
heads in any number of segments, comments that keep a stream alive, events that say nothing.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.model import Forward
from tests.examples import examples
from tests.packet.harness import Rig
from tests.packet.talks import HEAD, LATE_MS, POST, Wire, opened, serve

ECHO = b'{"type":"x","response":{"id":"resp_1","instructions":"' + b"i" * 200 + b'"}}'
LONG = ECHO.replace(b"i" * 200, b"i" * 5000)


def event(kind: bytes, data: bytes = ECHO) -> bytes:
    return b"event: " + kind + b"\ndata: " + data + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# vLLM 0.16's /v1/responses; llama.cpp; sse-starlette; axum; gateways.
SAYS_NOTHING = {
    "created": event(b"response.created"),
    "in-progress": event(b"response.in_progress"),
    "queued": event(b"response.queued"),
    "ping": event(b"ping", b'{"type": "ping"}'),
    "comment": b": ping - 2026-11-27 12:00:00.000000+00:00\r\n\r\n",
    "bare-comment": b":\n\n",
    "keep-alive": b": keep-alive\n\n",
}
TOKENS = {
    "chat": b'data: {"id":"chatcmpl-1","choices":[{"delta":{"role":"assistant"}}]}\n\n',
    "delta": event(b"response.output_text.delta"),
    "added": event(b"response.output_item.added"),
    "part": event(b"response.content_part.added"),
    "incomplete": event(b"response.incomplete"),
    "completed": event(b"response.completed"),
    "start": event(b"message_start"),
    "json": b'{"id":"cmpl-1"}',
    "letters": b"decade\n",
    "line": b"\n",
}
says_nothing = pytest.mark.parametrize("text", SAYS_NOTHING.values(), ids=SAYS_NOTHING)
tokens = pytest.mark.parametrize("text", TOKENS.values(), ids=TOKENS)
framings = pytest.mark.parametrize("framed", [chunk, bytes], ids=["chunk", "bare"])
TOKEN = chunk(TOKENS["chat"])


def asked(rig: Rig) -> Wire:
    return opened(rig, Forward.NAT).ask(POST)


def is_waiting(wire: Wire) -> bool:
    """Whether all of the request waits; else its answer has begun."""
    if wire.waiting:
        assert (wire.waiting, wire.answers) == (len(POST), 0)
        return True
    assert wire.answers == 1
    return False


@says_nothing
@framings
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with-the-head"])
def test_what_says_nothing_is_no_answer(hooked: Rig, text: bytes, framed, *, together: bool):
    wire = asked(hooked)
    if together:
        wire.after(LATE_MS).gets(HEAD + framed(text))
    else:
        wire.after(LATE_MS).gets(HEAD)
    for _ in range(3):
        assert is_waiting(wire)
        wire.after(LATE_MS).gets(framed(text))
    assert is_waiting(wire)
    wire.gets(TOKEN)
    assert not is_waiting(wire)


@tokens
@framings
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with-the-head"])
def test_anything_else_is_a_token(hooked: Rig, text: bytes, framed, *, together: bool):
    wire = asked(hooked)
    if not together:
        wire.after(LATE_MS).gets(HEAD)
        assert is_waiting(wire)
    wire.gets(HEAD * together + framed(text))
    assert not is_waiting(wire)


def test_several_pieces_may_come_in_one_segment(hooked: Rig):
    created = chunk(SAYS_NOTHING["created"]) + chunk(SAYS_NOTHING["in-progress"])
    for pieces, waits in ((created, True), (created * 2, True), (created + TOKEN, False)):
        wire = asked(hooked)
        wire.after(LATE_MS).gets(HEAD + pieces)
        assert is_waiting(wire) == waits, pieces
        wire.client("R")
        hooked.reset()


@pytest.mark.parametrize("size", [256, 1448])
def test_an_event_that_goes_on_in_further_segments_says_nothing_until_its_end(
    hooked: Rig, size: int
):
    """With long instructions: response.created has them once more."""
    text = HEAD + chunk(event(b"response.created", LONG)) + chunk(event(b"ping"))
    wire = asked(hooked)
    for at in range(0, len(text), size):
        wire.after(LATE_MS).gets(text[at : at + size])
        assert is_waiting(wire)
    wire.gets(TOKEN)
    assert not is_waiting(wire)


def test_a_token_right_behind_the_end_of_a_long_event_is_found(hooked: Rig):
    text = HEAD + chunk(event(b"response.created", LONG)) + TOKEN
    wire = asked(hooked)
    for at in range(0, len(text), 1000):
        assert is_waiting(wire)
        wire.after(LATE_MS).gets(text[at : at + 1000])
    assert not is_waiting(wire)


def test_what_is_sent_again_changes_nothing(hooked: Rig):
    first, second = HEAD, chunk(SAYS_NOTHING["created"])
    wire = asked(hooked)
    at = wire.sent
    wire.gets(first)
    wire.gets(second)
    wire.server(first, seq=at)
    wire.server(first + second, seq=at)
    assert is_waiting(wire)
    wire.server(first + second + TOKEN, seq=at)
    assert not is_waiting(wire)


def test_a_head_that_is_written_line_by_line_is_one(hooked: Rig):
    lines = HEAD.splitlines(keepends=True)
    assert lines[-1] == b"\r\n"
    wire = asked(hooked)
    for line in lines:
        wire.after(LATE_MS).gets(line)
        assert is_waiting(wire)
    wire.gets(TOKEN)
    assert not is_waiting(wire)


def test_a_head_that_never_ended_is_forgotten_with_the_next_request(hooked: Rig):
    wire = asked(hooked)
    wire.gets(HEAD[:30])
    assert is_waiting(wire)
    wire.ask(POST)
    wire.gets(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
    assert (wire.waiting, wire.answers) == (0, 1)


def test_a_server_that_says_nothing_and_hangs_up_has_not_answered(hooked: Rig):
    serve(hooked, Forward.NAT)
    wire = Wire(hooked).open().ask(POST)
    wire.gets(HEAD + chunk(SAYS_NOTHING["created"]))
    wire.server(flags="FA")
    assert (wire.waiting, wire.answers) == (0, 0)


PIECES = st.sampled_from([*SAYS_NOTHING.values(), event(b"response.created", LONG)])
_LOOKED_AT = 40  # bytes of a piece that have to be in one segment
MSS = 1448


@settings(
    deadline=None,
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    pieces=st.lists(PIECES, max_size=4),
    padding=st.integers(0, 1500),
    token=st.sampled_from(list(TOKENS.values())),
    wanted=st.lists(st.integers(1, 8000), max_size=12),
)
@example([], 0, TOKENS["chat"], [len(HEAD) - 2])
@example([], 0, TOKENS["chat"], [len(HEAD) - 4, len(HEAD) - 2])
@example([SAYS_NOTHING["created"]] * 4, 1500, TOKENS["delta"], [1448])
def test_the_answer_begins_with_the_first_token(rig: Rig, pieces, padding, token, wanted):
    """However a stream is cut into segments, but for cuts within what has to be read."""
    rig.reset()
    head = HEAD.replace(b"OK\r\n", b"OK\r\nx: " + b"1" * padding + b"\r\n")
    parts = [head, *map(chunk, pieces), chunk(token)]
    starts = [0, *itertools.accumulate(map(len, parts))]
    text = b"".join(parts)
    allowed = {
        at
        for at in range(1, len(text))
        if (12 <= at < len(head) and at not in (len(head) - 3, len(head) - 1))
        or at in starts
        or any(start + _LOOKED_AT <= at < end for start, end in itertools.pairwise(starts[1:]))
    }
    cuts, wants = [0], allowed & set(wanted)
    while cuts[-1] < len(text):
        fits = range(cuts[-1] + 1, min(cuts[-1] + MSS, len(text)) + 1)
        at = min(wants & set(fits), default=0)
        cuts.append(at or max(at for at in fits if at in allowed or at == len(text)))
    wire = asked(rig)
    for start, end in itertools.pairwise(cuts):
        few = sum(start <= at < end for at in starts[:-1]) <= 4  # pieces that are looked at
        wire.gets(text[start:end])
        if few or end > starts[-2]:
            assert is_waiting(wire) == (end <= starts[-2])
        if not wire.waiting:
            return
