"""Sources that behave unlike all others, with a real attacker's tool and the real agent."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from agent.model import Forward
from lbctl.lab import netns, processes
from lbctl.lab.topology import Lab
from tests.netns.site import Site, site, wait_until

HONEST = 24
ATTACKING = 150  # connections
# A connection from each of these addresses, which has had an answer, and is kept.
CROWD = """
import socket, sys
vip, *sources = sys.argv[1:]
held = [socket.create_connection((vip, 80), source_address=(each, 0)) for each in sources]
for each in held:
    each.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    each.recv(4096)
print("held", flush=True)
sys.stdin.read()
for each in held:
    each.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert each.recv(4096)
"""


def services(lab: Lab) -> list[dict[str, Any]]:
    """One that needs the guard, so that it is in the program from the start."""
    return [{"name": "blocking", "vip": str(lab.vips[0]), "port": 81, "detect": "block"}]


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    name = f"st-threats-{os.getpid()}"
    with site(services, name=name, forward=Forward.NAT, backends=2, clients=2) as built:
        yield built


@contextlib.contextmanager
def started(here: Site, client: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*netns.entering(here.lab.node(client).namespace), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=processes.environment(here.lab.run_dir),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def crowd(here: Site) -> Iterator[None]:
    """Honest clients with an open connection each; none of them breaks."""
    shown = here.run("client2", "ip", "-4", "-brief", "address", "show", "dev", "eth0").stdout
    own = ipaddress.ip_interface(shown.split()[2])
    first = int(own.network.network_address) + 150
    sources = [str(ipaddress.ip_address(first + number)) for number in range(HONEST)]
    for source in sources:
        added = f"{source}/{own.network.prefixlen}"
        assert here.run("client2", "ip", "address", "add", added, "dev", "eth0").returncode == 0
    command = (sys.executable, "-c", CROWD, str(here.lab.vips[0]), *sources)
    with started(here, "client2", *command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()
        assert process.returncode == 0, "an honest client lost its connection"


def answers(here: Site, client: str, connect_s: int = 60) -> bool:
    url = f"http://{here.lab.vips[0]}/health"
    limits = ("--connect-timeout", str(connect_s), "-m", "60")
    command = ("curl", "-sS", *limits, "-o", "/dev/null", url)
    return bool(here.run(client, *command).returncode == 0)


def address_of(here: Site, client: str) -> str:
    addresses = here.lab.node(client).links[0].addresses
    return next(str(each.ip) for each in addresses if each.version == 4)


def detect(here: Site, action: str) -> None:
    document = here.config()
    for service in document["services"]:
        service["detect"] = action
    here.reload(document)


def guard(here: Site) -> Any:
    return here.get("/v1/guard")


def test_slow_heads_are_a_threat_and_blocked_and_nobody_else_is(here: Site) -> None:
    attacker = address_of(here, "client")
    slow = ("slowhttptest", "-H", "-c", str(ATTACKING), "-r", "200", "-i", "5", "-l", "600", "-u")
    with (
        crowd(here),
        started(here, "client", *slow, f"http://{here.lab.vips[0]}/", "-p", "30") as attack,
    ):

        def is_known() -> bool:
            assert attack.poll() is None, "the attacker has ended by itself"
            return bool(guard(here)["threats"])

        # Slow requests, after twenty seconds: an agent that has just begun knows no amounts.
        try:
            wait_until("it is known", is_known, 240)
        except AssertionError as error:
            flows = here.get("/v1/flows?limit=1000")["flows"]
            held = [(each["age_s"], each["awaiting_answer"]) for each in flows
                    if each["client"] == attacker]  # fmt: skip
            raise AssertionError(f"{error}; {len(flows)} flows; the attacker's: {held}") from None
        found = guard(here)["threats"]
        assert {each["source"] for each in found} == {attacker}
        assert {each["service"] for each in found} == {"web"}
        assert all(each["address_proven"] and each["action"] == "log" for each in found)
        assert guard(here)["blocks"] == []
        assert answers(here, "client"), "it is only logged"

        detect(here, "block")
        wait_until("it is blocked", lambda: guard(here)["blocks"])
        (block,) = guard(here)["blocks"]
        assert block["prefix"] == attacker
        assert block["why"].startswith("detected: web: ")
        wait_until("it is counted", lambda: guard(here)["threats_blocked_total"] == 1)
        wait_until("its packets are dropped", lambda: not answers(here, "client", 3))
        assert answers(here, "client2")
        kinds = [each["event"] for each in here.get("/v1/events")["events"]]
        assert "blocked a source" in kinds
        (order,) = [
            each
            for each in here.get("/v1/audit")["records"]
            if each.get("what") == "blocks" and each.get("kind") == "order"
        ]
        assert order["by"] == "lb-agent"
    here.api.post("/v1/guard/unblock", {"prefixes": [attacker]})
    wait_until("it is served again", lambda: answers(here, "client"))


def test_lists_of_trusted_sources_are_in_the_tables(here: Site) -> None:
    document = here.config() | {"lists": {"known": [f"{address_of(here, 'client')}/32"]}}
    for service in document["services"]:
        service["trusted"] = ["known"]
    here.reload(document)
    tested = here.get("/v1/guard/test", address=address_of(here, "client"))
    assert tested["lists"] == ["known"]
    assert {each["verdict"] for each in tested["services"]} == {"served"}
