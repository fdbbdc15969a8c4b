"""Accounts for every line of a configuration, so that none is dropped without a word.

A line is either taken (it went into the result), named in a note with the reason, covered by the
note of its section, or idle: it only concerns HAProxy itself and means nothing here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from lbctl.converted import Converted, Note
from lbctl.haproxy.grammar import Line

_MOST_NAMED = 12  # keywords in the summary of what means nothing here


class Ledger:
    """The lines of one configuration, and what became of each."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.taken: set[int] = set()
        self.covered: set[int] = set()
        self.idle: dict[int, str] = {}
        self.notes: dict[Note, None] = {}
        self.is_complete = True

    def take(self, *lines: Line) -> None:
        """Account for lines that went into the result."""
        self.taken.update(line.line for line in lines)

    def note(self, line: Line, text: str) -> None:
        """Name a line that is not converted, or only nearly, with the reason or the remedy."""
        self.notes.setdefault(Note(line.line, text))
        self.covered.add(line.line)

    def lose(self, line: Line, text: str) -> None:
        """Name a line for whose lack the result is not what clients need."""
        self.note(line, text)
        self.is_complete = False

    def cover(self, lines: Iterable[Line]) -> None:
        """Account for lines by a note on another line."""
        self.covered.update(line.line for line in lines)

    def rest(self, line: Line, keyword: str) -> None:
        """Account for a line that only concerns HAProxy itself."""
        self.idle[line.line] = keyword

    def knows(self, line: Line) -> bool:
        """Return whether a line is accounted for."""
        return any(line.line in known for known in (self.taken, self.covered, self.idle))

    def usable(self, line: Line) -> bool:
        """Return whether a line may be converted; name it if it depends on the environment."""
        if not line.variables:
            self.take(line)
            return True
        names = ", ".join(f"${name}" for name in line.variables)
        self.lose(line, f"{names}: environment variables are not known here; write the value in")
        return False

    def into(self, made: Converted) -> None:
        """Put the notes into the result, those about the whole file first."""
        made.notes += sorted(self.notes, key=lambda note: note.line)
        made.is_complete = self.is_complete
        if not self.idle:
            return
        counts = Counter(self.idle.values())
        named = [f"{word} ({n})" if n > 1 else word for word, n in counts.most_common(_MOST_NAMED)]
        more = ", …" if len(counts) > _MOST_NAMED else ""
        total = len(self.idle)
        what = "1 line concerns only" if total == 1 else f"{total} lines concern only"
        text = f"{what} HAProxy itself, and nothing has to be done about it"
        made.notes.append(Note(0, f"{text}: {', '.join(named)}{more}"))
