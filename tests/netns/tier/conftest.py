"""What the tests of a tier share: two engines, and a tier that asks for no keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.tier.rig import Engine, TierUnderTest, tier


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("chat") as one:
        yield one


@pytest.fixture(scope="module")
def other() -> Iterator[Engine]:
    with Engine("other") as one:
        yield one


@pytest.fixture
def open_(tmp_path: Path, engine: Engine) -> Iterator[TierUnderTest]:
    """A tier without keys."""
    with tier(tmp_path, engine.at) as made:
        yield made
