"""Real connections and waiting bytes change how many backends a service wants: as a scaler asks
for it over HTTP, and as lbctl shows it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from agent.model import Forward
from lbctl.lab import netns, processes
from lbctl.lab.topology import PORT
from tests.netns.site import Site, site, wait_until

# tests/unit/state/test_scaling.py has the decisions, tests/unit/api what is served.
pytestmark = [pytest.mark.kernel, pytest.mark.soak]

TARGETS = {"connections": 8, "waiting_bytes": "20kB", "max": 9}
SENT = 100_000


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    # In fullnat answers are seen. By clients' ACKs alone, such short ones look like none at first.
    with site(name=f"st-scale-{os.getpid()}", forward=Forward.FULLNAT, backends=2) as built:
        document = built.config()
        document["defaults"]["scale"] = TARGETS
        built.reload(document)
        yield built


@contextlib.contextmanager
def connections(here: Site, count: int) -> Iterator[list[socket.socket]]:
    """So many clients that have had an answer and stay."""
    with contextlib.ExitStack() as held:
        made = []
        for _ in range(count):
            with netns.inside(here.lab.node("client").namespace):
                client = socket.create_connection((str(here.lab.vips[0]), PORT), timeout=60.0)
            made.append(held.enter_context(client))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: lab\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        yield made


def over_http(here: Site) -> Any:
    """What KEDA would get from the metrics port."""
    connection = http.client.HTTPConnection("127.0.0.1", 9117, timeout=60.0)
    with netns.inside(here.balancer.namespace):
        connection.connect()
    with contextlib.closing(connection):
        connection.request("GET", "/v1/scale/web")
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())


def by_lbctl(here: Site) -> Any:
    program = processes.program("lbctl", "lbctl.main")
    done = here.run(here.balancer.name, *program, "--socket", str(here.lab.socket(here.balancer)),
                    "scale", "web", "-o", "json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wanted(here: Site) -> tuple[int, str]:
    found = over_http(here)
    return found["wanted_backends"], found["wanted_because"]


def settles(here: Site, number: int, cause: str) -> Any:
    wait_until(f"{number} are wanted because of {cause}", lambda: wanted(here) == (number, cause))
    told = by_lbctl(here)
    assert (told["wanted_backends"], told["wanted_because"]) == (number, cause)
    return told


def test_connections_and_waiting_bytes_want_backends_until_they_end(here: Site):
    assert settles(here, 1, "min")["usable_backends"] == 2
    with connections(here, 30) as clients:
        known = {"connections": 30, "waiting_bytes": 0, "requests": None, "queued": None}
        # They are counted once a second, and a few less want as many backends.
        wait_until("all are counted", lambda: over_http(here)["load"] == known)
        told = settles(here, 4, "connections")
        assert told["load_per_backend"]["connections"] == 15
        assert 0 < told["first_byte_p95_s"] < 60
        # The server waits for the last byte, and the client for an answer.
        head = b"POST / HTTP/1.1\r\nHost: lab\r\nContent-Length: %d\r\n\r\n" % (SENT + 1)
        clients[0].sendall(head + b"x" * SENT)
        waiting = SENT + len(head)
        wait_until("it waits", lambda: over_http(here)["load"]["waiting_bytes"] == waiting)
        settles(here, 6, "waiting_bytes")
        clients[0].sendall(b"x")
        assert clients[0].recv(4096).startswith(b"HTTP/1.1 200")
        settles(here, 4, "connections")
    wait_until("all are gone", lambda: over_http(here)["load"]["connections"] == 0)
    settles(here, 1, "min")


def test_a_backend_that_drains_is_not_usable_and_its_connections_still_count(here: Site):
    with connections(here, 30):
        here.edit("backend.set", service="web", backend="be1", values={"state": "drain"})
        settles(here, 4, "connections")
        wait_until("it drains", lambda: over_http(here)["draining_backends"] == 1)
        wait_until("all are counted", lambda: over_http(here)["load"]["connections"] == 30)
        assert over_http(here)["usable_backends"] == 1
        here.edit("backend.set", service="web", backend="be1", values={"state": "active"})
    wait_until("it is usable again", lambda: over_http(here)["usable_backends"] == 2)
