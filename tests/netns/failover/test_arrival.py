"""Where clients' packets come in here, as the exchange of flows is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from agent.errors import NetworkError
from agent.pair.node import node_of
from lbctl.lab import netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

INTERFACE, MAC = "wan0", "02:74:aa:bb:cc:dd"


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"st-arrival-{os.getpid()}"
    netns.ip([f"netns add {name}"])
    try:
        netns.ip([f"link add {INTERFACE} address {MAC} type veth peer name wan1"], name)
        yield name
    finally:
        netns.ip([f"netns del {name}"])


def test_the_mac_is_that_of_the_interface_in_the_agents_own_namespace(namespace: str) -> None:
    """/sys can be another namespace's: of a container's host, say."""
    dataplane: Any = SimpleNamespace(interface=INTERFACE, ifindex=7, now_jiffies=lambda: 0)
    contents: Any = None  # nobody looks at the tables
    node = node_of(dataplane, lambda: contents, lambda: True)
    with netns.inside(namespace):
        arrival = node.arrival()
        assert arrival.source_mac.tobytes().hex(":") == MAC
        assert (arrival.ifindex, arrival.elsewhere) == (7, True)
        netns.ip([f"link del {INTERFACE}"], namespace)
        with pytest.raises(NetworkError, match="MAC address"):
            node.arrival()
