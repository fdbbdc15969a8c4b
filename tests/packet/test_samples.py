"""What a request met, and what became of it: one sample for each that is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count

import numpy as np
import pytest

from agent.dataplane import abi, flowhash
from agent.model import Forward, Scheduler
from tests.packet.frames import CLIENT4
from tests.packet.harness import Rig
from tests.packet.talks import ANSWER, LATE_MS, MODES, POST, RTT_US, Wire, serve, serve6

# request_marks of bpf/maps.h
MARKS = 8192
FAMILIES = pytest.mark.parametrize("served", [serve, serve6], ids=["v4", "v6"])
type Served = Callable[..., None]


@dataclass(frozen=True)
class Sample:
    """But its time, which is no matter of the test alone."""

    ahead: int
    bytes: int
    open: int


def rows(rig: Rig) -> list[np.void]:
    """All that there are, oldest first."""
    taken = int(rig.latency("a")["samples"])
    found = rig.tables.backend_samples[rig.backend_id("a")]
    return [found[n % abi.SAMPLES] for n in range(max(0, taken - abi.SAMPLES), taken)]


def samples(rig: Rig) -> list[Sample]:
    return [Sample(int(r["ahead"]), int(r["bytes"]), int(r["open"])) for r in rows(rig)]


def answered(wire: Wire, after_ms: float = LATE_MS) -> None:
    wire.after(after_ms).gets(ANSWER)


@MODES
@FAMILIES
def test_a_request_and_its_answer_leave_one_sample(hooked: Rig, forward: Forward, served: Served):
    served(hooked, forward, scheduler=Scheduler.LEAST_LOAD)
    wire = Wire(hooked).open().ask(POST)
    assert samples(hooked) == []
    answered(wire)
    assert samples(hooked) == [Sample(0, len(POST), 1)]
    wire.gets(b"y" * 1000)
    assert len(samples(hooked)) == 1, "the rest of the answer is no other one"
    answered(wire.ask(b"x" * 100), 700)
    times_ms = [int(row["us"]) / 1000 for row in rows(hooked)]
    assert times_ms[0] > LATE_MS - 10
    assert times_ms[1] > 690
    whole_ms = int(hooked.latency("a")["first_byte_us"]) / 1000
    way_ms = 0 if forward is Forward.NAT else RTT_US / 1000  # to the client and back
    assert sum(times_ms) == pytest.approx(whole_ms - 2 * way_ms), "the backend's part of it"
    assert samples(hooked)[1:] == [Sample(0, 100, 1)]


@MODES
def test_a_request_of_which_not_all_bytes_count_is_no_sample(hooked: Rig, forward: Forward):
    """Its time would be that of a smaller one."""
    serve(hooked, forward, scheduler=Scheduler.LEAST_LOAD)
    wire = Wire(hooked).open().ask(POST)
    start = wire.seq
    for n in range(800):
        wire.client("A", b"x" * 1400, seq=start + n * 1400)
    assert wire.waiting == 2**20
    answered(wire)
    assert samples(hooked) == []
    answered(wire.ask(POST))
    assert samples(hooked) == [Sample(0, len(POST), 1)]


@MODES
@FAMILIES
def test_what_waits_and_is_open_counts_as_of_the_coming(
    hooked: Rig, forward: Forward, served: Served
):
    served(hooked, forward, scheduler=Scheduler.LEAST_LOAD)
    first, second = Wire(hooked, 40_000).open(), Wire(hooked, 40_001).open()
    first.ask(POST)
    second.ask(b"x" * 100)
    third = Wire(hooked, 40_002).open()
    answered(second, 800)
    answered(first)
    answered(third.ask(b"z" * 10))
    assert samples(hooked) == [
        Sample(len(POST), 100, 2),
        Sample(0, len(POST), 2),
        Sample(0, 10, 3),
    ]


@MODES
def test_a_request_in_pieces_is_one_that_meets_what_its_first_met(hooked: Rig, forward: Forward):
    serve(hooked, forward, scheduler=Scheduler.LEAST_LOAD)
    first, second = Wire(hooked, 40_000).open(), Wire(hooked, 40_001).open()
    first.ask(b"x" * 100, "A")
    second.ask(b"y" * 1000)
    first.ask(b"x" * 50)
    answered(first)
    assert samples(hooked) == [Sample(0, 150, 2)]
    answered(second)
    assert samples(hooked)[1:] == [Sample(100, 1000, 2)]


@MODES
def test_what_is_never_answered_leaves_none(hooked: Rig, forward: Forward):
    serve(hooked, forward, scheduler=Scheduler.LEAST_LOAD)
    wire = Wire(hooked).open().ask(POST)
    wire.client("R")
    assert samples(hooked) == []


def colliding(rig: Rig) -> tuple[int, int]:
    """Ports of two clients whose requests have the same mark."""
    seen: dict[int, int] = {}
    for port in ports():
        key, salt = rig.dataplane.keys, rig.salt("web")
        tag = flowhash.flow_hash(key, salt, ip_address(CLIENT4), port, 80, None) & 0xFFFFFFFF
        if (other := seen.setdefault(tag % MARKS, port)) != port:
            return other, port
    raise AssertionError


def ports() -> Iterator[int]:
    return count(20_000)


@MODES
def test_a_mark_that_another_request_took_leaves_none(hooked: Rig, forward: Forward):
    serve(hooked, forward, scheduler=Scheduler.LEAST_LOAD)
    one, other = colliding(hooked)
    first, second = Wire(hooked, one).open(), Wire(hooked, other).open()
    first.ask(POST)
    second.ask(b"x" * 100)
    answered(first)
    assert samples(hooked) == [], "nobody knows what it met"
    answered(second)
    assert samples(hooked) == [Sample(len(POST), 100, 2)]
    answered(first.ask(POST))
    assert samples(hooked)[1:] == [Sample(0, len(POST), 2)], "the next one has a mark again"


@pytest.mark.parametrize(
    ("status", "learned"),
    [(b"503 Service Unavailable", 0), (b"500 Oh", 0), (b"429 Too Many Requests", 0),
     (b"428 Precondition Required", 1), (b"400 Bad Request", 1), (b"404 Not Found", 1),
     (b"204 No Content", 1)],
)  # fmt: skip
def test_errors_tell_no_speed(hooked: Rig, status: bytes, learned: int):
    """A server that fails at once would look fast, and get ever more to fail."""
    serve(hooked, Forward.NAT, scheduler=Scheduler.LEAST_LOAD)
    wire = Wire(hooked).open()
    for n in (1, 2):  # the first one tells what the connection speaks
        wire.ask(POST).after(1).gets(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        assert (len(samples(hooked)), wire.answers) == (n * learned, n)
        failed = hooked.latency("a")
        assert (int(failed["errors"]), int(failed["hangups"])) == (
            0 if learned else n, 0,
        )  # fmt: skip


@pytest.mark.parametrize("end", ["FA", "R", "RA"])
def test_a_server_that_hangs_up_on_a_request_is_counted(hooked: Rig, end: str):
    serve(hooked, Forward.NAT, scheduler=Scheduler.LEAST_LOAD)
    wire = Wire(hooked).open()
    wire.ask(POST).after(300).server(flags=end)
    assert int(hooked.latency("a")["hangups"]) == 1
    assert (wire.answers, int(hooked.latency("a")["errors"])) == (0, 0)


def test_who_ends_an_answer_or_an_idle_connection_has_not_hung_up(hooked: Rig):
    serve(hooked, Forward.NAT, scheduler=Scheduler.LEAST_LOAD)
    Wire(hooked, 40_000).open().server(flags="FA")
    answered_one = Wire(hooked, 40_001).open().ask(POST)
    answered(answered_one)
    answered_one.server(flags="FA")
    empty = Wire(hooked, 40_002).open().ask(POST).after(300)
    empty.gets(b"HTTP/1.1 200 OK\r\nserver: x\r\n\r\n")
    empty.server(flags="FA")
    gone = Wire(hooked, 40_003).open().ask(POST)
    gone.client("FA")
    gone.server(flags="FA")
    assert int(hooked.latency("a")["hangups"]) == 0


@MODES
def test_the_newest_samples_stay(hooked: Rig, forward: Forward):
    serve(hooked, forward, scheduler=Scheduler.LEAST_LOAD)
    wire = Wire(hooked).open()
    for size in range(1, abi.SAMPLES + 4):
        answered(wire.ask(b"x" * size))
    assert [sample.bytes for sample in samples(hooked)] == list(range(4, abi.SAMPLES + 4))


@MODES
def test_who_counts_no_bytes_has_no_samples(hooked: Rig, forward: Forward):
    serve(hooked, forward, count_waiting=False)
    wire = Wire(hooked).open()
    wire.ask(POST).gets(ANSWER)
    assert samples(hooked) == []
