"""What the garbage collector looks at, and when."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from agent import garbage

MANY = 300_000  # enough for Python to collect everything


class Circle:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    gc.freeze()  # so that the count of objects begins at zero
    yield
    gc.enable()


def full_collections() -> int:
    return gc.get_stats()[2]["collections"]


def test_many_objects_are_made_without_a_full_collection_and_then_exempt() -> None:
    before, exempt = full_collections(), gc.get_freeze_count()
    with garbage.lasting_objects():
        made = [[n] for n in range(MANY)]
    assert gc.isenabled()
    assert full_collections() == before
    assert gc.get_freeze_count() >= exempt + len(made)


def test_python_alone_collects_everything_meanwhile() -> None:
    """What ``lasting_objects`` is for: without it, the collector looks at all of them."""
    gc.collect()
    before = full_collections()
    made = [[n] for n in range(MANY)]
    assert made
    assert full_collections() > before


def test_few_objects_are_not_exempt() -> None:
    exempt = gc.get_freeze_count()
    with garbage.lasting_objects():
        made = [[n] for n in range(100)]
    assert made
    assert gc.isenabled()
    assert gc.get_freeze_count() == exempt


def test_the_collector_is_on_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="refused"), garbage.lasting_objects():
        raise ValueError("refused")
    assert gc.isenabled()


def test_exempt_garbage_is_found_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service is removed long after the reload that brought it."""
    monkeypatch.setattr(garbage, "_COLLECT_ALL_S", 0.01)
    circle = Circle()
    gone = weakref.ref(circle)
    garbage.exempt_and_enable()
    del circle
    gc.collect()
    assert gone() is not None

    async def wait() -> None:
        task = asyncio.create_task(garbage.keep_collecting())
        while gone() is not None:
            await asyncio.wait([task], timeout=0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(wait(), 10))
    assert gc.get_freeze_count() > 0, "what is left is exempt again"
