"""Decides which first bytes of a service's answers are heads, where they cannot be read.

An engine that streams sends the head of its answer when it has read the request, and the first
token when it has computed it. Under TLS, and where only acknowledgements pass, the two cannot be
told apart by content. But a service's heads have a few sizes, constant to some bytes (measured with
vLLM, llama.cpp and nginx), and the longer wait comes after them. The packet path notes the bytes
that came before answers, how long the pause after them was, and the sizes of answers that came at
once. If many of the latter have one size, they may be late heads; the packet path then treats some
of them as heads, to see what follows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

type Sizes = npt.NDArray[np.int64]
type Flags = npt.NDArray[np.bool_]
type Seconds = npt.NDArray[np.float64]
type Range = tuple[int, int]  # bytes, both ends included

KEPT = 256  # notes per service
KNOWN_FROM = 20  # notes from which on the first byte is judged
# Notes from which on it is certain that heads differ too much, as even rare sizes have formed
# groups by then.
_SURE_FROM = 60
_GROUP_FROM = 4  # notes from which on a group can be a head
HEAD_MAX = 1024  # bytes; no head is longer
_SUSPECT_FROM = 20  # answers of one size that came at once, from which on they are suspects
_CLEARED_FROM = 8  # looks at answers of that size after which they no longer are
_GAP = 4  # bytes between neighbouring sizes of one group, at most
_WIDEST = 32  # bytes; sizes that differ more are not heads
_LONGEST = 2048  # bytes, including session tickets before the head
_FOLLOWED = 0.9  # share of a group behind which an answer must have come
_MISSED = 0.1  # share of all notes whose heads may have unknown sizes
# The pause after a head is at least this many times as long as the time before it. (After a token
# of a slow engine, the pause can be as long as the time before that token.)
_BEHIND = 2.0
# This share of a group must have waited; and they must be more than the answers that came after a
# pause and, with the bytes before them, make up that size. A quick token whose successor is late
# looks like a head. Other answers that begin with as many bytes may continue at once; treating them
# as heads too changes nothing.
_WAITED_FOR = 0.25


class FirstByte(enum.Enum):
    """What a service's times to the first byte measure."""

    TOKEN = "token"  # noqa: S105 (not that kind of token)
    HEAD = "head"  # at least sometimes: heads differ too much to be recognised
    UNKNOWN = "unknown"  # too few notes so far


@dataclass(frozen=True, slots=True)
class Notes:
    """What answers began with, as arrays of one length, the oldest first.

    ``size``: the first bytes. ``upto``: these plus the first bytes of the answer itself, if that
    came after them. ``before_s``: from the request to the first bytes; ``pause_s``: from there to
    the answer. ``is_followed``: an answer came after them. ``is_head``: false if they were taken
    for the answer at once.
    """

    size: Sizes
    upto: Sizes
    is_first: Flags  # of their connections
    is_head: Flags
    is_followed: Flags
    before_s: Seconds
    pause_s: Seconds

    def __len__(self) -> int:
        return len(self.size)

    def then(self, more: Notes) -> Notes:
        """Return the newest notes of both."""
        return Notes(
            *(
                np.concatenate((getattr(self, name), getattr(more, name)))[-KEPT:]
                for name in Notes.__slots__
            )
        )

    def of(self, chosen: Flags | npt.NDArray[np.intp]) -> Notes:
        """Return the chosen ones of them."""
        return Notes(*(getattr(self, name)[chosen] for name in Notes.__slots__))

    @property
    def waits_behind(self) -> Flags:
        """Which notes have most of their time in the pause, so that the first bytes were a head."""
        found: Flags = self.is_head & self.is_followed & (self.pause_s >= _BEHIND * self.before_s)
        return found


NO_NOTES = Notes(
    *(np.zeros(0, dtype=np.int64),) * 2,
    *(np.zeros(0, dtype=np.bool_),) * 3,
    *(np.zeros(0),) * 2,
)


@dataclass(frozen=True, slots=True)
class Judged:
    """The sizes that are heads, for the first answer of a connection and for later ones.

    ``suspects``: the packet path has to find out of some answers whether they are heads.
    """

    later: tuple[Range, ...] = ()
    first: tuple[Range, ...] = ()
    first_byte: FirstByte = FirstByte.UNKNOWN
    suspects: bool = False


def judged(notes: Notes, room: int) -> Judged:
    """Return what follows from the notes; ``room``: how many sizes of each kind can be stored."""
    kinds = [notes.of(notes.is_first == which) for which in (False, True)]
    later, first = (ranges(kind)[:room] for kind in kinds)
    suspects = any(map(_has_suspects, kinds))
    if suspects or len(notes) < KNOWN_FROM:
        return Judged(later, first, suspects=suspects)
    known = np.zeros(len(notes), dtype=np.bool_)
    for which, found in ((False, later), (True, first)):
        for least, most in found:
            known |= (notes.is_first == which) & (notes.size >= least) & (notes.size <= most)
    missed = int((notes.waits_behind & ~known).sum())
    if missed <= _MISSED * len(notes):
        return Judged(later, first, FirstByte.TOKEN)
    verdict = FirstByte.HEAD if len(notes) >= _SURE_FROM else FirstByte.UNKNOWN
    return Judged(later, first, verdict)


def ranges(notes: Notes) -> tuple[Range, ...]:
    """Return the sizes that are heads, the most frequent first."""
    heads = [group for group in _groups(notes.of(notes.is_head)) if _are_heads(group, notes)]
    heads.sort(key=len, reverse=True)
    return tuple(map(_range, heads))


def _groups(notes: Notes) -> list[Notes]:
    """Split the notes into groups of similar size."""
    order = np.argsort(notes.size, kind="stable")
    places = np.split(order, np.flatnonzero(np.diff(notes.size[order]) > _GAP) + 1)
    return [notes.of(group) for group in places if len(group)]


def _range(group: Notes) -> Range:
    return max(1, int(group.size.min()) - _GAP), int(group.size.max()) + _GAP


def _has_suspects(notes: Notes) -> bool:
    """Return whether many answers that came at once have one size that was looked at too rarely."""
    heads = notes.of(notes.is_head)
    for group in _groups(notes.of(~notes.is_head & (notes.size <= HEAD_MAX))):
        least, most = _range(group)
        if len(group) < _SUSPECT_FROM or most - least > _WIDEST:
            continue
        if ((heads.size >= least) & (heads.size <= most)).sum() < _CLEARED_FROM:
            return True
    return False


def _are_heads(group: Notes, notes: Notes) -> bool:
    if len(group) < _GROUP_FROM or np.ptp(group.size) > _WIDEST:
        return False
    if group.size.max() > _LONGEST:
        return False
    if group.is_followed.mean() < _FOLLOWED:
        return False
    waits = int(group.waits_behind.sum())
    least, most = _range(group)
    tokens = notes.waits_behind & (notes.upto >= least) & (notes.upto <= most)
    return waits >= _WAITED_FOR * len(group) and waits > int(tokens.sum())
