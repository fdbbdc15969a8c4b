"""Decides when Python's cyclic garbage collector looks at the objects of the agent.

Nearly everything here is freed by its reference count; the collector is needed only for objects
that refer to each other in a circle. A collection of everything stops the agent for as long as it
lasts: 0.1 to 0.25 s with 10,000 backends (docs/scale.md). By itself, the collector begins one
whenever the objects have become a quarter more, so a reload paid for four. It should therefore not
look at objects that are made to stay, which are those of the configuration.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_MANY_OBJECTS = 50_000  # those of about 300 backends; fewer are collected in a few milliseconds
_COLLECT_ALL_S = 3600.0


@contextmanager
def lasting_objects() -> Iterator[None]:
    """Leave the collector off, and afterwards exempt all objects from it if many have been made.

    Objects that are exempt are freed by their reference count as before. Circles of them wait for
    ``keep_collecting``.
    """
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] > _MANY_OBJECTS:  # made, less freed, since the last collection
            gc.freeze()
        gc.enable()


def exempt_and_enable() -> None:
    """Exempt all objects from the collector, and turn it on."""
    gc.freeze()
    gc.enable()


def collect_all() -> None:
    """Collect the garbage of all objects, and exempt from now on what is left."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def keep_collecting() -> None:
    """Collect all garbage once an hour, for ever."""
    while True:
        await asyncio.sleep(_COLLECT_ALL_S)
        collect_all()
