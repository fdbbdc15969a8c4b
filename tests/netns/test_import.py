"""A configuration of HAProxy, imported: clients are served, and nothing changes on the servers.

HAProxy listens on the address of its host, as it mostly does, and this stays the clients' address.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.model import Forward
from lbctl.haproxy.binds import Site as Where
from lbctl.haproxy.convert import convert
from lbctl.haproxy.grammar import parse
from lbctl.haproxy.ledger import Ledger
from lbctl.lab import netns
from lbctl.lab.topology import Lab, Role
from tests.netns.site import Site, site, wait_until

# tests/cli has each line that is converted; this is what a client sees of it.
pytestmark = [pytest.mark.kernel, pytest.mark.soak]
PORT, OWN_PORT = 8080, 8081


def haproxy(lab: Lab) -> str:
    """What HAProxy would be configured with on the balancer."""
    servers = [f"server {each.name} {each.ipv4}:80 check" for each in lab.nodes(Role.BACKEND)]
    return "\n".join(
        [
            "defaults", "mode tcp", "timeout client 1h", "timeout server 1h", "frontend front",
            f"bind {lab.node('lb1').ipv4}:{PORT}", "default_backend servers", "backend servers",
            "balance roundrobin", "option httpchk GET /health", "default-server inter 500ms",
            *servers,
        ]
    )  # fmt: skip


def imported(lab: Lab) -> list[Any]:
    made = convert(Ledger(parse(haproxy(lab), "haproxy.cfg")), Where("eth0"))
    assert made.is_complete
    defaults, services = made.document["defaults"], made.document["services"]
    assert isinstance(services, list)
    assert isinstance(defaults, dict)
    return [defaults | each for each in services]


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    with site(services=imported, name="import", backends=3, forward=Forward.FULLNAT) as built:
        yield built


def fetch(here: Site, port: int) -> str:
    url = f"http://{here.balancer.ipv4}:{port}/"
    said: str = here.run("client", "curl", "-sf", "--max-time", "60", url).stdout.strip()
    return said


def test_clients_are_served_in_turn_by_servers_that_know_nothing(here: Site) -> None:
    def up() -> list[str]:
        backends = here.get("/v1/services/front")["backends"]
        return [each["name"] for each in backends if each["state"] == "up"]

    wait_until("all are up", lambda: len(up()) == 3)
    served = Counter(fetch(here, PORT) for _ in range(12))
    assert served.keys() == {"be1", "be2", "be3"}
    # Each CPU takes the backends in turn by itself.
    assert max(served.values()) - min(served.values()) <= (os.cpu_count() or 1), served


def test_the_other_ports_of_the_address_reach_the_host(here: Site, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("the host")
    server = [sys.executable, "-m", "http.server", "--directory", str(tmp_path), str(OWN_PORT)]
    own = subprocess.Popen(
        [*netns.entering(here.balancer.namespace), *server], stderr=subprocess.DEVNULL
    )
    try:
        wait_until("the host's server answers", lambda: fetch(here, OWN_PORT) == "the host")
    finally:
        own.kill()
        own.wait()
    assert fetch(here, PORT) in ("be1", "be2", "be3")
