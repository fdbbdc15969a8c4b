"""Clients of a zone and its backends, with the whole agent and real connections."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lbctl.lab.topology import Role
from tests.netns.site import Site, assert_unharmed, site


@pytest.fixture(scope="module")
def lab() -> Iterator[Site]:
    with site(name=f"st-zone{os.getpid()}", backends=3) as built:
        yield built


def with_zones(lab: Site, near: str, clients: list[str]) -> dict:
    """The lab's configuration with one zone, in which only one backend is."""
    document = lab.config()
    for service in document["services"]:
        for backend in service["backends"]:
            backend.pop("zone", None)
            if backend["name"] == near:
                backend["zone"] = "here"
    return document | {"zones": {"here": clients}}


def test_clients_get_the_backend_of_their_zone_and_the_others_when_it_drains(lab: Site) -> None:
    client = lab.lab.nodes(Role.CLIENT)[0]
    here = [f"{client.ipv4}/32", f"{client.ipv6}/128"]
    lab.reload(with_zones(lab, "be2", here))
    with lab.load(keep_alive=0, streams=0) as load:
        load.wait(100)
    assert_unharmed(load)
    assert set(load["backends"]) == {"be2"}

    vip = str(lab.lab.vips[0])
    said = lab.get(
        "/v1/explain",
        protocol="tcp",
        client=str(client.ipv4),
        client_port="1000",  # below what the load uses: it has no flow
        vip=vip,
        port="80",
    )  # fmt: skip
    assert (said["backend"], "ring of here" in " ".join(said["steps"])) == ("be2", True)

    for service in ("web", "web6"):
        lab.edit("backend.set", service=service, backend="be2", values={"state": "drain"})
    with lab.load(keep_alive=0, streams=0) as load:
        load.wait(100)
    assert_unharmed(load)
    assert set(load["backends"]) == {"be1", "be3"}


@pytest.mark.soak  # tests/packet/test_running.py has programs that a restart takes over
def test_a_restarted_agent_goes_on_with_zones_and_rings_as_they_are(lab: Site) -> None:
    client = lab.lab.nodes(Role.CLIENT)[0]
    lab.reload(with_zones(lab, "be3", [f"{client.ipv4}/32", f"{client.ipv6}/128"]))
    with lab.load() as load:
        lab.stop_agent(signal.SIGKILL)
        load.wait()
        lab.start_agent()
    assert_unharmed(load)
    assert set(load["backends"]) == {"be3"}
