"""Limits of a service with real clients and the real agent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.api.client import ApiRefusedError
from agent.model import Forward
from lbctl.lab import netns, processes
from tests.netns.site import Site, site, wait_until

MANY = 12
REFUSED_S = 3  # nobody answers; the client's kernel asks twice meanwhile
# So many connections that each have had an answer, and then wait.
HOLD = """
import socket, sys
held = []
for _ in range(int(sys.argv[2])):
    s = socket.create_connection((sys.argv[1], 80))
    s.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    s.recv(4096)
    held.append(s)
print("held", flush=True)
sys.stdin.read()
"""


# Limits come before the forwarding; the soak has nat, too.
@pytest.fixture(
    scope="module",
    params=[Forward.DSR, pytest.param(Forward.NAT, marks=pytest.mark.soak)],
    ids=lambda mode: mode.value,
)
def here(request: pytest.FixtureRequest) -> Iterator[Site]:
    name = f"st-limits-{os.getpid()}"
    with site(name=name, forward=request.param, backends=2, clients=2) as built:
        yield built


@pytest.fixture(autouse=True)
def as_before(here: Site) -> Iterator[None]:
    before = here.config()
    yield
    here.reload(before)


def limit(here: Site, **limits: object) -> None:
    document = here.config()
    for service in document["services"]:
        if service["name"].startswith("web"):
            service["limits"] = limits
    here.reload(document)


def answers(here: Site, client: str, times: int, wait_s: int = 60) -> int:
    """How many of so many requests, each on its connection, are answered. Who is to get no answer
    waits for ``wait_s``; for others a busy host may take long, as curl itself may stand still.
    """
    url = f"http://{here.lab.vips[0]}/health"
    command = ("curl", "-sS", "--connect-timeout", str(wait_s), "-m", "60", "-o", "/dev/null", url)
    return sum(here.run(client, *command).returncode == 0 for _ in range(times))


def limits_of(here: Site) -> dict[str, Any]:
    found = here.get("/v1/guard")["limits"]
    return {each["limit"]: each for each in found if each["service"] == "web"}


def verdicts(here: Site, client: str) -> dict[str, str]:
    """What `lbctl guard test` says of a client's new flow, by service."""
    addresses = here.lab.node(client).links[0].addresses
    source = next(str(each.ip) for each in addresses if each.version == 4)
    tested = here.get("/v1/guard/test", address=source)
    return {each["name"]: each["verdict"] for each in tested["services"]}


@contextlib.contextmanager
def holding(here: Site, client: str, connections: int) -> Iterator[None]:
    command = [*netns.entering(here.lab.node(client).namespace), sys.executable, "-c", HOLD]
    with subprocess.Popen(
        [*command, str(here.lab.vips[0]), str(connections)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=processes.environment(here.lab.run_dir),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.kill()


def test_a_client_that_asks_too_often_waits_and_another_is_served(here: Site) -> None:
    limit(here, new_flows_per_source="5/h")
    assert answers(here, "client", 5) == 5
    assert answers(here, "client", 2, REFUSED_S) == 0
    assert answers(here, "client2", 5) == 5
    said = limits_of(here)["new_flows_per_source"]
    assert (said["at_most"], said["dropped_packets_total"] >= 2) == ("5/h", True)
    assert here.get("/v1/services/web")["drops_total"]["limited"] == said["dropped_packets_total"]
    # From the next packet on, without the compiler, and whatever was before.
    limit(here, new_flows_per_source="1000/s")
    assert answers(here, "client", 5) == 5
    limit(here)
    assert limits_of(here) == {}
    assert answers(here, "client", 5) == 5


def test_a_client_that_holds_as_many_as_it_may_gets_no_more_until_it_lets_go(here: Site) -> None:
    limit(here, open_flows_per_source=MANY)
    assert answers(here, "client", 1) == 1
    with holding(here, "client", MANY):
        wait_until(
            "it is known to have too many",
            lambda: limits_of(here)["open_flows_per_source"]["sources"] == 1,
        )
        assert answers(here, "client", 1, REFUSED_S) == 0
        assert answers(here, "client2", 1) == 1
        assert verdicts(here, "client")["web"].startswith("limited: it has as much open")
        assert verdicts(here, "client2")["web"] == "served"
        assert limits_of(here)["open_flows_per_source"]["dropped_packets_total"] > 0
    wait_until(
        "it is known to have less",
        lambda: limits_of(here)["open_flows_per_source"]["sources"] == 0,
    )
    assert answers(here, "client", 1) == 1


@pytest.mark.soak  # tests/packet/test_limits.py has the kernel's part
def test_an_agent_that_is_killed_refuses_nobody_for_ever(here: Site) -> None:
    limit(here, open_flows_per_source=MANY)
    with holding(here, "client", MANY):
        wait_until(
            "it is known to have too many",
            lambda: limits_of(here)["open_flows_per_source"]["sources"] == 1,
        )
        here.stop_agent(signal.SIGKILL)
    started = time.monotonic()
    wait_until("it is served again", lambda: answers(here, "client", 1, REFUSED_S) == 1, 150.0)
    assert time.monotonic() - started > 1.0, "the kernel knew it no longer"
    here.start_agent()
    assert answers(here, "client", 1) == 1


def test_a_dry_run_counts_and_a_mistake_is_refused(here: Site) -> None:
    document = here.config()
    for service in document["services"]:
        service |= {"guard": "dry-run", "limits": {"new_flows": "2/h"}}
    here.reload(document)
    assert answers(here, "client", 4) == 4
    said = limits_of(here)["new_flows"]
    assert (said["dropped_packets_total"], said["would_drop_packets_total"]) == (0, 2)
    for wrong in ("2", "2/d", "0/s", "fast"):
        with pytest.raises(ApiRefusedError, match=r"rate|out of range"):
            limit(here, new_flows=wrong)
    with pytest.raises(ApiRefusedError, match="did you mean 'new_flows'"):
        limit(here, new_flow="2/h")
