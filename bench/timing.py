"""Times a program per packet: BPF_PROG_TEST_RUN through the restoring wrapper, in pairs."""

from __future__ import annotations

import statistics
import struct
from collections.abc import Callable
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
        self._definitions = _definitions(frame, flows)
        self._text = _WRAPPER.read_text()
        self._base = self._wrap(compile_program(self._text, "nothing", self._definitions))

    def _wrap(self, program: Compiled) -> Compiled:
        wrapper = compile_program(self._text, "bench", self._definitions)
        key, value = struct.pack("=I", 0), struct.pack("=I", program.fd)
        libbpf.map_update(wrapper.handle["target"].map_fd, key, value)
        return wrapper

    def verdict(self, program: Compiled) -> int:
        """What the program says of the frame."""
        return libbpf.test_run(self._wrap(program).fd, self.frame).verdict

    def send(self, program: Compiled, packets: int) -> int:
        """Run the program on so many packets; the verdict of the last one."""
        return libbpf.test_run(self._wrap(program).fd, self.frame, repeat=packets).verdict

    def time(
        self, program: Compiled, runs: int, repeat: int, before: Callable[[], None] | None = None
    ) -> Timing:
        """Time ``runs`` pairs of ``repeat`` packets, wrapper alone and with the program."""
        wrapped = self._wrap(program)
        for warm in (self._base, wrapped):
            libbpf.test_run(warm.fd, self.frame, repeat=repeat)
        base, gross = [], []
        for _ in range(runs):
            base.append(libbpf.test_run(self._base.fd, self.frame, repeat=repeat).duration_ns)
            if before is not None:
                before()
            gross.append(libbpf.test_run(wrapped.fd, self.frame, repeat=repeat).duration_ns)
        net = [g - b for g, b in zip(gross, base, strict=True)]
        return Timing(
            min_ns=float(min(gross) - min(base)),
            median_ns=float(statistics.median(net)),
            wrapper_ns=float(statistics.median(base)),
            runs=runs,
            repeat=repeat,
        )


def _definitions(frame: bytes, flows: Flows | None) -> dict[str, str]:
    first, second = struct.unpack_from("=QQ", frame)
    mask = (flows.count - 1) & 0xFFFFFFFF if flows else 0
    return {
        "BENCH_LENGTH": str(len(frame)),
        "BENCH_WORD0": f"{first:#x}ULL",
        "BENCH_WORD1": f"{second:#x}ULL",
        "BENCH_FLOW_OFFSET": str(flows.offset if flows else 0),
        "BENCH_FLOW_BASE": f"{flows.base if flows else 0:#x}U",
        "BENCH_FLOW_MASK": f"{mask:#x}U",
        "BENCH_FLOW_SHIFT": str(flows.in_a_row.bit_length() - 1 if flows else 0),
    }
