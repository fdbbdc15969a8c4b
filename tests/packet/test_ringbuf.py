"""A ring buffer that a small program fills, read by ctypes and by the event loop."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.dataplane import abi, libbpf
from agent.dataplane.compile import Compiled
from agent.dataplane.events import Lexicon
from agent.dataplane.objects import load_program
from agent.dataplane.ringbuf import Ring
from agent.dataplane.trace import BATCH_EVENTS, Tracer, rings_of
from agent.state.events import EventKind, TraceQuery
from tests.polling import readable

ROOM = 3640  # events of 64 bytes, with 8 of the ring's own each, in 256 KiB

# Each packet is told as a drop; the client's port counts up.
TELL = """
struct told {
	u64 time;
	u64 addresses[4];
	u16 client_port;
	u16 rest[3];
	u64 kind;
	u64 waited;
};
BPF_RINGBUF_OUTPUT(events, 64);
BPF_ARRAY(count, u64, 2);

int tell(struct xdp_md *ctx)
{
	struct told event = {};
	u32 all = 0, lost = 1;
	u64 *told = count.lookup(&all), *missed = count.lookup(&lost);

	if (!told || !missed)
		return XDP_ABORTED;
	*told += 1;
	event.time = bpf_ktime_get_ns();
	event.client_port = __builtin_bswap16(*told);
	event.kind = 1 << 16;
	if (events.ringbuf_output(&event, sizeof(event), 0))
		*missed += 1;
	return XDP_DROP;
}
"""
FRAME = bytes(64)


@pytest.fixture
def program() -> Compiled:
    return load_program(TELL, "tell", {})


@pytest.fixture
def ring(program: Compiled) -> Iterator[Ring]:
    (fd,) = rings_of(program).values()
    ring = Ring(fd)
    yield ring
    ring.close()


def tell(program: Compiled, count: int) -> None:
    libbpf.test_run(program.fd, FRAME, repeat=count)


def numbers(samples: list[bytes]) -> list[int]:
    return np.frombuffer(b"".join(samples), dtype=abi.EVENT)["client_port"].tolist()


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def test_samples_come_whole_and_in_order(program: Compiled, ring: Ring) -> None:
    assert not readable(ring.fd)
    assert ring.take(10) == []
    tell(program, 5)
    assert readable(ring.fd)
    assert numbers(ring.take(10)) == [1, 2, 3, 4, 5]
    assert not readable(ring.fd)


def test_what_is_not_taken_stays(program: Compiled, ring: Ring) -> None:
    tell(program, 10)
    assert numbers(ring.take(4)) == [1, 2, 3, 4]
    assert readable(ring.fd)
    assert numbers(ring.take(4)) == [5, 6, 7, 8]
    assert numbers(ring.take(4)) == [9, 10]


def test_a_full_ring_keeps_the_oldest_and_the_program_counts_the_rest(
    program: Compiled, ring: Ring
) -> None:
    tell(program, ROOM + 25)
    missed = libbpf.map_lookup(program.tables["count"], (1).to_bytes(4, "little"), 8)
    assert missed is not None
    lost = int.from_bytes(missed, "little")
    taken = ring.take(2 * ROOM)
    assert len(taken) + lost == ROOM + 25
    assert abs(len(taken) - ROOM) <= 1
    assert numbers(taken) == list(range(1, len(taken) + 1))


def test_a_closed_ring_gives_nothing_and_the_next_reader_what_is_left(program: Compiled) -> None:
    (fd,) = rings_of(program).values()
    first = Ring(fd)
    tell(program, 3)
    assert numbers(first.take(1)) == [1]
    first.close()
    first.close()
    assert first.take(1) == []
    second = Ring(fd)
    assert numbers(second.take(9)) == [2, 3]
    second.close()


def test_the_ring_outlives_its_program(program: Compiled) -> None:
    own = load_program(TELL, "tell", {})
    (fd,) = rings_of(own).values()
    ring = Ring(fd)
    tell(own, 2)
    own.close()
    del own
    gc.collect()
    assert numbers(ring.take(9)) == [1, 2]
    ring.close()


def test_what_is_no_ring_is_refused() -> None:
    fd = libbpf.array_create("no_ring", 8, 1, 0)
    try:
        with pytest.raises(OSError, match="ring buffer"):
            Ring(fd)
    finally:
        os.close(fd)


def test_refused_and_closed_rings_leak_no_descriptors(program: Compiled) -> None:
    (fd,) = rings_of(program).values()
    array = libbpf.array_create("no_ring", 8, 1, 0)
    before = descriptors()
    for _ in range(3):
        Ring(fd).close()
        with pytest.raises(OSError, match="ring buffer"):
            Ring(array)
    assert descriptors() == before
    os.close(array)


def test_the_event_loop_is_woken_and_a_flood_is_read_to_its_end(program: Compiled) -> None:
    control = np.zeros(1, dtype=abi.TRACE_CONTROL)

    async def story() -> list[int]:
        tell(program, 2)  # before anybody followed
        tracer = Tracer(control, lambda: rings_of(program), lambda: Lexicon({}, {}))
        with tracer.follow(TraceQuery(frozenset({EventKind.DROP}))) as follower:
            asyncio.get_running_loop().call_later(0.01, tell, program, 3 * BATCH_EVENTS)
            ports: list[int] = []
            while len(ports) < 3 * BATCH_EVENTS:
                events = await follower.next(5, 10_000)
                assert events
                ports += [event.client_port or 0 for event in events]
            return ports

    ports = asyncio.run(asyncio.wait_for(story(), 60))
    assert ports == list(range(3, 3 * BATCH_EVENTS + 3))
