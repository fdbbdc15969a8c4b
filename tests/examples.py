"""How many examples of a property are tried."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> int:
    """So many of which `make soak` tries ``count``: a part, as of properties that name no number.

    Those of `make test` are the same ones each time, so that more of them find little; those of the
    soak are others each time.
    """
    return max(5, count * settings().max_examples // 100)
