"""Clients come home through a whole balancer: real connections from addresses of their own."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from agent.dataplane import abi, libbpf, pins
from agent.model import Forward
from lbctl.lab import netns
from lbctl.lab.topology import NODE_INTERFACE, PORT
from tests.netns.site import Site, site, wait_until

SERVED = 8001
CLIENTS = 12
LARGE = 60_000  # bytes of a prompt: far more than a home may have more


def services(lab: Any) -> list[dict[str, Any]]:
    nodes = [lab.node(f"be{number + 1}") for number in range(lab.backends)]
    backends = [{"name": one.name, "address": str(one.ipv4), "port": PORT} for one in nodes]
    chat = {
        "name": "chat", "vip": str(lab.vips[0]), "port": SERVED, "forward": "fullnat",
        "scheduler": "least-load", "affinity": {"by": "source"}, "learn_speed": False,
        "health": {"type": "none"}, "backends": backends,
    }  # fmt: skip
    return [chat]


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    name = f"st-homes-{os.getpid()}"
    with site(services=services, name=name, backends=3, forward=Forward.FULLNAT) as built:
        for address in addresses(built):
            added = built.run("client", "ip", "address", "add", f"{address}/24", "dev",
                              NODE_INTERFACE)  # fmt: skip
            assert added.returncode == 0, added
        yield built


def addresses(here: Site) -> list[str]:
    base = ip_address(str(here.lab.node("client").ipv4))
    return [str(base + 100 + number) for number in range(CLIENTS)]


def connected(here: Site, client: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(
        str(here.lab.vips[0]), SERVED, timeout=60, source_address=(client, 0)
    )
    with netns.inside(here.lab.node("client").namespace):
        connection.connect()
    return connection


def asked(here: Site, client: str) -> str:
    """The backend that answers a request by a connection of its own."""
    connection = connected(here, client)
    connection.request("POST", "/", body=b"x" * 500)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return str(answer.getheader("X-Backend"))


def homes(here: Site, times: int = 1) -> dict[str, str]:
    """Of each client; it must be one alone."""
    found = {}
    for client in addresses(here):
        (found[client],) = {asked(here, client) for _ in range(times)}
    return found


def escape_bytes(here: Site) -> int:
    """Return what homes are worth according to the packet path's table."""
    fd = libbpf.object_get(pins.pins_of(here.balancer.namespace).table("service_load"))
    try:
        rows = [value for _, value in libbpf.map_items(fd, 4, abi.SERVICE_LOAD.itemsize)]
    finally:
        os.close(fd)
    return int(np.frombuffer(b"".join(rows), abi.SERVICE_LOAD)["escape"].max())


def waits_at(here: Site, backend: str) -> int:
    return int(here.backend("chat", backend)["waiting_bytes"])


def test_a_client_comes_home_and_goes_elsewhere_while_that_is_busy(here: Site):
    before = homes(here, times=5)
    assert len(set(before.values())) > 1
    client, home = next(iter(before.items()))
    with contextlib.closing(connected(here, client)) as busy:
        busy.request("POST", "/slow?seconds=600&chunks=1", body=b"x" * LARGE)
        wait_until("it waits", lambda: waits_at(here, home) >= LARGE)
        for other, its_home in before.items():
            now = asked(here, other)
            assert (now != home) if its_home == home else (now == its_home)
        flow = {"client": client, "client_port": "5000", "protocol": "tcp", "port": str(SERVED)}
        said = here.get("/v1/explain", vip=str(here.lab.vips[0]), **flow)
        assert any("has too much to do" in step for step in said["steps"]), said
    wait_until("it is given up", lambda: not waits_at(here, home))
    assert homes(here) == before


def test_homes_are_as_before_without_an_agent_and_with_a_new_one(here: Site):
    before = homes(here)
    here.stop_agent(signal.SIGKILL)
    told = escape_bytes(here)
    assert told > 0
    assert homes(here) == before
    here.start_agent()
    # Before it has seen a client twice, by which it would determine that anew.
    assert here.get("/v1/services/chat")["affinity"]["escape_bytes"] == told
    assert homes(here, times=2) == before


def test_who_is_known_is_told(here: Site):
    homes(here, times=3)

    def known() -> float:
        homes(here)
        return float(here.get("/v1/services/chat")["affinity"]["known_ratio"] or 0)

    wait_until("most clients are known", lambda: known() > 0.5)
