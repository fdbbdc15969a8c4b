"""What the link asks of the flow table: records to tell one peer, and a place for what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

type SlotNumbers = npt.NDArray[np.int64]  # indices in the flow table


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the flow table found for the peer.

    ``identities``: what the ids in the records stand for, if the peer has to know first.
    ``complete``: the whole table was looked at, by this look and those before it.
    ``wants_resync``: what the peer told before may mean something only now.
    """

    identities: bytes | None
    records: bytes
    flows: int
    gone: int  # flows that are over
    complete: bool
    wants_resync: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """What came of received records. ``account`` counts them in, from the event loop."""

    flows: int
    gone: int
    installed: int
    dropped: Mapping[str, int]  # by reason
    account: Callable[[], None]


class Flows(Protocol):
    """What is told to one peer and heard of it. Its methods may take long: for threads."""

    record_bytes: int  # so long is one

    def begin(self) -> bytes:
        """The peer is to be told everything, by ``part``; what the ids stand for."""

    def part(self) -> Look | None:
        """The next part of everything; None: that was all."""

    def changed(self, *, unfinished: bool = False) -> Look:
        """What the peer does not know yet; with those whose handshake is unfinished, or without."""

    def named(self, slots: SlotNumbers) -> Look:
        """What the peer does not know yet of the flows in these slots."""

    def meet(self, identities: bytes) -> None:
        """What the peer's ids stand for. ValueError if it makes no sense."""

    def begin_full(self) -> None:
        """The peer begins to tell everything."""

    def end_full(self) -> Installed:
        """The peer has told everything."""

    def install(self, records: bytes) -> Installed:
        """Take what the peer tells. ValueError if it makes no sense."""
