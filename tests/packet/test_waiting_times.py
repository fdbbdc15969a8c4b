"""How long requests wait and handshakes take, by bucket."""

from __future__ import annotations

import time

from agent.dataplane.abi import LATENCY_BUCKETS
from agent.model import Forward
from tests.packet.frames import CLIENT4
from tests.packet.harness import Rig
from tests.packet.pauses import undisturbed
from tests.packet.talks import ANSWER, CONTINUE, LATE_MS, MODES, POST, Wire, opened, serve


def bucket_of(us: float) -> int:
    """By the words of abi.h."""
    for k in reversed(range((LATENCY_BUCKETS - 1) // 2 + 1)):
        if us >= 96 * 2**k and 2 + 2 * k < LATENCY_BUCKETS:
            return 2 + 2 * k
        if us >= 64 * 2**k:
            return 1 + 2 * k
    return 0


def bucket_taken(rig: Rig, wire: Wire, least_us: int) -> int:
    """The bucket that the time of an answer is put in, which begins so long after its request or,
    where the host pauses, later.
    """
    before = rig.latency("a")
    wire.ask(POST)
    start_ns = time.monotonic_ns()
    wire.after(least_us / 1000).gets(ANSWER)
    most_us = least_us + (time.monotonic_ns() - start_ns) / 1000
    after = rig.latency("a")
    us = int(after["first_byte_us"] - before["first_byte_us"])
    assert least_us <= us <= most_us
    more = after["first_byte"] - before["first_byte"]
    expected = [0] * LATENCY_BUCKETS
    expected[bucket_of(us)] = 1
    assert list(more) == expected
    return bucket_of(us)


@MODES
def test_the_time_to_the_first_byte_is_in_its_bucket(rig: Rig, forward):
    wire = opened(rig, forward)
    seen = set()
    for k in range(7, 22):
        for us in (64 * 2**k + 2000, 96 * 2**k + 2000):
            while (bucket := bucket_taken(rig, wire, us)) != bucket_of(us):
                pass  # the host has paused; this bucket is to be seen, too
            seen.add(bucket)
    assert len(seen) == 29, "the last one has no end"


def test_an_answer_at_once_is_in_the_first_buckets(rig: Rig):
    wire = opened(rig, Forward.NAT).ask(POST)
    wire.server(ANSWER)
    found = rig.latency("a")
    assert found["first_byte"].sum() == 1
    assert found["first_byte"][bucket_of(int(found["first_byte_us"]))] == 1


@undisturbed
def test_the_clock_starts_with_the_last_segment_of_a_request(rig: Rig):
    wire = opened(rig, Forward.NAT).ask(POST, "A")
    wire.after(5000).ask(POST, "A")
    wire.ask(POST, "PA")
    wire.server(ANSWER)
    assert rig.latency("a")["first_byte_us"] < 1_000_000


@MODES
@undisturbed
def test_a_body_sent_at_once_after_100_continue_starts_the_clock_anew(rig: Rig, forward):
    """Once, what the client sent within the tick of an interim answer was timed with the request's
    head: an answer that took no time was said to have taken as long as the 100 Continue.
    """
    wire = opened(rig, forward).ask(POST)
    wire.after(LATE_MS).gets(CONTINUE)
    wire.ask(b"b" * 1000)
    wire.gets(ANSWER)
    assert rig.latency("a")["first_byte"].sum() == 1
    assert rig.latency("a")["first_byte_us"] < 1000 * LATE_MS


@MODES
@undisturbed
def test_a_body_of_two_segments_after_100_continue_starts_the_clock_anew(rig: Rig, forward):
    """Once, the first of them, which has no PSH, hid from the last that an interim answer had come
    within its tick: only a body of one segment was timed by itself.
    """
    wire = opened(rig, forward).ask(POST)
    wire.after(LATE_MS).gets(CONTINUE)
    wire.ask(b"b" * 1000, "A").ask(b"b" * 1000, "PA")
    wire.gets(ANSWER)
    assert rig.latency("a")["first_byte"].sum() == 1
    assert rig.latency("a")["first_byte_us"] < 1000 * LATE_MS


@MODES
def test_the_handshake_takes_from_syn_to_ack(rig: Rig, forward):
    serve(rig, forward)
    wire = Wire(rig)
    start_ns = time.monotonic_ns()
    wire.client("S")
    time.sleep(0.02)
    wire.client("S", seq=1000)
    wire.server(flags="SA")
    wire.acknowledge()
    most_us = (time.monotonic_ns() - start_ns) / 1000 + 1
    found, taken_us = rig.latency("a"), int(rig.warm(CLIENT4)["rtt_us"])
    assert 20_000 <= taken_us <= most_us
    assert found["handshake_us"] == taken_us
    assert found["handshake"][bucket_of(taken_us)] == found["handshake"].sum() == 1
    wire.ask(POST)
    assert rig.latency("a")["handshake"].sum() == 1, "once a connection"
