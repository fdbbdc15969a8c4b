"""Who is let in, and what is said to the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.flowsync import handshake
from agent.flowsync.framing import HEADER, FrameError, Kind
from agent.flowsync.handshake import PREFIX, Hello, Refused, Session, Why

SECRET = b"a secret of the two balancers"
ONE = Hello("1.0", handshake.PROTOCOL, 3, "lb1", "p1", b"1" * 32)
TWO = Hello("1.0", handshake.PROTOCOL, 3, "lb2", "p2", b"2" * 32)


def split(message: bytes) -> tuple[bytes, bytes]:
    prefix, body = message[: PREFIX.size], message[PREFIX.size :]
    assert handshake.rest_bytes(prefix) == len(body)
    return prefix, body


def shake(
    one: Hello = ONE, two: Hello = TWO, secret_one: bytes = SECRET, secret_two: bytes = SECRET
) -> tuple[Session, Session]:
    """Both sides, as they talk."""
    seen_by_two = handshake.read_hello(*split(one.pack()))
    handshake.check(two, seen_by_two)
    seen_by_one = handshake.read_hello(*split(two.pack()))
    handshake.check(one, seen_by_one)
    transcript = one.pack() + two.pack()
    proof = split(handshake.pack_proof(secret_one, transcript, initiator=True))
    handshake.check_proof(secret_two, transcript, *proof, initiator=True)
    answer = split(handshake.pack_proof(secret_two, transcript, initiator=False))
    handshake.check_proof(secret_one, transcript, *answer, initiator=False)
    return (
        handshake.agree(secret_one, transcript, seen_by_one, initiator=True),
        handshake.agree(secret_two, transcript, seen_by_two, initiator=False),
    )


def why(caught: pytest.ExceptionInfo[Refused]) -> tuple[Why, bool]:
    return caught.value.why, caught.value.by_peer


def test_who_knows_the_secret_can_talk_both_ways() -> None:
    one, two = shake()
    assert (one.peer, two.peer) == (TWO, ONE)
    for sender, receiver in ((one, two), (two, one)):
        frame = sender.sealer.seal(Kind.RECORDS, b"flows")
        opened = receiver.opener.open(frame[: HEADER.size], frame[HEADER.size :])
        assert opened.payload == b"flows"


def test_a_frame_sent_back_to_its_sender_is_refused() -> None:
    one, _ = shake()
    frame = one.sealer.seal(Kind.RECORDS, b"flows")
    with pytest.raises(FrameError):
        one.opener.open(frame[: HEADER.size], frame[HEADER.size :])


def test_a_frame_of_another_session_is_refused() -> None:
    old, _ = shake()
    _, new = shake(two=replace(TWO, nonce=b"3" * 32))
    frame = old.sealer.seal(Kind.RECORDS, b"flows")
    with pytest.raises(FrameError):
        new.opener.open(frame[: HEADER.size], frame[HEADER.size :])


def test_another_secret_is_refused() -> None:
    with pytest.raises(Refused, match="key_file") as caught:
        shake(secret_one=b"what a stranger guesses")
    assert why(caught) == (Why.KEY, False)


def test_the_initiators_proof_is_not_the_acceptors() -> None:
    transcript = ONE.pack() + TWO.pack()
    proof = split(handshake.pack_proof(SECRET, transcript, initiator=True))
    with pytest.raises(Refused):
        handshake.check_proof(SECRET, transcript, *proof, initiator=False)


def test_a_proof_of_other_hellos_is_refused() -> None:
    proof = split(handshake.pack_proof(SECRET, ONE.pack() + TWO.pack(), initiator=True))
    later = ONE.pack() + replace(TWO, nonce=b"4" * 32).pack()
    with pytest.raises(Refused):
        handshake.check_proof(SECRET, later, *proof, initiator=True)


def test_another_protocol_is_said_with_both_versions() -> None:
    newer = replace(ONE, protocol=9, project="2.0")
    with pytest.raises(Refused, match=r"version 2\.0 .* this node 1\.0: .* 9 and 1") as caught:
        shake(one=newer)
    assert why(caught) == (Why.PROTOCOL, False)


def test_a_later_protocol_needs_only_say_its_version() -> None:
    body = b'{"project": "9.0", "anything": ["else"]}'
    hello = handshake.read_hello(PREFIX.pack(b"STEELYHI", 7, len(body)), body)
    with pytest.raises(Refused, match=r"version 9\.0") as caught:
        handshake.check(ONE, hello)
    assert why(caught) == (Why.PROTOCOL, False)


def test_other_records_are_said() -> None:
    with pytest.raises(Refused, match="records have versions 4 and 3") as caught:
        shake(one=replace(ONE, records=4))
    assert why(caught) == (Why.RECORDS, False)


def test_a_node_does_not_talk_to_itself() -> None:
    with pytest.raises(Refused, match="itself") as caught:
        shake(two=replace(TWO, process=ONE.process))
    assert why(caught) == (Why.SELF, False)


@pytest.mark.parametrize("reason", Why)
def test_a_refusal_arrives_with_its_reason(reason: Why) -> None:
    with pytest.raises(Refused) as caught:
        handshake.read_hello(*split(handshake.pack_refusal(reason)))
    assert why(caught) == (reason, True)
    transcript = ONE.pack() + TWO.pack()
    with pytest.raises(Refused) as caught:
        handshake.check_proof(
            SECRET, transcript, *split(handshake.pack_refusal(reason)), initiator=True
        )
    assert why(caught) == (reason, True)


@pytest.mark.parametrize(
    "prefix",
    [
        b"GET / HTTP/1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00",
        b"\0" * 12,
        PREFIX.pack(b"STEELYHI", 1, 65535),
    ],
)
def test_a_strangers_first_bytes_are_refused(prefix: bytes) -> None:
    with pytest.raises(Refused) as caught:
        handshake.rest_bytes(prefix)
    assert why(caught) == (Why.GARBAGE, False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"project": "1", "nonce": "zz"}',
        b'{"project": "1", "nonce": 5}',
        b'{"name": "lb"}',
        b'{"project": "1", "records": "x"}',
        b"[" * 1000,
        b"\xff\xfe",
    ],
)
def test_a_hello_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        handshake.read_hello(PREFIX.pack(b"STEELYHI", 1, len(body)), body)
    assert why(caught) == (Why.GARBAGE, False)


def test_a_strangers_words_cannot_write_to_a_terminal() -> None:
    evil = replace(ONE, name="\x1b[2J\nroot: all is well")
    assert handshake.read_hello(*split(evil.pack())).name == "?[2J?root: all is well"
