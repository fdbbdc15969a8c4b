"""Decides which first bytes of a service's answers are heads, where they cannot be read.

An engine that streams sends the head of its answer when it has read the request, and the first
token when it has computed it. Under TLS, and where only acknowledgements pass, both are but bytes.
But a service's heads are of a few sizes, constant to some bytes (measured with vLLM, llama.cpp and
nginx), and the longer wait is behind them. The packet path notes what came before answers, how long
the pause behind it was, and how long answers are that came at once. Where many of those are of one
size, they may be late heads: the packet path then takes some for heads, to see what comes.
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

KEPT = 256  # notes of a service
KNOWN_FROM = 20
_SURE_FROM = 60  # that heads differ too much: sizes that are seldom come together by then
_GROUP_FROM = 4
HEAD_MAX = 1024  # bytes: no head is longer
_SUSPECT_FROM = 20  # answers of one size
_CLEARED_FROM = 8  # of which so many have been looked at
_GAP = 4  # bytes between sizes of one group
_WIDEST = 32  # bytes: what differs more is no head
_LONGEST = 2048  # bytes, with the session tickets before it
_FOLLOWED = 0.9  # of a group
_MISSED = 0.1  # of all notes
# So much longer is the pause behind a head than the time before it. (Behind a token of an engine
# that is slow, the pause can be as long as the time to it.)
_BEHIND = 2.0
# Of a group, and more than the answers that themselves, behind a pause, came to that size: a token
# that is quick, and the next one late, looks like a head. Other answers that begin with as many
# bytes may go on at once: to take those for a head, too, changes nothing.
_WAITED_FOR = 0.25


class FirstByte(enum.Enum):
    """What the times of a service's answers are the times of."""

    TOKEN = "token"  # noqa: S105 (not that kind of token)
    HEAD = "head"  # or may be: heads differ too much to be told
    UNKNOWN = "unknown"  # so far


@dataclass(frozen=True, slots=True)
class Notes:
    """What answers began with, oldest first. ``upto``: bytes with those that the answer itself
    began with, where it came behind others. ``before_s`` from the request to those bytes,
    ``pause_s`` from there to the answer; ``is_followed``: an answer came behind them;
    ``is_head``: false where they were taken for the answer at once.
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
        """The newest of both."""
        return Notes(
            *(
                np.concatenate((getattr(self, name), getattr(more, name)))[-KEPT:]
                for name in Notes.__slots__
            )
        )

    def of(self, those: Flags | npt.NDArray[np.intp]) -> Notes:
        """Some of them."""
        return Notes(*(getattr(self, name)[those] for name in Notes.__slots__))

    @property
    def waits_behind(self) -> Flags:
        """Where most of the time is the pause: the bytes were a head."""
        found: Flags = self.is_head & self.is_followed & (self.pause_s >= _BEHIND * self.before_s)
        return found


NO_NOTES = Notes(
    *(np.zeros(0, dtype=np.int64),) * 2,
    *(np.zeros(0, dtype=np.bool_),) * 3,
    *(np.zeros(0),) * 2,
)


@dataclass(frozen=True, slots=True)
class Judged:
    """The sizes that are heads, of later answers of a connection and of the first.
    ``suspects``: of some answers the packet path has to find out whether they are heads.
    """

    later: tuple[Range, ...] = ()
    first: tuple[Range, ...] = ()
    first_byte: FirstByte = FirstByte.UNKNOWN
    suspects: bool = False


def judged(notes: Notes, room: int) -> Judged:
    """What the notes tell; ``room``: how many sizes of each kind can be named."""
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
    told = FirstByte.HEAD if len(notes) >= _SURE_FROM else FirstByte.UNKNOWN
    return Judged(later, first, told)


def ranges(notes: Notes) -> tuple[Range, ...]:
    """The sizes that are heads, the most usual first."""
    heads = [group for group in _groups(notes.of(notes.is_head)) if _are_heads(group, notes)]
    heads.sort(key=len, reverse=True)
    return tuple(map(_range, heads))


def _groups(notes: Notes) -> list[Notes]:
    """By size."""
    order = np.argsort(notes.size, kind="stable")
    places = np.split(order, np.flatnonzero(np.diff(notes.size[order]) > _GAP) + 1)
    return [notes.of(group) for group in places if len(group)]


def _range(group: Notes) -> Range:
    return max(1, int(group.size.min()) - _GAP), int(group.size.max()) + _GAP


def _has_suspects(notes: Notes) -> bool:
    """Whether many answers that came at once are of one size, and few of that were looked at."""
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
