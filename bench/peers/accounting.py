"""Owns the clocks: what kept the balancer's core busy between two moments.

The kernel accounts softirqs only by its 4 ms tick, so no work is left to them: a kernel thread
(threaded NAPI) that is pinned to the balancer's core polls the interface of each balancer, and
threads have an exact clock. The cost is that thread's time plus that of the balancer's processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CPUCLOCK_SCHED, _PID_SHIFT = 2, 3  # linux/posix-timers.h: a clock's number from a pid
_MICRO = 1_000_000
_LOOK_S, _IDLE_SHARE = 0.2, 0.9


@dataclass(frozen=True, slots=True)
class Moment:
    """Readings at one time: seconds that only grow, and a count."""

    wall_s: float
    idle_s: float  # of the balancer's core
    data_s: float  # CPU time of the polling thread and of processes that move data
    control_s: float  # CPU time of processes that only configure and watch
    receive_softirqs: int  # on the balancer's core


@dataclass(frozen=True, slots=True)
class Spent:
    """The differences between two moments."""

    wall_s: float
    data_s: float
    control_s: float
    other_s: float  # the core's busy time that belongs to neither of them
    receive_softirqs: int

    def per_connection_us(self, connections: int) -> float:
        """Return the data path's microseconds per connection."""
        return self.data_s * _MICRO / connections

    def per_gb_s(self, size: int) -> float:
        """Return the data path's seconds per 10^9 bytes of payload."""
        return self.data_s * 1e9 / size

    def busy_per_connection_us(self, connections: int) -> float:
        """Return the same for all that kept the core busy: an upper bound that misses nothing."""
        return (self.data_s + self.control_s + self.other_s) * _MICRO / connections

    @property
    def control_ms_per_s(self) -> float:
        """Milliseconds of control processes per second: they do not depend on connections."""
        return self.control_s * 1000 / self.wall_s

    @property
    def busy_share(self) -> float:
        """The share of the time in which the core was busy."""
        return (self.data_s + self.control_s + self.other_s) / self.wall_s

    @property
    def other_share(self) -> float:
        """The share of the time in which others had the core."""
        return self.other_s / self.wall_s


def between(first: Moment, second: Moment) -> Spent:
    """Return what the core did from the first moment to the second."""
    wall_s = second.wall_s - first.wall_s
    data_s = second.data_s - first.data_s
    control_s = second.control_s - first.control_s
    busy_s = wall_s - (second.idle_s - first.idle_s)
    # The idle clock has a resolution of a hundredth of a second, so this could be negative.
    other_s = max(0.0, busy_s - data_s - control_s)
    softirqs = second.receive_softirqs - first.receive_softirqs
    return Spent(wall_s, data_s, control_s, other_s, softirqs)


def idle_s(stat: str, cpu: int, ticks_per_s: int) -> float:
    """Return the idle and waiting seconds of a CPU, from the text of /proc/stat."""
    for line in stat.splitlines():
        name, *fields = line.split()
        if name == f"cpu{cpu}":
            return (int(fields[3]) + int(fields[4])) / ticks_per_s
    raise ValueError(f"/proc/stat has no cpu{cpu}")


def receive_softirqs(table: str, cpu: int) -> int:
    """Return the NET_RX softirqs of a CPU, from the text of /proc/softirqs."""
    head, *rows = table.splitlines()
    column = head.split().index(f"CPU{cpu}")
    return next(int(row.split()[column + 1]) for row in rows if row.split()[0] == "NET_RX:")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process or kernel thread since its start."""
    return time.clock_gettime_ns((~pid << _PID_SHIFT) | _CPUCLOCK_SCHED) / 1e9


def now(cpu: int, data: Iterable[int], control: Iterable[int]) -> Moment:
    """Take the readings now."""
    return Moment(
        wall_s=time.monotonic(),
        idle_s=idle_s(Path("/proc/stat").read_text(), cpu, os.sysconf("SC_CLK_TCK")),
        data_s=sum(map(cpu_s, data)),
        control_s=sum(map(cpu_s, control)),
        receive_softirqs=receive_softirqs(Path("/proc/softirqs").read_text(), cpu),
    )


def await_idle(cpus: Iterable[int], patience_s: float) -> None:
    """Wait until these CPUs are nearly idle, for at most ``patience_s``.

    The kernel removes namespaces in the background, and an agent is busiest at its start.
    """
    watched, ticks_per_s = list(cpus), os.sysconf("SC_CLK_TCK")
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        first = Path("/proc/stat").read_text()
        time.sleep(_LOOK_S)
        second = Path("/proc/stat").read_text()
        idle = (idle_s(second, c, ticks_per_s) - idle_s(first, c, ticks_per_s) for c in watched)
        if min(idle) >= _IDLE_SHARE * _LOOK_S:
            return


def polling_threads() -> dict[int, str]:
    """Return the kernel threads of threaded NAPI: pid -> name, ``napi/INTERFACE-NUMBER``."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                name = (entry / "comm").read_text().strip()
            except OSError:
                continue  # it has ended
            if name.startswith("napi/"):
                found[int(entry.name)] = name
    return found
