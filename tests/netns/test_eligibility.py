"""Who gets new flows while real backends come and go: slow start, backups, failing open."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent.model import Hook
from lbctl.lab import netns
from lbctl.lab.topology import PORT
from tests.netns.site import Site, assert_unharmed, site, wait_until

FAST = {"interval": "0.2s", "timeout": "0.2s", "rise": 1, "fall": 1}


@pytest.fixture(scope="module")
def lab() -> Iterator[Site]:
    with site(name=f"st-elig{os.getpid()}", backends=3, hook=Hook.TC) as built:
        yield built


def serve(lab: Site, **changes: Any) -> None:
    """The service ``web`` with these changes; ``backends`` are merged by their place."""
    document = lab.config()
    service = document["services"][0]
    for change, backend in zip(changes.pop("backends", []), service["backends"], strict=False):
        backend |= change
    service |= changes
    lab.reload(document)


@pytest.fixture(autouse=True)
def _as_it_was(lab: Site) -> Iterator[None]:
    """Every test begins with the lab's own configuration, all backends up."""
    document = lab.config()
    yield
    lab.reload(document)
    wait_until("all are up", lambda: lab.get("/v1/services/web")["backends_up"] == 3)


def set_state(lab: Site, name: str, state: str) -> None:
    lab.edit("backend.set", service="web", backend=name, values={"state": state})


def weights(lab: Site) -> dict[str, tuple[int, str]]:
    backends = lab.get("/v1/services/web")["backends"]
    return {b["name"]: (b["weight_effective"], b["weight_reason"]) for b in backends}


def test_a_restarted_agent_makes_nobody_start_again_but_who_comes_back_does(lab: Site) -> None:
    serve(lab, slow_start="6s")
    lab.stop_agent(signal.SIGKILL)
    lab.start_agent()
    wait_until("all are up", lambda: lab.get("/v1/services/web")["backends_up"] == 3)
    assert set(weights(lab).values()) == {(100, "configured")}
    # A busy host misses some weights, and if it stands still all of them.
    assert any(starts_slowly(lab, "be1") for _ in range(5))
    assert {weights(lab)[name] for name in ("be2", "be3")} == {(100, "configured")}


def starts_slowly(lab: Site, name: str) -> list[int]:
    """Have a backend come back; the weights that were seen of it before its own."""
    set_state(lab, name, "drain")
    set_state(lab, name, "active")
    seen = []
    deadline = time.monotonic() + 90
    while (now := weights(lab)[name]) != (100, "configured"):
        assert time.monotonic() < deadline, seen
        assert now[1] == "slow start"
        seen.append(now[0])
        time.sleep(0.1)
    assert seen == sorted(seen)
    assert set(seen) <= {10, 20, 30, 40, 50, 60, 70, 80, 90}
    return seen


def without_backend(lab: Site) -> int:
    return int(lab.get("/v1/services/web")["drops_total"].get("no-backend", 0))


def test_a_backup_takes_over_and_gives_back_without_a_dropped_packet(lab: Site) -> None:
    serve(lab, backends=[{}, {}, {"backup": True}])
    before = without_backend(lab)
    assert weights(lab)["be3"] == (0, "backup")
    with lab.load(rate=400, keep_alive=5, streams=0) as load:
        for _ in range(5):
            load.wait(100)
            for name in ("be1", "be2"):
                set_state(lab, name, "drain")
            assert weights(lab)["be3"] == (100, "configured")
            load.wait(100)
            for name in ("be1", "be2"):
                set_state(lab, name, "active")
            assert weights(lab)["be3"] == (0, "backup")
    assert without_backend(lab) == before
    assert_unharmed(load)
    assert set(load["backends"]) == {"be1", "be2", "be3"}


def test_a_service_that_fails_open_serves_though_every_check_fails(lab: Site) -> None:
    serve(lab, no_backend="any", health=FAST | {"port": 9})
    wait_until("none is up", lambda: lab.get("/v1/services/web")["backends_up"] == 0)
    wait_until("all get flows", lambda: set(weights(lab).values()) == {(100, "fail open")})
    assert "fail open" in lab.get("/v1/services/web")["reason"]
    with lab.load(rate=100, keep_alive=2, streams=0) as load:
        load.wait(100)
    assert_unharmed(load)


def sent_again(lab: Site) -> int:
    """The SYNs and segments that the client has sent again."""
    counts = lab.run("client", "grep", "^Tcp:", "/proc/net/snmp").stdout.split("\n")
    return int(dict(zip(*(line.split() for line in counts[:2]), strict=True))["RetransSegs"])


def connects_as_soon_as_there_is_a_backend(lab: Site, syns: int) -> bool:
    """Whether two clients, one a family, that wait for a service without a backend get one before
    they send their SYNs again. They do that a second after the first, then two, then four; there is
    a backend when each has sent so many.
    """
    services, backends = ("web", "web6"), ("be1", "be2", "be3")

    def set_states(state: str) -> None:
        for service, name in itertools.product(services, backends):
            lab.edit("backend.set", service=service, backend=name, values={"state": state})

    set_states("maintenance")
    with (
        netns.inside(lab.lab.node("client").namespace),
        ThreadPoolExecutor(len(lab.lab.vips)) as pool,
    ):
        before = sent_again(lab)
        asked = [pool.submit(ask, str(vip)) for vip in lab.lab.vips]
        wanted = before + 2 * (syns - 1)
        wait_until(f"each has sent {syns} SYNs", lambda: sent_again(lab) >= wanted)
        wait_until(
            "both are counted",
            lambda: all(lab.get(f"/v1/services/{s}")["held_clients"] == 1 for s in services),
        )
        scales = [lab.get(f"/v1/scale/{name}") for name in services]
        before = sent_again(lab)
        set_states("active")
        answers = [each.result() for each in asked]
        again = sent_again(lab)
    assert {(each["wanted_backends"], each["wanted_because"]) for each in scales} == {
        (1, "no_backend")
    }
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    return again == before


def ask(vip: str) -> bytes:
    with socket.create_connection((vip, PORT), timeout=120) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
        return connection.recv(1000)


def test_clients_wait_for_the_first_backend_and_not_for_their_timers(lab: Site) -> None:
    document = lab.config()
    for service in document["services"]:
        service |= {"no_backend": "hold", "scale": {"connections": 8, "min": 0}}
    lab.reload(document)
    # Under tc, checksums may be left to a card that no packet between two namespaces ever meets.
    for command in (
        "sysctl -w net.ipv4.tcp_syn_linear_timeouts=0",
        f"ethtool -K {lab.lab.node('client').links[0].device} tx on",
    ):
        done = lab.run("client", *command.split())
        assert done.returncode == 0, done
    # A busy host can need longer than the four seconds in which no SYN comes; then eight, sixteen.
    assert any(connects_as_soon_as_there_is_a_backend(lab, syns) for syns in (3, 3, 4, 5, 6))

    def said() -> list[str]:
        return [each["event"] for each in lab.get("/v1/events", service="web")["events"]]

    assert "clients wait for a backend" in said()
    # The agent notes it after the clients have gone on.
    wait_until("it is said", lambda: "clients that waited for a backend are served" in said())
    wait_until("nobody waits", lambda: lab.get("/v1/services/web")["held_clients"] == 0)


def test_the_addresses_of_a_prefix_are_not_put_on_the_interface(lab: Site) -> None:
    def addresses() -> str:
        return str(lab.run(lab.balancer.name, "ip", "-o", "addr", "show", "eth0").stdout)

    vip = lab.config()["services"][0]["vip"]
    assert vip in addresses()
    document = lab.config()
    document["services"].append(
        {**document["services"][0], "name": "wide", "vip": "203.0.113.0/28"}
    )
    lab.reload(document)
    assert lab.get("/v1/services/wide")["backends"]
    assert vip in addresses()
    assert "203.0.113." not in addresses()
