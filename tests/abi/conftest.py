"""The compiled program whose layouts are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.dataplane import pins
from agent.dataplane.program import Dataplane
from agent.model import Config
from tests.packet import harness


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here load programs."""
    here = f"{Path(__file__).parent}/"
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="session")
def compiled() -> Iterator[Dataplane]:
    name = harness.instance_name("abi")
    config = Config(name, "lo", tables=harness.SMALL)
    yield harness.load(config, harness.all_features())
    pins.remove(pins.pins_of(name))


@pytest.fixture
def instance() -> Iterator[str]:
    """The name of an instance whose pins go when the test ends."""
    name = harness.instance_name("layout")
    pins.remove(pins.pins_of(name))
    yield name
    pins.remove(pins.pins_of(name))
