"""Times a program per packet: BPF_PROG_TEST_RUN through the restoring wrapper, in pairs."""

from __future__ import annotations

import statistics
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.dataplane import libbpf
from agent.dataplane.compile import Compiled, compile_program

_WRAPPER = Path(__file__).with_name("wrapper.c")


@dataclass(frozen=True, slots=True)
class Flows:
    """Many flows by a counter in the frame: ``count`` a power of two, 0: never the same twice."""

    offset: int
    count: int
    in_a_row: int = 1  # packets of one flow, a power of two
    base: int = 0x0B000000


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds per packet, net of the wrapper. ``min_ns`` is the difference of the minima:
    the least of the differences would flatter a program when a wrapper run was disturbed.
    """

    min_ns: float
    median_ns: float
    wrapper_ns: float
    runs: int
    repeat: int


class Wrapped:
    """Programs behind one wrapper: one frame, one kind of flows."""

    def __init__(self, frame: bytes, flows: Flows | None = None) -> None:
        self.frame = frame
        self._flows = flows
        self._text = _WRAPPER.read_text()

    def _wrap(self, target: int, turn: int = 0) -> Compiled:
        """A wrapper around the program of that descriptor. ``turn`` keeps the new flows of one
        program apart from those that another has just recorded.
        """
        definitions = _definitions(self.frame, self._flows, turn)
        wrapper = compile_program(self._text, "bench", definitions)
        key, value = struct.pack("=I", 0), struct.pack("=I", target)
        libbpf.map_update(wrapper.handle["target"].map_fd, key, value)
        return wrapper

    def send(self, program: Compiled, packets: int) -> int:
        """Run the program on so many packets; the verdict of the last one."""
        return self._run(self._wrap(program.fd), packets).verdict

    def _run(self, wrapper: Compiled, packets: int) -> libbpf.TestRun:
        return libbpf.test_run(wrapper.fd, self.frame, repeat=packets)

    def time(self, programs: Sequence[Compiled], runs: int, repeat: int) -> list[Timing]:
        """Time ``runs`` rounds of ``repeat`` packets: the wrapper alone, then each program."""
        definitions = _definitions(self.frame, self._flows, 0)
        nothing = compile_program(self._text, "nothing", definitions)
        fds = [nothing.fd, *(program.fd for program in programs)]
        wrappers = [self._wrap(fd, turn) for turn, fd in enumerate(fds)]
        for wrapper in wrappers:  # warm up
            self._run(wrapper, repeat)
        rounds = [[self._run(w, repeat).duration_ns for w in wrappers] for _ in range(runs)]
        base, *columns = zip(*rounds, strict=True)
        return [_timing(base, gross, repeat) for gross in columns]


def _timing(base: Sequence[int], gross: Sequence[int], repeat: int) -> Timing:
    net = [g - b for g, b in zip(gross, base, strict=True)]
    return Timing(
        min_ns=float(min(gross) - min(base)),
        median_ns=float(statistics.median(net)),
        wrapper_ns=float(statistics.median(base)),
        runs=len(net),
        repeat=repeat,
    )


def _definitions(frame: bytes, flows: Flows | None, turn: int) -> dict[str, str]:
    first, second = struct.unpack_from("=QQ", frame)
    flows = flows or Flows(offset=0, count=1)
    base = flows.base + (0 if flows.count else turn << 28)
    return {
        "BENCH_LENGTH": str(len(frame)),
        "BENCH_WORD0": f"{first:#x}ULL",
        "BENCH_WORD1": f"{second:#x}ULL",
        "BENCH_FLOW_OFFSET": str(flows.offset),
        "BENCH_FLOW_BASE": f"{base:#x}U",
        "BENCH_FLOW_MASK": f"{(flows.count - 1) & 0xFFFFFFFF:#x}U",
        "BENCH_FLOW_SHIFT": str(flows.in_a_row.bit_length() - 1),
    }
