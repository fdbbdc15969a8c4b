"""Owns the clocks: what a virtual machine cost, as it says itself and as its host says."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from vagrant.smoke.children import VagrantError

_TICKS_PER_S = 100  # of /proc/stat: the same on every Linux of this architecture
_VCPU = re.compile(r"CPU \d+/(TCG|KVM)")  # how QEMU calls the threads
GUEST_QUESTION = ("cat", "/proc/uptime", "/proc/stat")


@dataclass(frozen=True, slots=True)
class Moment:
    """Readings at one time, in seconds that only grow."""

    wall_s: float  # the host's clock
    vcpu_s: float  # CPU time that the host gave to the machine's processors
    vcpu_waited_s: float  # time in which they wanted to run and could not
    device_s: float  # CPU time of the rest of its process: network cards, timers
    others_s: float  # CPU time on the host that no virtual machine had
    guest_wall_s: float  # the guest's clock
    guest_busy_s: float  # all but idle and iowait, in the guest


@dataclass(frozen=True, slots=True)
class Spent:
    """What passed between two moments."""

    wall_s: float
    vcpu_s: float
    vcpu_waited_s: float
    device_s: float
    others_s: float
    guest_wall_s: float
    guest_busy_s: float


def between(first: Moment, second: Moment) -> Spent:
    """What was spent from the first moment to the second."""
    names = Spent.__dataclass_fields__
    return Spent(**{name: getattr(second, name) - getattr(first, name) for name in names})


@dataclass(frozen=True, slots=True)
class Cost:
    """What 10,000 connections cost above idling, in CPU seconds."""

    guest_s: float
    vcpu_s: float
    device_s: float


def cost(idle: Spent, loaded: Spent, connections: int) -> Cost:
    """Above what the same machine needed just before, without the load, for as long."""
    host = loaded.wall_s / idle.wall_s
    guest = loaded.guest_wall_s / idle.guest_wall_s
    each = 10_000 / connections
    return Cost(
        guest_s=each * (loaded.guest_busy_s - guest * idle.guest_busy_s),
        vcpu_s=each * (loaded.vcpu_s - host * idle.vcpu_s),
        device_s=each * (loaded.device_s - host * idle.device_s),
    )


def guest(text: str) -> tuple[float, float]:
    """The guest's clock and its busy seconds, from the answer to ``GUEST_QUESTION``."""
    uptime, stat = text.split("\n", 1)
    wall_s = float(uptime.split()[0])
    return wall_s, busy_s(stat, wall_s)


def busy_s(stat: str, wall_s: float) -> float:
    """Seconds of all CPUs but idle and iowait, from the text of /proc/stat; differences count.

    A kernel that has no tick while it sleeps knows exactly how long that was. What its CPUs did
    when they were awake it samples, and misses interrupts that end a sleep.
    """
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    if not lines or lines[0][0] != "cpu":
        raise ValueError("/proc/stat does not begin with all CPUs")
    asleep_s = sum(int(field) for field in lines[0][4:6]) / _TICKS_PER_S
    return wall_s * (len(lines) - 1) - asleep_s


def split(threads: Iterable[tuple[str, str]]) -> tuple[float, float, float]:
    """CPU time of vCPUs, their waiting, and CPU time of all other threads of a process.

    ``threads``: the text of ``comm`` and of ``schedstat`` for each.
    """
    vcpu = waited = device = 0
    for comm, schedstat in threads:
        ran, queued, _ = map(int, schedstat.split())
        if _VCPU.fullmatch(comm.strip()):
            vcpu, waited = vcpu + ran, waited + queued
        else:
            device += ran
    return vcpu / 1e9, waited / 1e9, device / 1e9


class Host:
    """The processes of the virtual machines on this host."""

    def __init__(self, machine: str, identities: dict[str, str]) -> None:
        """``machine``: the one that is measured; ``identities``: the UUID of every machine."""
        found = {name: process(identity) for name, identity in identities.items()}
        self._measured = found.pop(machine)
        self._neighbours = tuple(found.values())

    def now(self, guest_text: str) -> Moment:
        """The readings at this time; the guest was asked just before."""
        vcpu_s, waited_s, device_s = split(_threads(self._measured))
        machines_s = vcpu_s + device_s
        for pid in self._neighbours:
            ran_s, _, rest_s = split(_threads(pid))
            machines_s += ran_s + rest_s
        guest_wall_s, guest_busy_s = guest(guest_text)
        wall_s = time.monotonic()
        return Moment(
            wall_s=wall_s,
            vcpu_s=vcpu_s,
            vcpu_waited_s=waited_s,
            device_s=device_s,
            others_s=busy_s(Path("/proc/stat").read_text(), wall_s) - machines_s,
            guest_wall_s=guest_wall_s,
            guest_busy_s=guest_busy_s,
        )


def process(identity: str) -> int:
    """The process of QEMU that runs a machine; raises VagrantError."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue  # it ended meanwhile
            if runs(words, identity):
                return int(entry.name)
    raise VagrantError(
        f"no process of QEMU runs the machine {identity}",
        remedy="run the comparison on the host of the machines; it can measure those of libvirt",
    )


def runs(words: list[str], identity: str) -> bool:
    """Whether a command line is that of the machine."""
    program = words[0].rpartition("/")[2]
    return program.startswith("qemu-") and ("-uuid", identity) in pairwise(words)


def _threads(pid: int) -> Iterable[tuple[str, str]]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            yield (task / "comm").read_text(), (task / "schedstat").read_text()
        except OSError:
            continue  # a worker that has ended: those live short, and cost nearly nothing
