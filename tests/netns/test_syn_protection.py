"""SYN protection with real stacks: curl, also from behind a Linux router that masquerades it and
drops what its connection tracking finds invalid, and a flood from addresses that nobody has.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from agent.model import Forward
from lbctl.lab import netns, processes
from tests.netns import routers
from tests.netns.site import Site, site, wait_until

PORT = 80
FLOOD_PER_S = 3000
MODES = (Forward.DSR, Forward.GUE, Forward.FULLNAT)
MASQUERADE = """
table inet router {
    chain out {
        type nat hook postrouting priority srcnat
        oifname "eth0" masquerade
    }
    chain through {
        type filter hook forward priority filter
        ct state invalid counter drop
    }
}
"""


# The soak has all of them: a lab takes seconds, and to challenge is the same in each.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(mode, marks=pytest.mark.soak if mode is not Forward.FULLNAT else ())
        for mode in MODES
    ],
    ids=lambda mode: mode.value,
)
def here(request: pytest.FixtureRequest) -> Iterator[Site]:
    mode: Forward = request.param
    with site(name=f"st-syn-{os.getpid()}", forward=mode, backends=2, clients=3) as built:
        routers.before_client(built.lab)
        router = netns.entering(built.lab.node("client2").namespace)
        subprocess.run([*router, "nft", "-f", "-"], input=MASQUERADE, text=True, check=True)
        yield built


def protect(here: Site, how: str) -> None:
    document = here.config()
    for service in document["services"]:
        service["syn_protection"] = how
    here.reload(document)


def drops(here: Site, service: str) -> dict[str, int]:
    counted: dict[str, int] = here.get(f"/v1/services/{service}")["drops_total"]
    return {reason: counted[reason] for reason in ("challenged", "verified")}


def asks(here: Site, client: str, vip: Any) -> float:
    """Connect, ask and be answered; how long the connection took, in seconds."""
    host = f"[{vip}]" if vip.version == 6 else str(vip)
    done = here.run(
        client, "curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{http_code} %{time_connect}",
        f"http://{host}:{PORT}/health",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, seconds = done.stdout.split()
    assert code == "200"
    return float(seconds)


@contextlib.contextmanager
def flooded(here: Site, vip: Any) -> Iterator[None]:
    client = here.lab.node("client")
    device = client.links[0].device
    shown = here.run(here.balancer.name, "ip", "-j", "link", "show", "eth0")
    mac = json.loads(shown.stdout)[0]["address"]
    command = [*netns.entering(client.namespace), sys.executable, "-m", "tests.netns.synflood"]
    command += ["--rate", str(FLOOD_PER_S), device, mac, str(vip), str(PORT)]
    with subprocess.Popen(command, env=processes.environment(here.lab.run_dir)) as process:
        try:
            yield
        finally:
            process.terminate()


def test_a_client_is_challenged_once_also_behind_a_router_that_masquerades_it(here: Site) -> None:
    protect(here, "always")
    for name, vip in zip(("web", "web6"), here.lab.vips, strict=True):
        known = 0
        for client in ("client3", "client", "client2"):  # client2 masquerades client3
            is_new = known == 0 or (client == "client" and vip.version == 4)  # of IPv6: one /64
            known += is_new
            for _ in range(3):
                asks(here, client, vip)
            assert drops(here, name) == {"challenged": known, "verified": known}, client


def test_in_a_flood_clients_are_challenged_and_served_and_servers_see_little_of_it(
    here: Site,
) -> None:
    protect(here, "auto")
    vip = here.lab.vips[0]

    def service() -> Any:
        return here.get("/v1/services/web")

    assert not service()["challenges_clients"]
    with flooded(here, vip):
        wait_until("the flood is seen", lambda: service()["challenges_clients"])
        for client in ("client2", "client3"):
            for _ in range(5):
                asks(here, client, vip)
        before = service()
        wait_until(
            "thousands of SYNs are answered",
            lambda: (
                drops(here, "web")["challenged"]
                > before["drops_total"]["challenged"] + 2 * FLOOD_PER_S
            ),
        )
        opened = service()["new_flows_total"] - before["new_flows_total"]
        assert opened < FLOOD_PER_S / 10, "health checks do not come through the balancer"
        # An agent that starts in it goes on.
        here.stop_agent(15)
        here.start_agent()
        assert service()["challenges_clients"]
        asks(here, "client3", vip)
    log = (here.lab.run_dir / f"{here.balancer.name}.log").read_text()
    assert "SYN flood" in log
