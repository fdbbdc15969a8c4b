"""The configuration that most tests of the state start from."""

import pytest

from agent.model import Config
from tests.unit.state.world import TABLES, A, B, web


@pytest.fixture
def config() -> Config:
    """One service, two backends."""
    return Config("test", "eth0", tables=TABLES, services=(web(A, B),))
