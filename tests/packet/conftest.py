"""The loaded data plane of the packet tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.dataplane import pins
from agent.dataplane.program import Dataplane
from agent.model import Config
from tests.packet import harness


@pytest.fixture(scope="session")
def loaded() -> Iterator[Dataplane]:
    """Every feature, small tables; lo is only named, nothing is attached."""
    harness.remove_leftovers()
    dataplane = harness.load(
        Config(harness.instance_name(), "lo", tables=harness.SMALL), harness.all_features()
    )
    try:
        yield dataplane
    finally:
        dataplane.tables.close()
        pins.remove(dataplane.pins)


@pytest.fixture
def rig(loaded: Dataplane) -> Iterator[harness.Rig]:
    """The data plane, empty."""
    rig = harness.Rig(loaded)
    yield rig
    rig.reset()
