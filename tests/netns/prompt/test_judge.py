"""The judge itself: it must see what is wrong, or the cases prove nothing."""

from __future__ import annotations

from dataclasses import replace

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
    time_of,
)
from tests.netns.prompt.tap import PSH, RST, SYN, Segment
from tests.netns.prompt.wire import Connection, Pair

CLIENT, SERVER = ("192.0.2.1", 40_000), ("192.0.2.100", 443)
MS = 1_000_000


def client(at_ms: float, seq: int, payload: bytes = b"", ack: int = 1, flags: int = PSH) -> Segment:
    return Segment(int(at_ms * MS), CLIENT, SERVER, seq % 2**32, ack, flags, payload)


def server(at_ms: float, payload: bytes) -> Segment:
    """Its numbers are odd, but each has its own."""
    return Segment(int(at_ms * MS), SERVER, CLIENT, int(at_ms * 10_000), 0, 0, payload)


def pair(*segments: Segment, late_ms: float = 1, arrived: list[Segment] | None = None) -> Pair:
    """What a tap at the client saw, and a tap at the server: so much later of what the client sent
    and earlier of what the server did; or, ``arrived``, this of the former.
    """
    sent = [s for s in segments if s.source == CLIENT]
    if arrived is None:
        arrived = [replace(s, at_ns=s.at_ns + int(late_ms * MS)) for s in sent]
    said = [s for s in segments if s.source == SERVER]
    arrived = arrived + [replace(s, at_ns=s.at_ns - int(late_ms * MS)) for s in said]
    return wire.pairs(segments, arrived, 443)[CLIENT[1]]


def sends(*sent: tuple[float, bytes], seq: int = 2**32 - 50) -> list[Segment]:
    """A client that sends these payloads at these milliseconds; its numbers wrap."""
    segments = [client(0, seq, ack=0, flags=SYN)]
    for at_ms, payload in sent:
        seq_now = seq + 1 + sum(len(s.payload) for s in segments)
        segments.append(client(at_ms, seq_now, payload))
    return segments


def connection(*sent: tuple[float, bytes]) -> Connection:
    return pair(*sends(*sent)).client


def answers(*at_ms: float) -> list[Segment]:
    return [server(at, b"x" * 64) for at in at_ms]


def readings(*steps: tuple[int, int, int]) -> list[Reading]:
    """So many bytes from a millisecond to another, read each millisecond."""
    return [(at * MS, at * MS + 1000, n) for start, end, n in steps for at in range(start, end)]


def record(kind: int, size: int) -> bytes:
    return bytes((kind, 3, 3)) + size.to_bytes(2, "big") + bytes(size)


PROMPT = bytes(500)
ASKED = sends((100, PROMPT))
ONE = Story(pair(*ASKED, *answers(406)), [Answered(105 * MS, 405 * MS)], seen_late=False)


def test_what_happened_is_believed() -> None:
    seen = readings((0, 101, 0), (101, 410, 500), (410, 900, 0))
    assert complaints(seen, [ONE]) == []
    assert seen_while_computing(seen, [Answered(105 * MS, 405 * MS)]) == [300]


def test_of_a_large_gap_only_a_part_has_to_be_counted() -> None:
    """A busy host's balancer counted 983,088 bytes of 1,000,088: 57 segments had been overtaken. Of
    a gap, 64 KiB are believed.
    """
    body, late = bytes(1_000_088), 57 * 1448
    sent = sends((100, body), seq=999)
    ahead, behind = client(102, 1000 + late, body[late:]), client(103, 1000, body[:late])
    request, reply = Answered(150 * MS, 405 * MS), answers(406)
    found = pair(*sent, *reply, arrived=[sent[0], ahead, behind])
    story = Story(found, [request], seen_late=False)
    assert complaints(readings((200, 400, 983_088)), [story]) == []
    assert complaints(readings((200, 400, 983_087)), [story])
    whole = Story(pair(*sent, *reply), [request], seen_late=False)
    assert complaints(readings((200, 400, 999_999)), [whole])


def test_what_has_come_to_the_server_has_to_be_counted_and_no_more_than_was_sent() -> None:
    """The balancer was kept from its work for 60 ms, or what it sends on was."""
    slow = pair(*ASKED, *answers(406), late_ms=60)
    story = Story(slow, [Answered(165 * MS, 405 * MS)], seen_late=False)
    for counted_at in (100, 130, 160):
        seen = readings((90, counted_at, 0), (counted_at, 405, 500))
        assert complaints(seen, [story]) == []
    assert complaints(readings((195, 300, 0)), [story])
    assert complaints(readings((100, 300, 501)), [story])


def test_the_end_of_a_request_that_was_lost_has_to_be_counted_once_it_has_come() -> None:
    body, lost = bytes(60_000), 20_000
    end = 1000 + len(body) - lost
    sent = [*sends((100, body), seq=999), client(320, end, body[-lost:])]
    arrived = [sent[0], client(101, 1000, body[:-lost]), client(321, end, body[-lost:])]
    found = pair(*sent, *answers(606), arrived=arrived)
    story = Story(found, [Answered(350 * MS, 605 * MS)], seen_late=False)
    assert complaints(readings((200, 300, 40_000), (352, 600, 60_000)), [story]) == []
    assert complaints(readings((200, 300, 39_999)), [story])
    assert complaints(readings((352, 600, 59_999)), [story])


def test_an_answer_that_left_late_ends_the_waiting_late() -> None:
    """The server stood still after it had noted the answer down; that says nothing of the kernel
    as long as no tap has seen it.
    """
    request = Answered(105 * MS, 405 * MS)
    story = Story(pair(*ASKED, *answers(1400)), [request], seen_late=False)
    assert complaints(readings((101, 1399, 500), (1400, 2000, 0)), [story]) == []
    assert complaints(readings((1700, 1800, 500)), [story])
    acked = client(1440, 450, ack=65)
    story = Story(pair(*ASKED, *answers(1400), acked), [request], seen_late=True)
    assert complaints(readings((101, 1441, 500), (1441, 2000, 0)), [story]) == []
    assert complaints(readings((1700, 1800, 500)), [story])


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
    both = pair(*sends((100, PROMPT), (407, PROMPT[:200])), *answers(406, 701))
    requests = [Answered(105 * MS, 405 * MS), Answered(410 * MS, 700 * MS)]
    story = Story(both, requests, seen_late=False)
    good = readings((101, 405, 500), (405, 407, 0), (440, 700, 200))
    assert complaints(good, [story]) == []
    assert complaints(readings((440, 700, 700)), [story])
    assert complaints(readings((440, 700, 500)), [story])
    slow = [*sends((100, PROMPT), (407, PROMPT[:200])), *answers(406, 901)]
    requests[1] = Answered(460 * MS, 900 * MS)
    story = Story(pair(*slow, late_ms=50), requests, seen_late=True)
    assert complaints(readings((406, 456, 500), (456, 900, 200)), [story]) == []
    assert complaints(readings((500, 505, 500)), [story]), "the server has the next request"


def test_window_updates_are_no_requests() -> None:
    sent = sends((100, PROMPT), (420, bytes(48)), (800, PROMPT), (1300, bytes(24)))
    requests = [Answered(105 * MS, 405 * MS), Answered(805 * MS, 1200 * MS)]
    story = Story(pair(*sent, *answers(406, 1201)), requests, seen_late=False, control=56)
    good = readings((101, 405, 500), (660, 799, 0), (840, 1200, 500), (1500, 1600, 0))
    assert complaints(good, [story]) == []
    assert complaints(readings((660, 700, 48)), [story])


def frame(kind: int, size: int) -> bytes:
    return size.to_bytes(3, "big") + bytes((kind, 0)) + bytes(4 + size)


def test_control_frames_of_http2_may_count_or_not() -> None:
    first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 40)
    sent = sends((100, first), (101, frame(8, 4)), (102, frame(1, 91) + frame(0, 291)))
    talk = pair(*sent, *answers(406))
    assert talk.client.control_in(0, 1000) == 24 + 49 + 13
    assert talk.client.control_in(10, 60) == 50
    story = Story(talk, [Answered(110 * MS, 405 * MS)], seen_late=False)
    for waiting in (400, 413, 486):
        assert complaints(readings((140, 405, waiting), (655, 700, 0)), [story]) == []
    for waiting in (399, 487):
        assert complaints(readings((140, 405, waiting)), [story])


def test_a_connection_that_broke_off_clears() -> None:
    request, broke_ns = Answered(105 * MS, None), (300 * MS, 310 * MS)
    story = Story(pair(*ASKED), [request], seen_late=False, broke_ns=broke_ns)
    assert complaints(readings((110, 300, 500), (560, 700, 0)), [story]) == []
    assert complaints(readings((560, 700, 500)), [story])
    late = pair(*ASKED, client(305, 450, flags=RST), late_ms=300)
    story = Story(late, [request], seen_late=False, broke_ns=broke_ns)
    assert complaints(readings((430, 605, 500), (605, 900, 0)), [story]) == []
    assert complaints(readings((860, 900, 500)), [story])


def test_what_was_lost_and_came_again_counts_once() -> None:
    first, second = bytes(100), bytes(60)
    opened, early = client(0, 999, ack=0, flags=SYN), client(2, 1100, second)
    talk = pair(opened, early, client(3, 1000, first), client(4, 1000, first)).client
    assert [talk.bytes_at(at_ms * MS) for at_ms in (1, 2, 3, 4)] == [0, 160, 160, 160]
    assert talk.stream == first + second
    assert talk.gaps(4 * MS) == [100]
    assert talk.reached_ns(159) == 2 * MS
    assert talk.complete_ns(9 * MS, 0) == 3 * MS, "its beginning came last"
    assert talk.stirred_ns(9 * MS, 0) == 4 * MS
    assert talk.stirred_ns(4 * MS, 0) == 3 * MS


def test_a_handshake_whose_beginning_is_missing_may_count_until_it_comes() -> None:
    hello, request = record(22, 1500), record(23, 400)
    flight = record(20, 1) + record(23, 69)
    talk = pair(
        client(0, 999, ack=0, flags=SYN),
        client(2, 2000, hello[1000:]),
        client(202, 1000, hello[:1000]),
        client(210, 2505, flight),
        client(300, 2585, request),
        server(606, record(23, 300)),
    )
    story = Story(talk, [Answered(305 * MS, 605 * MS)], seen_late=False)
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


def histogram(*times_us: float) -> list[int]:
    found = [0] * 44
    for time_us in times_us:
        found[bucket(time_us)] += 1
    return found


def test_a_request_in_the_wrong_bucket_is_seen() -> None:
    counted, time = histogram(300_000), (300_000, 331_000)
    assert misplaced(counted, [time]) == []
    assert misplaced(counted, [(100_000, 131_000)])
    assert misplaced(counted, [(1_000_000, 1_100_000)])
    assert misplaced(counted, [])
    assert misplaced(counted, [time, time])


def test_each_time_takes_one_request() -> None:
    wide, narrow = (300_000, 2_000_000), (400_000, 430_000)
    for kernel in ((300_000, 420_000), (420_000, 2_000_000), (400_000, 1_000_000)):
        assert misplaced(histogram(*kernel), [wide, narrow]) == []
        assert misplaced(histogram(*kernel), [narrow, wide]) == []
    assert misplaced(histogram(1_000_000, 2_000_000), [wide, narrow])
    assert misplaced(histogram(100_000, 420_000), [wide, narrow])


ANSWERED = Answered(105 * MS, 405 * MS)


@pytest.mark.parametrize(
    ("what", "request_", "segments", "times_ms"),
    [
        ("nothing stood still", ANSWERED, answers(406), (274, 336)),
        ("the server read it late", Answered(1105 * MS, 1405 * MS), answers(1406), (1274, 1336)),
        ("it answered late", ANSWERED, answers(1406), (274, 1336)),
        ("its head came late", ANSWERED, [server(406, b"HTTP/1.1 200"), *answers(506)], (274, 436)),
        ("sent again", ANSWERED, [client(300, -49, PROMPT), *answers(406)], (74, 336)),
        ("a keep-alive probe", ANSWERED, [client(300, 450, b"p"), *answers(406)], (274, 336)),
    ],
)
def test_a_time_is_judged_by_what_passed_the_balancer(
    what: str, request_: Answered, segments: list[Segment], times_ms: tuple[int, int]
) -> None:
    span = time_of(pair(*ASKED, *segments), request_, seen_late=False)
    assert span == tuple(1000 * time_ms for time_ms in times_ms), what


def test_where_acknowledgements_are_seen_they_end_the_time() -> None:
    found = pair(*ASKED, *answers(406), client(446, 450, ack=65), client(450, 450, ack=99))
    assert time_of(found, ANSWERED, seen_late=True) == (274_000, 377_000)
    assert time_of(pair(*ASKED, *answers(406)), ANSWERED, seen_late=True) is None


def test_the_time_of_what_cannot_be_read_ends_with_what_comes_first() -> None:
    hello, request = record(22, 500), record(23, 400)
    sent = sends((10, hello), (100, request))
    found = pair(*sent, server(406, bytes(300)), server(506, bytes(300)))
    assert time_of(found, ANSWERED, seen_late=False) == (274_000, 336_000)


def test_control_frames_behind_a_request_do_not_change_its_time() -> None:
    first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(1, 91)
    sent = sends((100, first), (130, frame(4, 0) + frame(8, 4) + frame(6, 40)))
    request = Answered(135 * MS, 405 * MS)
    span = time_of(pair(*sent, *answers(406)), request, seen_late=False, control=56)
    assert span == (244_000, 336_000), "whether they do or not"


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
    talk = pair(
        client(0, 999, ack=0, flags=SYN),
        client(100, 1000, PROMPT),
        client(102, 1500),
        *(server(at, bytes(size)) for at, size in said),
        *(client(at, 1500, ack=ack) for at, ack in acknowledged),
    )
    request = Answered(105 * MS, 405 * MS)
    assert tuple(is_too_slow(talk, request, seen_late) for seen_late in (False, True)) == slow


@pytest.mark.parametrize("seen_late", [False, True])
def test_what_comes_late_in_the_middle_of_a_request_decides_nothing(seen_late: bool) -> None:
    """Windows of HTTP/2: a client sends as much as it may, and the server says late that it may go
    on.
    """
    opened, half = client(0, 999, ack=0, flags=SYN), PROMPT[:250]
    for pause_ms, slow in ((20, False), (120, True)):
        on_ms = 100 + pause_ms
        window = server(on_ms, bytes(35))
        rest = client(on_ms + 1, 1250, half, ack=36)
        ack = client(on_ms, 1250, ack=36)
        found = pair(opened, client(1, 1000), client(100, 1000, half), window, ack, rest)
        assert is_too_slow(found, Answered(305 * MS, 605 * MS), seen_late) is slow


def test_what_was_heard_of_the_answer_before_does_not_matter() -> None:
    opened, first = client(0, 999, ack=0, flags=SYN), client(100, 1000, PROMPT)
    heard = [*answers(406, 506, 606), *(client(at, 1500, ack=at) for at in (407, 507, 607))]
    found = pair(opened, client(1, 1000), first, *heard, client(700, 1500, PROMPT, ack=900))
    second = Answered(705 * MS, 1005 * MS)
    for seen_late in (False, True):
        assert not is_too_slow(found, second, seen_late, after_ns=405 * MS)
        assert is_too_slow(found, second, seen_late), "if all were one request"


def test_an_acknowledgement_that_came_late_to_the_balancer_decides_nothing() -> None:
    sent = [*sends((100, PROMPT), seq=999), client(130, 1500, ack=186)]
    request = Answered(105 * MS, 405 * MS)
    assert not is_too_slow(pair(*sent), request, seen_late=True)
    for late_ms in (60, 300):
        arrived = [*sent[:-1], client(130 + late_ms, 1500, ack=186)]
        assert is_too_slow(pair(*sent, arrived=arrived), request, seen_late=True)


def test_an_answer_right_after_what_was_sent_again_decides_nothing() -> None:
    """The packet path takes it for what is no answer."""
    sent = [client(0, 999, ack=0, flags=SYN), client(1, 1000), client(100, 1000, PROMPT)]
    for again_ms, slow in ((200, False), (350, True), (405.5, True)):
        found = pair(*sent, client(again_ms, 1000, PROMPT), *answers(407))
        assert is_too_slow(found, ANSWERED, seen_late=False) is slow


@pytest.mark.parametrize(("handshake_ms", "slow"), [(20, False), (130, False), (140, True)])
def test_an_answer_within_a_long_handshakes_time_decides_nothing(
    handshake_ms: int, slow: bool
) -> None:
    """The packet path takes a short first answer for a head then, and the client's FIN came."""
    talk = pair(
        client(0, 999, ack=0, flags=SYN), client(handshake_ms, 1000), client(200, 1000, PROMPT)
    )
    assert is_too_slow(talk, Answered(205 * MS, 500 * MS), seen_late=True) is slow


def test_control_frames_behind_a_request_do_not_begin_its_time_anew() -> None:
    """A client of HTTP/2 acknowledges settings when it gets to it; the head came 75 ms after the
    request, and 45 ms after that.
    """
    talk = pair(*sends((100, PROMPT), (130, bytes(9))), client(175, 460, ack=186))
    request = Answered(135 * MS, 505 * MS)
    assert is_too_slow(talk, request, seen_late=True, control=56)
    assert not is_too_slow(talk, request, seen_late=True)
