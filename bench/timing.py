"""Times programs per packet, with BPF_PROG_TEST_RUN and through the restoring wrapper."""

from __future__ import annotations

import os
import statistics
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.dataplane import libbpf, pins
from agent.dataplane.compile import Compiled, compile_program

_COUNTER = pins.BPFFS / f"steelyard-bench-{os.getpid()}"
_IP = 14  # offset of the IP packet
_WRAPPER = Path(__file__).with_name("wrapper.c")


@dataclass(frozen=True, slots=True)
class Flows:
    """Many flows, made by a counter at ``offset`` in the frame.

    ``count``: how many, a power of two; 0: each packet has a new one.
    """

    offset: int
    count: int
    in_a_row: int = 1  # consecutive packets of one flow, a power of two
    base: int = 0x0B000000


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds per packet, without the wrapper's own.

    ``min_ns`` is the difference of the minima: the minimum of the differences would flatter a
    program when a run of the wrapper was disturbed.
    """

    min_ns: float
    median_ns: float
    wrapper_ns: float
    runs: int
    repeat: int


class Runnable(Protocol):
    """A loaded program, by its descriptor."""

    @property
    def fd(self) -> int: ...


class Wrapped:
    """Runs programs behind the wrapper, with one frame and one kind of flows."""

    def __init__(self, frame: bytes, flows: Flows | None = None) -> None:
        self.frame = frame
        self._flows = flows
        self._text = _WRAPPER.read_text()

    def _wrap(self, program: Runnable, restore: str) -> Compiled:
        """Compile a wrapper that calls the program."""
        definitions = _definitions(self.frame, self._flows, restore)
        wrapper = compile_program(self._text, "bench", definitions)
        key, value = struct.pack("=I", 0), struct.pack("=I", program.fd)
        libbpf.map_update(wrapper.tables["target"], key, value)
        return wrapper

    def _changed(self, programs: Sequence[Runnable]) -> str:
        """Return BENCH_RESTORE for the words that any of the programs changes."""
        offsets: set[int] = set()
        for program in programs:
            out = libbpf.test_run(program.fd, self.frame).data
            offsets |= changed_words(self.frame, out)
        words = (
            (offset, int.from_bytes(self.frame[offset : offset + 4], sys.byteorder))
            for offset in sorted(offsets)
        )
        return " ".join(f"R32({offset}, {value:#x}U)" for offset, value in words)

    def send(self, program: Runnable, packets: int) -> int:
        """Run the program on ``packets`` packets; return the verdict of the last one."""
        with _counter():
            wrapper = self._wrap(program, self._changed([program]))
            return self._run(wrapper, packets).verdict

    def _run(self, wrapper: Compiled, packets: int) -> libbpf.TestRun:
        return libbpf.test_run(wrapper.fd, self.frame, repeat=packets)

    def time(self, programs: Sequence[Runnable], runs: int, repeat: int) -> list[Timing]:
        """Time ``runs`` rounds of ``repeat`` packets: the wrapper alone, then each program."""
        restore = self._changed(programs)
        definitions = _definitions(self.frame, self._flows, restore)
        with _counter():
            nothing = compile_program(self._text, "nothing", definitions)
            wrappers = [self._wrap(program, restore) for program in (nothing, *programs)]
            for wrapper in wrappers:  # warm up
                self._run(wrapper, repeat)
            rounds = [[self._run(w, repeat).duration_ns for w in wrappers] for _ in range(runs)]
        base, *columns = zip(*rounds, strict=True)
        return [_timing(base, gross, repeat) for gross in columns]


@contextmanager
def _counter() -> Iterator[None]:
    """Start the counter of a case's flows from 0, and remove it afterwards."""
    _COUNTER.unlink(missing_ok=True)
    try:
        yield
    finally:
        _COUNTER.unlink(missing_ok=True)


def _timing(base: Sequence[int], gross: Sequence[int], repeat: int) -> Timing:
    net = [g - b for g, b in zip(gross, base, strict=True)]
    return Timing(
        min_ns=float(min(gross) - min(base)),
        median_ns=float(statistics.median(net)),
        wrapper_ns=float(statistics.median(base)),
        runs=len(net),
        repeat=repeat,
    )


def changed_words(before: bytes, after: bytes) -> set[int]:
    """Return the offsets, in ``before``, of the words of the IP packet that a program has changed.

    Bytes that were inserted in front of the IP packet, or cut off behind it, do not count.
    """
    shift = max(0, len(after) - len(before))
    offsets = range(_IP, len(before) - 3, 4)
    return {
        offset
        for offset in offsets
        if before[offset : offset + 4] != after[offset + shift : offset + shift + 4]
    }


def _definitions(frame: bytes, flows: Flows | None, restore: str) -> dict[str, str]:
    first, second = struct.unpack_from("=QQ", frame)
    flows = flows or Flows(offset=0, count=1)
    return {
        "BENCH_LENGTH": str(len(frame)),
        "BENCH_WORD0": f"{first:#x}ULL",
        "BENCH_WORD1": f"{second:#x}ULL",
        "BENCH_RESTORE": restore,
        "BENCH_COUNTER": f'"{_COUNTER}"',
        "BENCH_FLOW_OFFSET": str(flows.offset),
        "BENCH_FLOW_BASE": f"{flows.base:#x}U",
        "BENCH_FLOW_MASK": f"{(flows.count - 1) & 0xFFFFFFFF:#x}U",
        "BENCH_FLOW_SHIFT": str(flows.in_a_row.bit_length() - 1),
    }
