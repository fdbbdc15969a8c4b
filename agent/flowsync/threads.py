"""Owns how work of numpy leaves the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def in_thread[T](work: Callable[[], T], then: Callable[[T], None] | None = None) -> T:
    """Do it in a thread, ``then`` in the event loop.

    Who is cancelled meanwhile waits for the end of both, so that nothing goes on without its
    owner.
    """
    doing = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise
    finally:
        if then and doing.done() and not doing.cancelled() and doing.exception() is None:
            then(doing.result())
    return doing.result()
