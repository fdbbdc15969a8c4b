"""Runs NumPy work in threads, outside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def in_thread[T](work: Callable[[], T], then: Callable[[T], None] | None = None) -> T:
    """Run ``work`` in a thread and then ``then``, with its result, in the event loop.

    A caller that is cancelled meanwhile still waits for both to end, so that nothing goes on
    running after its owner is gone.
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
