"""Backends at which clients fail are ejected though their checks pass: real servers and clients."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.model import Forward
from lbctl.lab import build, netns, processes
from lbctl.lab.topology import PORT
from tests.netns.site import Site, site, wait_until

ERRORS, ERRORS_PORT, REFUSES_AT = "errors", 8001, 9000
FAILING = "be1"
GIVES_UP_S = 0.5
PATIENCE_S = 240.0  # a few dozen requests on a busy host
OUTLIER = {"eject": "3s"}
NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 64; }}
http {{ access_log off; server {{ listen {port}; return 503; }} }}
"""


def services(lab: Any) -> list[dict[str, Any]]:
    nodes = [lab.node(f"be{number + 1}") for number in range(lab.backends)]
    backends = [
        {"name": one.name, "address": str(one.ipv4),
         "port": REFUSES_AT if one.name == FAILING else PORT}
        for one in nodes
    ]  # fmt: skip
    return [
        {
            "name": ERRORS, "vip": str(lab.vips[0]), "port": ERRORS_PORT, "forward": "fullnat",
            "scheduler": "least-load", "outlier": OUTLIER, "health": {"type": "tcp"},
            "backends": backends,
        }
    ]  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One of the servers of a service in fullnat is nginx and answers with 503."""
    name, folder = f"st-out-{os.getpid()}", tmp_path_factory.mktemp("nginx")
    with site(services=services, name=name, backends=3, forward=Forward.DSR) as built:
        configured = folder / "nginx.conf"
        configured.write_text(NGINX.format(folder=folder, port=REFUSES_AT))
        start_nginx(built, configured)
        wait_until("it is up", lambda: state(built, ERRORS) == "up")
        yield built


def start_nginx(here: Site, configured: Path, name: str = "nginx") -> None:
    command = ["nginx", "-e", "stderr", "-c", str(configured)]
    processes.start(here.lab.run_dir, name, here.lab.node(FAILING).namespace, command)


def state(here: Site, service: str) -> str:
    return str(here.backend(service, FAILING)["state"])


def asked(here: Site, port: int, path: str = "/") -> tuple[int, str] | None:
    """The status of a request by a connection of its own, and whose it is; None: there was none."""
    connection = http.client.HTTPConnection(str(here.lab.vips[0]), port, timeout=GIVES_UP_S)
    try:
        with netns.inside(here.lab.node("client").namespace):
            connection.connect()
    except TimeoutError:
        return None
    connection.sock.settimeout(60.0)
    connection.request("POST", path, body=b"x" * 500)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, str(answer.getheader("X-Backend"))


def until_ejected(here: Site, service: str, port: int) -> tuple[int, str, Any]:
    """How many clients have failed until it is, and what was shown of the service and it then."""
    failed, of_service, shown = 0, "", None

    def is_ejected() -> bool:
        nonlocal failed, of_service, shown
        got = [asked(here, port) for _ in range(5)]
        failed += sum(one is None or one[0] != 200 for one in got)
        view = here.get(f"/v1/services/{service}")
        of_service = view["state"]
        (shown,) = (each for each in view["backends"] if each["name"] == FAILING)
        return bool(shown["state"] == "ejected")

    wait_until("it is ejected", is_ejected, timeout_s=PATIENCE_S)
    return failed, of_service, shown


def test_a_server_that_answers_503_gets_no_requests_until_it_is_put_back(here: Site):
    failed, of_service, told = until_ejected(here, ERRORS, ERRORS_PORT)
    assert failed >= 10
    assert (of_service, told["health"]) == ("degraded", "up")
    assert re.search(
        r"requests failed with status 429 or 5xx; no new flows for \d+s", told["reason"]
    )
    wait_until("it is put back", lambda: state(here, ERRORS) == "up")
    failed, _, told = until_ejected(here, ERRORS, ERRORS_PORT)
    assert failed >= 10
    assert told["ejections_total"] >= 2
    # Longer each time, unless it was well for so long as one ejection lasts, on a slow host.
    assert re.search(r"no new flows for \d+s, ejected \d+ times", told["reason"])


def configure(here: Site, **fields: Any) -> None:
    """The lab's own service, with these settings and a check that only connects, and not by the
    VIP.
    """
    document = here.config()
    for service in document["services"]:
        if service["name"] == "web":
            service |= {"health": {"type": "tcp", "via": "host"}, **fields}
    here.reload(document)


@contextlib.contextmanager
def without_the_vip(here: Site) -> Iterator[None]:
    address = [f"{here.lab.vips[0]}/32", "dev", "lo"]
    assert here.run(FAILING, "ip", "address", "del", *address).returncode == 0
    try:
        yield
    finally:
        assert here.run(FAILING, "ip", "address", "add", *address).returncode == 0


def test_a_server_in_dsr_that_lacks_the_vip_gets_no_connections(here: Site):
    """The check goes to its own address, and passes; clients time out."""
    configure(here, scheduler="round-robin", outlier={"eject": "1m"})
    with without_the_vip(here):
        failed, _, told = until_ejected(here, "web", PORT)
        assert failed >= 10
        assert told["health"] == "up"
        assert "established (is the VIP on its lo?" in told["reason"]
        assert "; no new flows for 1m" in told["reason"]
        got = [asked(here, PORT) for _ in range(30)]
        assert {one[1] for one in got if one} == {"be2", "be3"}
    configure(here, outlier={"eject": "0s"})
    wait_until("it is put back", lambda: state(here, "web") == "up")
    wait_until("it serves", lambda: (asked(here, PORT) or (0, ""))[1] == FAILING)


def is_hasty(here: Site) -> bool:
    return "hasty" in here.backend("web", FAILING)["weight_reason"]


@contextlib.contextmanager
def clients(here: Site, count: int) -> Iterator[None]:
    """Each asks for what takes a third of a second, again and again, by new connections."""
    enough = threading.Event()

    def client() -> None:
        while not enough.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                asked(here, PORT, "/slow?seconds=0.3&chunks=1")
            enough.wait(0.02)  # who gets an error waits for a moment

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()


@pytest.mark.soak
def test_a_server_that_answers_errors_which_nobody_can_read_is_passed_over(
    here: Site, tmp_path: Path
):
    """In dsr its answers do not pass the balancer: to least-load it looks idle."""
    configure(here, scheduler="least-load", outlier={"eject": "0s"})
    before = here.backend("web", FAILING)["new_flows_total"]
    with clients(here, 8):
        wait_until(
            "it has served",
            lambda: here.backend("web", FAILING)["new_flows_total"] > before + 90,
            timeout_s=PATIENCE_S,
        )
        assert not is_hasty(here)
        processes.kill(here.lab.run_dir, FAILING)
        configured = tmp_path / "nginx.conf"
        configured.write_text(NGINX.format(folder=tmp_path, port=PORT))
        start_nginx(here, configured, "nginx-too")
        wait_until("it is hasty", lambda: is_hasty(here), timeout_s=PATIENCE_S)
        assert here.backend("web", FAILING)["state"] == "up"
        processes.kill(here.lab.run_dir, "nginx-too")
        build.start_server(here.lab, here.lab.node(FAILING))
        wait_until("it is as usual", lambda: not is_hasty(here), timeout_s=PATIENCE_S)
