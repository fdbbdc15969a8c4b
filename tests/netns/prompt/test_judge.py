"""The judge itself: it must see what is wrong, or the cases prove nothing."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from tests.netns.prompt import wire
from tests.netns.prompt.judge import (
    Answered,
    Reading,
    Story,
    bucket,
    complaints,
    errors_ms,
    is_too_slow,
    misplaced,
    seen_while_computing,
)
from tests.netns.prompt.tap import SYN, Segment, parse
from tests.netns.prompt.wire import Connection

CLIENT, SERVER = ("192.0.2.1", 40_000), ("192.0.2.100", 443)
MS = 1_000_000


def connection(*sent: tuple[int, bytes], seq: int = 2**32 - 50) -> Connection:
    """A client that sends these payloads at these milliseconds; its numbers wrap."""
    segments = [Segment(0, CLIENT, SERVER, seq, 0, SYN, b"")]
    for at_ms, payload in sent:
        seq_now = (seq + 1 + sum(len(s.payload) for s in segments)) % 2**32
        segments.append(Segment(at_ms * MS, CLIENT, SERVER, seq_now, 1, 0, payload))
    return wire.connections(segments, 443)[CLIENT[1]]


def readings(*steps: tuple[int, int, int]) -> list[Reading]:
    """So many bytes from a millisecond to another, read each millisecond."""
    return [(at * MS, at * MS + 1000, n) for start, end, n in steps for at in range(start, end)]


def record(kind: int, size: int) -> bytes:
    return bytes((kind, 3, 3)) + size.to_bytes(2, "big") + bytes(size)


PROMPT = bytes(500)
ONE = Story(connection((100, PROMPT)), [Answered(105 * MS, 405 * MS)])


def test_what_happened_is_believed() -> None:
    seen = readings((0, 101, 0), (101, 410, 500), (410, 900, 0))
    assert complaints(seen, [ONE]) == []
    assert seen_while_computing(seen, [Answered(105 * MS, 405 * MS)]) == [300]


def test_of_a_large_gap_only_a_part_has_to_be_counted() -> None:
    """What is dropped before the balancer is sent again; of a gap, 64 KiB are believed."""
    burst, lost = bytes(100_000), 70_000
    found = connection((100, burst))
    again = Segment(101 * MS, CLIENT, SERVER, found.first_seq % 2**32, 1, 0, burst[:lost])
    found.add(again)
    story = Story(found, [Answered(150 * MS, 405 * MS)])
    unseen = lost - (1 << 16)
    assert complaints(readings((200, 400, 100_000 - unseen)), [story]) == []
    assert complaints(readings((200, 400, 100_000 - unseen - 1)), [story])
    whole = Story(connection((100, burst)), [Answered(150 * MS, 405 * MS)])
    assert complaints(readings((200, 400, 99_999)), [whole])


def test_of_what_was_overtaken_only_a_part_has_to_be_counted_either() -> None:
    """A busy host's balancer counted 983,088 bytes of 1,000,088: 57 segments had been overtaken."""
    body, late = bytes(1_000_088), 57 * 1448
    story = Story(connection((100, body)), [Answered(150 * MS, 405 * MS)])
    assert complaints(readings((200, 400, 983_088)), [story])
    found = connection((100, body))
    sent = found.first_seq % 2**32
    for kept in (57, 90):  # two duplicate acknowledgements, the second with a newer block before
        blocks = [(sent + late, sent + kept * 1448 + 1448)]
        if kept == 90:
            blocks.insert(0, (sent + 400_000, sent + 401_448))
        options = b"\x01\x01" + bytes((5, 2 + 8 * len(blocks)))
        options += b"".join(struct.pack("!II", *(edge % 2**32 for edge in one)) for one in blocks)
        answer = parse(ethernet(SERVER, CLIENT, 1, sent, options), 101 * MS)
        assert answer is not None
        assert answer.hole == late
        found.add_hole(answer)
    story = Story(found, [Answered(150 * MS, 405 * MS)])
    assert complaints(readings((200, 400, 983_088)), [story]) == []
    assert complaints(readings((200, 400, 983_087)), [story])


def ethernet(
    source: tuple[str, int], target: tuple[str, int], seq: int, ack: int, options: bytes
) -> bytes:
    """A frame with an acknowledgement; its checksums are not looked at."""
    tcp = struct.pack("!HHII", source[1], target[1], seq, ack)
    tcp += bytes(((20 + len(options)) // 4 << 4, 16)) + bytes(6) + options
    addresses = b"".join(ip_address(each[0]).packed for each in (source, target))
    ip = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(tcp), 0, 64, 6, 0) + addresses
    return bytes(12) + b"\x08\x00" + ip + tcp


def test_the_end_of_a_request_that_was_lost_has_to_be_counted_once_it_is_sent_again() -> None:
    """Nothing shows before that anything is missing."""
    body, lost = bytes(60_000), 20_000
    found = connection((100, body))
    end = (found.first_seq + len(body) - lost) % 2**32
    found.add(Segment(320 * MS, CLIENT, SERVER, end, 1, 0, body[-lost:]))
    story = Story(found, [Answered(350 * MS, 605 * MS)])
    assert complaints(readings((200, 300, 40_000), (352, 600, 60_000)), [story]) == []
    assert complaints(readings((200, 300, 39_999)), [story])
    assert complaints(readings((352, 600, 59_999)), [story])


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("ended by a session ticket", [(0, 101, 0), (101, 110, 500), (110, 900, 0)]),
        ("never ended", [(0, 101, 0), (101, 900, 500)]),
        ("counted twice", [(0, 101, 0), (101, 405, 1000), (405, 900, 0)]),
        ("a byte too few", [(0, 101, 0), (101, 405, 499), (405, 900, 0)]),
        ("begun by the handshake", [(50, 101, 80), (101, 405, 500), (405, 900, 0)]),
        ("left by a farewell", [(0, 101, 0), (101, 405, 500), (405, 700, 0), (700, 900, 24)]),
        ("below zero", [(0, 101, 0), (101, 405, 500), (405, 900, -500)]),
    ],
)
def test_what_cannot_be_is_seen(what: str, steps: list[tuple[int, int, int]]) -> None:
    assert complaints(readings(*steps), [ONE]), what


def test_a_request_that_follows_at_once_is_judged_by_itself() -> None:
    both = connection((100, PROMPT), (406, PROMPT[:200]))
    story = Story(both, [Answered(105 * MS, 405 * MS), Answered(410 * MS, 700 * MS)])
    good = readings((101, 405, 500), (405, 406, 0), (440, 700, 200))
    assert complaints(good, [story]) == []
    assert complaints(readings((440, 700, 700)), [story])


def test_window_updates_are_no_requests() -> None:
    talk = connection((100, PROMPT), (420, bytes(48)), (800, PROMPT), (1300, bytes(24)))
    story = Story(talk, [Answered(105 * MS, 405 * MS), Answered(805 * MS, 1200 * MS)], control=56)
    good = readings((101, 405, 500), (660, 799, 0), (840, 1200, 500), (1500, 1600, 0))
    assert complaints(good, [story]) == []
    assert complaints(readings((660, 700, 48)), [story])


def frame(kind: int, size: int) -> bytes:
    return size.to_bytes(3, "big") + bytes((kind, 0)) + bytes(4 + size)


def test_control_frames_of_http2_may_count_or_not() -> None:
    first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 40)
    talk = connection((100, first), (101, frame(8, 4)), (102, frame(1, 91) + frame(0, 291)))
    assert talk.control_in(0, 1000) == 24 + 49 + 13
    assert talk.control_in(10, 60) == 50
    story = Story(talk, [Answered(110 * MS, 405 * MS)])
    for waiting in (400, 413, 486):
        assert complaints(readings((140, 405, waiting), (655, 700, 0)), [story]) == []
    for waiting in (399, 487):
        assert complaints(readings((140, 405, waiting)), [story])


def test_a_connection_that_broke_off_clears() -> None:
    story = Story(
        connection((100, PROMPT)), [Answered(105 * MS, None)], broke_ns=(300 * MS, 310 * MS)
    )
    assert complaints(readings((110, 300, 500), (560, 700, 0)), [story]) == []
    assert complaints(readings((560, 700, 500)), [story])


def test_what_was_lost_and_came_again_counts_once() -> None:
    first, second = bytes(100), bytes(60)
    segments = [
        Segment(0, CLIENT, SERVER, 999, 0, SYN, b""),
        Segment(2 * MS, CLIENT, SERVER, 1100, 1, 0, second),
        Segment(3 * MS, CLIENT, SERVER, 1000, 1, 0, first),
        Segment(4 * MS, CLIENT, SERVER, 1000, 1, 0, first),
    ]
    talk = wire.connections(segments, 443)[CLIENT[1]]
    assert [talk.bytes_at(at_ms * MS) for at_ms in (1, 2, 3, 4)] == [0, 160, 160, 160]
    assert talk.stream == first + second


def test_a_handshake_whose_beginning_is_missing_may_count_until_it_comes() -> None:
    hello, request = record(22, 1500), record(23, 400)
    flight = record(20, 1) + record(23, 69)
    segments = [
        Segment(0, CLIENT, SERVER, 999, 0, SYN, b""),
        Segment(2 * MS, CLIENT, SERVER, 2000, 1, 0, hello[1000:]),
        Segment(202 * MS, CLIENT, SERVER, 1000, 1, 0, hello[:1000]),
        Segment(210 * MS, CLIENT, SERVER, 2505, 1, 0, flight),
        Segment(300 * MS, CLIENT, SERVER, 2585, 1, 0, request),
    ]
    talk = wire.connections(segments, 443)[CLIENT[1]]
    story = Story(talk, [Answered(305 * MS, 605 * MS)])
    good = readings((2, 202, 1505), (202, 299, 0), (331, 605, 405), (605, 900, 0))
    assert complaints(good, [story]) == []
    assert complaints(readings((240, 260, 1505)), [story])


@pytest.mark.parametrize(
    ("what", "handshake"),
    [
        ("TLS 1.3", [record(22, 1500), record(20, 1) + record(23, 69)]),
        ("TLS 1.2", [record(22, 1500), record(22, 37) + record(20, 1) + record(22, 40)]),
        ("no TLS", []),
    ],
)
def test_requests_begin_after_the_handshake(what: str, handshake: list[bytes]) -> None:
    request = record(23, 400) if handshake else b"GET / HTTP/1.1\r\n\r\n"
    talk = connection(*enumerate([*handshake, request]))
    assert talk.requests_from == sum(map(len, handshake)), what


@pytest.mark.parametrize(
    ("microseconds", "place"),
    [(0, 0), (63, 0), (64, 1), (95, 1), (96, 2), (127, 2), (128, 3), (300_000, 25), (1e12, 43)],
)
def test_buckets_are_half_octaves(microseconds: float, place: int) -> None:
    assert bucket(microseconds) == place


def test_a_request_in_the_wrong_bucket_is_seen() -> None:
    histogram = [0] * 44
    histogram[bucket(300_000)] = 1
    assert misplaced(histogram, [300_000], seen_late=False) == []
    assert misplaced(histogram, [100_000], seen_late=False)
    assert misplaced(histogram, [1_000_000], seen_late=True)
    assert misplaced(histogram, [], seen_late=False)
    assert misplaced(histogram, [300_000, 300_000], seen_late=False)


def test_times_are_held_against_the_log_in_the_order_of_the_answers() -> None:
    late, early = Answered(0, 500 * MS), Answered(100 * MS, 300 * MS)
    assert errors_ms([201_000, 498_000], [late, early]) == [1, -2]
    assert errors_ms([201_000], [late, early]) == []
    assert errors_ms([], []) == []
    beside = Answered(200 * MS, 320 * MS)
    assert errors_ms([121_000, 200_000, 500_000], [late, early, beside]) == [0], "or changed places"


@pytest.mark.parametrize(
    ("said", "acknowledged", "slow"),
    [
        ([], [], (False, False)),
        ([(125, 185)], [(165, 186)], (False, False)),
        ([(125, 185)], [(175, 186)], (False, True)),
        ([(160, 185)], [(160, 186)], (True, False)),
        ([(195, 25)], [(195, 26)], (False, False)),  # 100 Continue
        ([(406, 900)], [(406, 901)], (False, False)),  # the answer
    ],
)
def test_what_came_as_late_as_answers_do_decides_nothing(
    said: list[tuple[int, int]], acknowledged: list[tuple[int, int]], slow: tuple[bool, bool]
) -> None:
    segments = [
        Segment(0, CLIENT, SERVER, 999, 0, SYN, b""),
        Segment(100 * MS, CLIENT, SERVER, 1000, 1, 0, PROMPT),
        Segment(102 * MS, CLIENT, SERVER, 1500, 1, 0, b""),
        *(Segment(at * MS, SERVER, CLIENT, 1, 1500, 0, bytes(size)) for at, size in said),
        *(Segment(at * MS, CLIENT, SERVER, 1500, ack, 0, b"") for at, ack in acknowledged),
    ]
    talk = wire.connections(segments, 443)[CLIENT[1]]
    request = Answered(105 * MS, 405 * MS)
    assert tuple(is_too_slow(talk, request, seen_late) for seen_late in (False, True)) == slow


@pytest.mark.parametrize(("handshake_ms", "slow"), [(20, False), (130, False), (140, True)])
def test_an_answer_within_a_long_handshakes_time_decides_nothing(
    handshake_ms: int, slow: bool
) -> None:
    """The packet path takes a short first answer for a head then, and the client's FIN came."""
    segments = [
        Segment(0, CLIENT, SERVER, 999, 0, SYN, b""),
        Segment(handshake_ms * MS, CLIENT, SERVER, 1000, 1, 0, b""),
        Segment(200 * MS, CLIENT, SERVER, 1000, 1, 0, PROMPT),
    ]
    talk = wire.connections(segments, 443)[CLIENT[1]]
    assert is_too_slow(talk, Answered(205 * MS, 500 * MS), seen_late=True) is slow


def test_control_frames_behind_a_request_do_not_begin_its_time_anew() -> None:
    """A client of HTTP/2 acknowledges settings when it gets to it; the head came 75 ms after the
    request, and 45 ms after that.
    """
    talk = connection((100, PROMPT), (130, bytes(9)))
    talk.add_ack(Segment(175 * MS, CLIENT, SERVER, 1510, 186, 0, b""))
    request = Answered(135 * MS, 505 * MS)
    assert is_too_slow(talk, request, seen_late=True, control=56)
    assert not is_too_slow(talk, request, seen_late=True)
