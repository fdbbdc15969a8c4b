"""What the conversion of another balancer's configuration results in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

type Document = dict[str, object]


@dataclass(frozen=True, slots=True)
class Note:
    """What was not converted, or only nearly, and the line of the original.

    Line 0: it concerns the file as a whole.
    """

    line: int
    text: str


class Placed(Protocol):
    """Something that stands on a line of the original."""

    @property
    def line(self) -> int:
        """The number of the line."""


@dataclass(slots=True)
class Converted:
    """A configuration as a document, and what a person has to know about it.

    ``is_complete``: whether every service of the original that carries clients' packets has become
    a service here.
    """

    document: Document = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    is_complete: bool = True

    def note(self, at: Placed, text: str) -> None:
        """Add a note about a statement."""
        self.notes.append(Note(at.line, text))
