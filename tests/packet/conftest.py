"""The loaded data plane of the packet tests, and a network of one's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.dataplane import pins
from agent.dataplane.program import Dataplane, require_root
from agent.model import Config, Hook
from tests.packet import harness, nodes
from tests.pairs import HOOKED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here load programs."""
    here = f"{Path(__file__).parent}/"
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="session")
def loaded() -> Iterator[Dataplane]:
    """Every feature, small tables; lo is only named, nothing is attached."""
    require_root()
    harness.remove_leftovers()
    dataplane = harness.load(
        Config(harness.instance_name(), "lo", tables=harness.SMALL),
        harness.all_features(),
        keys=harness.KEYS,
    )
    try:
        yield dataplane
    finally:
        harness.close(dataplane)
        pins.remove(dataplane.pins)


@pytest.fixture
def rig(loaded: Dataplane) -> Iterator[harness.Rig]:
    """The data plane, empty."""
    rig = harness.Rig(loaded, is_empty=True)
    yield rig
    rig.reset()


@pytest.fixture
def one_cpu() -> Iterator[int]:
    """Every packet of the test comes to this CPU: turns, and which service was found where, are of
    each CPU.
    """
    home = os.sched_getaffinity(0)
    cpu = min(home)
    os.sched_setaffinity(0, {cpu})
    yield cpu
    os.sched_setaffinity(0, home)


@pytest.fixture(scope="session")
def loaded_tc() -> Iterator[Dataplane]:
    """The same for tc."""
    require_root()
    dataplane = harness.load(
        Config(harness.instance_name("tc"), "lo", hook=Hook.TC, tables=harness.SMALL),
        harness.all_features(),
        keys=harness.KEYS,
    )
    try:
        yield dataplane
    finally:
        harness.close(dataplane)
        pins.remove(dataplane.pins)


@pytest.fixture(params=HOOKED)
def hooked(request: pytest.FixtureRequest) -> Iterator[harness.Rig]:
    """The data plane, empty, for one hook after the other."""
    if request.param == "tc":
        hooked: harness.Rig = harness.TcRig(request.getfixturevalue("loaded_tc"), is_empty=True)
    else:
        hooked = harness.Rig(request.getfixturevalue("loaded"), is_empty=True)
    yield hooked
    hooked.reset()


@pytest.fixture(scope="session")
def loaded_other() -> Iterator[Dataplane]:
    """A second node: other keys, other sizes."""
    require_root()
    config = Config(harness.instance_name("other"), "lo", tables=nodes.OTHER, nat=nodes.NAT)
    dataplane = harness.load(config, harness.all_features(), keys=nodes.KEYS)
    try:
        yield dataplane
    finally:
        harness.close(dataplane)
        pins.remove(dataplane.pins)


@pytest.fixture
def other(loaded_other: Dataplane) -> Iterator[harness.Rig]:
    """The second node, empty; it draws from other rings."""
    rig = harness.Rig(loaded_other, is_empty=True)
    rig.config = replace(rig.config, tables=nodes.OTHER, nat=nodes.NAT, hash_seed=7)
    yield rig
    rig.reset()


@pytest.fixture
def network() -> Iterator[None]:
    """A network namespace for this thread, with ``here`` - ``there`` (veth, native XDP) and lo
    (none). It has no name and goes when the test leaves it.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    try:
        pair = ["ip", "link", "add", "here", "type", "veth", "peer", "name", "there"]
        subprocess.run(pair, check=True)
        yield
    finally:
        os.setns(home, os.CLONE_NEWNET)
        os.close(home)


@pytest.fixture
def instance() -> Iterator[str]:
    """The name of an instance whose pins go when the test ends."""
    name = harness.instance_name("own")
    pins.remove(pins.pins_of(name))
    yield name
    harness.close_all(name)
    pins.remove(pins.pins_of(name))
