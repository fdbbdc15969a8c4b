"""What one balancer has learned of the speed of servers holds at the other one, too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from agent.model import Forward, Scheduler
from lbctl.lab import netns
from tests.netns.site import Site, site, wait_until

# Requests whose prompts have 2 to 15 kB, from so many connections at a time.
PROMPTS = """
import asyncio, random, sys

async def ask(vip):
    prompt = b"word " * random.randrange(400, 3000)
    body = b'{"model": "m", "max_tokens": 16, "prompt": "%s"}' % prompt
    reader, writer = await asyncio.open_connection(vip, 80)
    writer.write(b"POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n"
                 b"Content-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
    while await reader.read(65536):
        pass
    writer.close()

async def go_on(vip):
    while True:
        await ask(vip)

async def main():
    await asyncio.gather(*(go_on(sys.argv[1]) for _ in range(16)))

asyncio.run(main())
"""


@pytest.mark.soak
def test_a_balancer_without_samples_weighs_as_the_one_that_has_some() -> None:
    """Two kinds of GPUs, whose speeds only the master of the VIPs sees."""
    name = f"st-speeds-{os.getpid()}"
    engines = {"engines": ("h100", "a100"), "time_scale": 4.0, "scheduler": Scheduler.LEAST_LOAD}
    with site(name=name, balancers=2, backends=2, forward=Forward.NAT, **engines) as here:
        wait_until("they are connected", lambda: is_connected(here))
        entering = netns.entering(here.lab.node("client").namespace)
        command = [*entering, sys.executable, "-c", PROMPTS, str(here.lab.vips[0])]
        with subprocess.Popen(command) as clients:
            try:
                wait_until("both have learned the same", lambda: is_learned(here), 240)
            finally:
                clients.kill()


def is_learned(here: Site) -> bool:
    told, own = (
        [each["learned"] for each in here.on(at).get("/v1/services/web")["backends"]]
        for at in ("lb1", "lb2")
    )
    moved = all(each["confidence"] > 0.5 and each["weight_ratio"] != 1.0 for each in told)
    same = [each["weight_ratio"] for each in told] == [each["weight_ratio"] for each in own]
    return moved and same and not any(each["confidence"] for each in own)


def is_connected(here: Site) -> bool:
    (peer,) = here.get("/v1/failover")["flow_sync"]["peers"]
    return bool(peer["state"] == "connected")
