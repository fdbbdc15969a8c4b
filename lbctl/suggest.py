"""Suggests what a mistyped name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar, if any is similar at all."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str], *, what: str = "") -> str:
    """Return a remedy for a name that does not exist: the most similar one, or else all of them."""
    names = sorted(known)
    guess = nearest(name, names)
    if guess is not None:
        return f"did you mean {guess}?"
    if not names:
        return f"there are no {what} yet" if what else ""
    shown = ", ".join(names[:12])
    return f"available: {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
