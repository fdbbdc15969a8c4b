"""Which frames are believed."""

from __future__ import annotations

import pytest

from agent.flowsync.framing import (
    DATA,
    HEADER,
    RECORDS_BYTES,
    TAG_BYTES,
    Fault,
    Frame,
    FrameError,
    Kind,
    Opener,
    Sealer,
)

KEY = b"k" * 32


def opened(opener: Opener, frame: bytes) -> Frame:
    header, rest = frame[: HEADER.size], frame[HEADER.size :]
    assert opener.rest_bytes(header) == len(rest)
    return opener.open(header, rest)


def refused(opener: Opener, frame: bytes) -> Fault:
    with pytest.raises(FrameError) as caught:
        opened(opener, frame)
    return caught.value.fault


def test_frames_come_out_as_they_went_in() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    for number, (kind, payload) in enumerate(
        [(Kind.RECORDS, b"flows" * 1000), (Kind.HEARTBEAT, b""), (Kind.ACK, b"{}")], start=1
    ):
        assert opened(opener, sealer.seal(kind, payload)) == Frame(kind, number, payload)


def test_a_replayed_frame_is_refused() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    first = sealer.seal(Kind.RECORDS, b"a")
    opened(opener, first)
    assert refused(opener, first) is Fault.SEQUENCE


def test_frames_in_another_order_or_with_a_gap_are_refused() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    sealer.seal(Kind.RECORDS, b"a")
    assert refused(opener, sealer.seal(Kind.RECORDS, b"b")) is Fault.SEQUENCE


def test_every_changed_bit_is_noticed() -> None:
    frame = Sealer(KEY).seal(Kind.ACK, b"payload")
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FrameError, AssertionError)):  # the latter: another length
            opened(Opener(KEY), bytes(changed))


def test_a_sequence_number_cannot_be_forged() -> None:
    frame = bytearray(Sealer(KEY).seal(Kind.RECORDS, b"a"))
    frame[HEADER.size - 1] = 2
    opener = Opener(KEY)
    opened(opener, Sealer(KEY).seal(Kind.RECORDS, b"a"))
    assert refused(opener, bytes(frame)) is Fault.AUTHENTICATION


def test_a_frame_of_another_key_is_refused() -> None:
    assert refused(Opener(b"o" * 32), Sealer(KEY).seal(Kind.BYE)) is Fault.AUTHENTICATION


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_has_a_longest_payload(kind: Kind) -> None:
    opener = Opener(KEY)
    with pytest.raises(FrameError) as caught:
        opener.rest_bytes(HEADER.pack(2**32 - 1, kind, 1))
    assert caught.value.fault is Fault.SIZE


def test_what_is_too_long_is_not_sent() -> None:
    sealer = Sealer(KEY)
    with pytest.raises(FrameError):
        sealer.seal(Kind.RECORDS, b"x" * (RECORDS_BYTES + 1))
    assert sealer.sequence == 0  # the frame that was not sent has no number


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(FrameError) as caught:
        Opener(KEY).rest_bytes(HEADER.pack(0, 200, 1))
    assert caught.value.fault is Fault.KIND


def test_a_frame_costs_so_many_bytes() -> None:
    assert len(Sealer(KEY).seal(Kind.RECORDS, b"x" * 1000)) == 1000 + HEADER.size + TAG_BYTES
    assert Kind.HEARTBEAT not in DATA
