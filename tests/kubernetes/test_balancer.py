"""A balancer, clients and servers, and the real API machinery: rollouts, and an API server that is
away.

The endpoints are a lab's servers, in slices as the controller of Kubernetes writes them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lbctl.lab import netns
from tests.kubernetes.cluster import Cluster, Json
from tests.kubernetes.test_follow import READY, STARTING, TERMINATING, TOKEN, piece
from tests.netns.site import Site, assert_unharmed, site, wait_until

pytestmark = pytest.mark.kubernetes


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    with site(name="st-kubernetes", backends=4) as built:
        yield built


@pytest.fixture(scope="module")
def cluster(here: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The API server, in the balancer's namespace. `web` has the endpoints of `default/vllm`."""
    folder = tmp_path_factory.mktemp("cluster")
    running = Cluster(folder, netns.entering(here.balancer.namespace))
    try:
        running.start_server()
        running.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
        pods(here, running, be1=READY, be2=READY)
        document = here.config()
        (web,) = (each for each in document["services"] if each["name"] == "web")
        web["backends"] = []
        web["discover"] = {
            "kubernetes": "default/vllm", "kubeconfig": str(running.kubeconfig(TOKEN)),
        }  # fmt: skip
        here.reload(document)
        wait_until("both pods serve", lambda: up(here) == ["be1", "be2"])
        yield running
    finally:
        running.stop()


def pods(here: Site, cluster: Cluster, **conditions: Json) -> None:
    """Write one slice with these pods."""
    ports = {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}
    endpoints = (_endpoint(here, *each) for each in conditions.items())
    cluster.apply(piece("vllm-x7k2p", *endpoints) | ports)


def _endpoint(here: Site, name: str, conditions: Json) -> Json:
    addresses = here.lab.node(name).links[0].addresses
    return {
        "addresses": [str(next(each.ip for each in addresses if each.version == 4))],
        "conditions": conditions,
        "targetRef": {"kind": "Pod", "namespace": "default", "name": name},
    }


def states(here: Site) -> dict[str, str]:
    return {b["name"]: b["state"] for b in here.get("/v1/services/web")["backends"]}


def up(here: Site) -> list[str]:
    return sorted(name for name, state in states(here).items() if state == "up")


def test_a_rollout_under_load_costs_no_request(here: Site, cluster: Cluster) -> None:
    with here.load(rate=300, keep_alive=6, streams=3) as load:
        for old, new in (("be1", "be3"), ("be2", "be4"), ("be3", "be1"), ("be4", "be2")):
            stays = next(name for name in up(here) if name != old)
            pods(here, cluster, **{old: READY, stays: READY, new: STARTING})
            pods(here, cluster, **{old: READY, stays: READY, new: READY})
            wait_until(f"{new} serves", lambda new=new: new in up(here))
            pods(here, cluster, **{old: TERMINATING, stays: READY, new: READY})
            wait_until(f"{old} drains", lambda old=old: states(here)[old] == "drain")
            load.wait()
            pods(here, cluster, **{stays: READY, new: READY})
            wait_until(f"{stays} and {new} serve", lambda s=stays, n=new: set(up(here)) == {s, n})
    assert_unharmed(load)
    assert set(load["backends"]) == {"be1", "be2", "be3", "be4"}


def test_the_api_server_may_be_away_and_the_agent_be_killed(here: Site, cluster: Cluster) -> None:
    pods(here, cluster, be1=READY, be2=READY)
    wait_until("both serve", lambda: up(here) == ["be1", "be2"])
    with here.load(keep_alive=6, streams=3) as load:
        cluster.stop_server()
        wait_until("it is said", lambda: here.get("/v1/status")["agent"]["discovery_problems"])
        here.stop_agent(signal.SIGKILL)
        here.start_agent()
        wait_until(
            "it is said again", lambda: here.get("/v1/status")["agent"]["discovery_problems"]
        )
        assert up(here) == ["be1", "be2"]
        load.wait()
        cluster.start_server()
        pods(here, cluster, be1=READY, be2=READY, be3=READY)
        wait_until("the new one serves", lambda: up(here) == ["be1", "be2", "be3"])
        assert here.get("/v1/status")["agent"]["discovery_problems"] == []
    assert_unharmed(load)
