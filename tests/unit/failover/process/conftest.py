"""What a failover process does to its whole process must not outlive its test."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Its garbage collector is off: other tests would run out of memory and descriptors.

    What it has exempted stays so: to look through all tests once takes half a second.
    """
    yield
    gc.enable()
