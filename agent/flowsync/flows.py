"""The link's interface to the flow table: it gives records for one peer and takes the peer's."""

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

    ``identities``: what the ids in the records stand for, if the peer has to learn that first.
    ``complete``: this look and the ones before it have covered the whole table.
    ``wants_resync``: records that the peer sent earlier may mean something only now.
    """

    identities: bytes | None
    records: bytes
    flows: int
    gone: int  # flows that are over
    complete: bool
    wants_resync: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """The outcome of received records. ``account`` counts them; call it from the event loop."""

    flows: int
    gone: int
    installed: int
    dropped: Mapping[str, int]  # by reason
    account: Callable[[], None]


class Flows(Protocol):
    """The flows exchanged with one peer. The methods may take long, so they are run in threads."""

    record_bytes: int  # the length of one record

    def begin(self) -> bytes:
        """Begin to send everything, with ``part``. Return what the ids stand for."""

    def part(self) -> Look | None:
        """Return the next part of everything, or None after the last part."""

    def changed(self, *, unfinished: bool = False) -> Look:
        """Return what the peer does not know yet. ``unfinished`` includes flows with an unfinished
        handshake.
        """

    def named(self, slots: SlotNumbers) -> Look:
        """Return what the peer does not know yet about the flows in these slots."""

    def meet(self, identities: bytes) -> None:
        """Learn what the peer's ids stand for. ValueError if they make no sense."""

    def begin_full(self) -> None:
        """Note that the peer begins to send everything."""

    def end_full(self) -> Installed:
        """Note that the peer has sent everything."""

    def install(self, records: bytes) -> Installed:
        """Take records of the peer. ValueError if they make no sense."""
