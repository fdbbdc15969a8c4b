"""Reads what the kernel has counted, from the pinned tables, while packets flow."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, libbpf, pins
from agent.dataplane.tables import Table

_PERIOD_S = 0.001
_SLOW_NS = 5_000_000  # a reading that took longer says nothing about a moment
_TCP = 6


@dataclass(frozen=True, slots=True)
class Moment:
    """The waiting bytes of some backends between two times, and what they had answered by then:
    how many requests, and the sum of their times.
    """

    from_ns: int
    to_ns: int
    waiting: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    answers_us: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted of a backend."""

    first_byte: tuple[int, ...]  # requests by bucket of time
    first_byte_us: int
    handshakes: int
    answers: int


def table(path: Path, dtype: np.dtype[np.void]) -> Table:
    """Return a shared table, opened only for reading."""
    fd = libbpf.object_get(path)
    try:
        entries = libbpf.map_info(fd).max_entries
        length = -(-entries * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)
    return np.frombuffer(memory, dtype=dtype, count=entries)


class Ledger:
    """The shared tables of an instance, opened only for reading."""

    def __init__(self, instance: str) -> None:
        self._pins = pins.pins_of(instance)
        self._backends = table(self._pins.table("backends"), abi.BACKEND)
        self._load = table(self._pins.table("backend_load"), abi.BACKEND_LOAD)
        self._latency = table(self._pins.table("backend_latency"), abi.BACKEND_LATENCY)
        self._count = table(self._pins.table("backend_count"), abi.BACKEND_COUNTERS)

    def backend_of(self, vip: IPv4Address | IPv6Address, port: int) -> int:
        """The id of the only backend of a TCP service."""
        key_type = abi.SERVICE_KEY4 if vip.version == 4 else abi.SERVICE_KEY6
        fd = libbpf.object_get(self._pins.table(f"services{vip.version}"))
        try:
            items = dict(libbpf.map_items(fd, key_type.itemsize, abi.SERVICE.itemsize))
        finally:
            os.close(fd)
        value = items[vip.packed + port.to_bytes(2, "big") + bytes((_TCP, 0))]
        service = int(np.frombuffer(value, dtype=abi.SERVICE)[0]["id"])
        (backend,) = np.flatnonzero(self._backends["service"] == service)
        return int(backend)

    def waiting(self, backends: Sequence[int]) -> npt.NDArray[np.int64]:
        """Their waiting bytes now."""
        rows = self._load[list(backends)]
        waiting: npt.NDArray[np.int64] = rows["waiting"] + rows["waiting_fix"]
        return waiting

    def read(self, backends: Sequence[int]) -> Moment:
        """Their waiting bytes at a moment that is known."""
        from_ns = time.monotonic_ns()
        waiting = self.waiting(backends)
        to_ns = time.monotonic_ns()
        rows = self._latency[list(backends)]
        answers = rows["first_byte"].sum(axis=1).astype(np.int64)
        return Moment(from_ns, to_ns, waiting, answers, rows["first_byte_us"].astype(np.int64))

    def counted(self, backend: int) -> Counted:
        """What was counted of it so far."""
        latency = self._latency[backend]
        rows = self._count.reshape(-1, len(self._backends) - abi.PEER_ROWS)
        return Counted(
            tuple(int(n) for n in latency["first_byte"]),
            int(latency["first_byte_us"]),
            int(latency["handshake"].sum()),
            int(rows["answers"][:, backend].sum()),
        )


@dataclass
class Watch:
    """Reads the waiting bytes again and again, about a thousand times a second."""

    ledger: Ledger
    backends: Sequence[int]
    readings: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            reading = self.ledger.read(self.backends)
            if reading.to_ns - reading.from_ns < _SLOW_NS:
                self.readings.append(reading)

    def curve(self, backend: int) -> list[tuple[int, int, int]]:
        """(from, to, waiting bytes) of one backend."""
        place = self.backends.index(backend)
        return [(r.from_ns, r.to_ns, int(r.waiting[place])) for r in self.readings]

    def times_us(self, backend: int) -> list[float]:
        """How long each of its requests had waited, in the order of their answers. The kernel
        keeps the sum alone: answers within a millisecond share what it grew by.
        """
        place, count, total = self.backends.index(backend), 0, 0
        times: list[float] = []
        for reading in self.readings:
            more = int(reading.answers[place]) - count
            more_us = int(reading.answers_us[place]) - total
            if more and more_us:
                times += [more_us / more] * more
                count, total = count + more, total + more_us
        return times
