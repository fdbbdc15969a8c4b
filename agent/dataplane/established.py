"""Owns reading the flows that the packet path has just established."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.dataplane import libbpf, ringbuf
from agent.dataplane.program import Dataplane
from agent.logs import get_logger

log = get_logger()

BATCH = 4096  # slots taken from the ring at a time; the rest waits for the next batch
PAUSE_S = 0.005  # between two batches, so that many flows cost little more than a few
_SLOT = np.dtype("u4")


def ring_of(dataplane: Dataplane) -> tuple[int, int] | None:
    """Return the ring buffer of the program that runs: the id of its map, and the descriptor.

    None if this program does not report new flows.
    """
    if not dataplane.features.sync:
        return None
    fd = dataplane.program.tables["established"]
    return libbpf.map_info(fd).id, fd


class _Ring(Protocol):
    """The part of ``ringbuf.Ring`` that is used here."""

    fd: int

    def take(self, limit: int) -> list[bytes]: ...

    def close(self) -> None: ...


class Established:
    """Hands slots of newly established flows to ``tell``, in batches, in the event loop.

    ``ring`` returns the ring that the program that runs now fills; None: there is none. Slots that
    are lost when a program is replaced, or while nothing reads the ring, do no harm: the receiver
    has to look at the whole table from time to time anyway.
    """

    def __init__(
        self,
        ring: Callable[[], tuple[int, int] | None],
        tell: Callable[[npt.NDArray[np.int64]], None],
        open_ring: Callable[[int], _Ring] = ringbuf.Ring,
    ) -> None:
        self._wanted = ring
        self._tell = tell
        self._open_ring = open_ring
        self._ring: _Ring | None = None
        self._ident = 0  # the id of the map
        self._pausing: asyncio.TimerHandle | None = None

    def refresh(self) -> None:
        """Read the ring of the program that runs now, which may be another one than before."""
        wanted = self._wanted()
        if (wanted[0] if wanted else 0) == self._ident:
            return
        self.close()
        if wanted is None:
            return
        try:
            self._ring = self._open_ring(wanted[1])
        except OSError as error:  # the next call tries again
            log.error("new flows are told later", problem=str(error))
            return
        self._ident = wanted[0]
        self._listen()

    def close(self) -> None:
        """Stop reading."""
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None
        if self._ring is not None:
            asyncio.get_running_loop().remove_reader(self._ring.fd)
            self._ring.close()
        self._ring, self._ident = None, 0

    def _listen(self) -> None:
        self._pausing = None
        if self._ring is not None:
            asyncio.get_running_loop().add_reader(self._ring.fd, self._readable)

    def _readable(self) -> None:
        """Take a batch, then leave the ring alone for a moment."""
        ring = self._ring
        if ring is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(ring.fd)
        try:
            slots = np.frombuffer(b"".join(ring.take(BATCH)), dtype=_SLOT).astype(np.int64)
            if len(slots):
                self._tell(slots)
        except Exception:  # this callback's root; the next survey finds the flows
            log.exception("reading new flows broke")
            self.close()
            return
        self._pausing = loop.call_later(PAUSE_S, self._listen)
