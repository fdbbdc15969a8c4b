"""Backends that a source names, with real clients and servers: a page of Python's own HTTP server
says who serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.api.client import ApiRefusedError
from lbctl.lab import netns, processes
from tests import described
from tests.netns.site import Site, assert_unharmed, site, wait_until

PORT = 8099
PAGE = "gpu.json"


class Source:
    """A page in the balancer's namespace that names servers."""

    def __init__(self, here: Site, folder: Path) -> None:
        self._here, self._folder = here, folder
        self._process: subprocess.Popen[bytes] | None = None

    def names(self, *servers: str, **labels: str) -> None:
        """From the next question on, these are the targets."""
        addresses = (self._here.lab.node(name).links[0].addresses for name in servers)
        targets = [f"{next(a.ip for a in each if a.version == 4)}:80" for each in addresses]
        self.says(json.dumps([{"targets": targets, "labels": labels}]))

    def says(self, text: str) -> None:
        fresh = self._folder / "new"
        fresh.write_text(text)
        fresh.replace(self._folder / PAGE)

    def start(self) -> None:
        command = [*netns.entering(self._here.balancer.namespace), sys.executable, "-m"]
        command += ["http.server", str(PORT), "--bind", "127.0.0.1", "-d", str(self._folder)]
        self._process = subprocess.Popen(
            command,
            env=processes.environment(self._here.lab.run_dir),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    with site(name=f"st-discovery-{os.getpid()}", backends=4) as built:
        yield built


@pytest.fixture
def source(here: Site, tmp_path: Path) -> Iterator[Source]:
    """The servers of `web` come from the source alone, which names the first two."""
    before = here.config()
    source = Source(here, tmp_path)
    source.names("be1", "be2")
    source.start()
    try:
        document = here.config()
        (web,) = (each for each in document["services"] if each["name"] == "web")
        web["backends"] = []
        web["discover"] = {"http": f"http://127.0.0.1:{PORT}/{PAGE}", "interval": "1s"}
        here.reload(document)
        wait_until("both are up", lambda: up(here) == ["be1", "be2"])
        yield source
    finally:
        source.stop()
        here.reload(before)


def named(here: Site) -> dict[str, Any]:
    """The backends of `web` by the name of their host."""
    hosts = {
        str(address.ip): node.name
        for node in here.lab.nodes()
        for link in node.links
        for address in link.addresses
    }
    return {hosts[b["address"]]: b for b in here.get("/v1/services/web")["backends"]}


def up(here: Site) -> list[str]:
    return sorted(name for name, backend in named(here).items() if backend["state"] == "up")


def stay(here: Site) -> None:
    """Check that nobody has taken the first two away.

    Nor was one of them ejected: it was once blamed for the connections of the last one of its name.
    A check that is late is no failure.
    """
    found = named(here)
    why = ("state", "reason", "health", "health_reason", "since_s")
    told = {name: [one[key] for key in why] for name, one in found.items()}
    assert found.keys() >= {"be1", "be2"}, told
    states = {found[name]["state"] for name in ("be1", "be2")}
    assert not states & {"drain", "maintenance", "ejected"}, told
    if states != {"up"}:
        warnings.warn(f"a server that nobody took away is not up: {told}", stacklevel=2)
    wait_until("both are up", lambda: up(here) == ["be1", "be2"])


def shown(here: Site) -> Any:
    answer = here.get("/v1/discovery")
    described.check_shape(("Sources",), answer)
    (found,) = answer["sources"]
    return found


def test_servers_are_exchanged_and_no_client_notices(here: Site, source: Source) -> None:
    with here.load(keep_alive=6, streams=3) as load:
        for pair in (["be2", "be3"], ["be3", "be4"], ["be4", "be1"]):
            source.names(*pair)
            wait_until(f"{pair} serve", lambda pair=pair: set(up(here)) == set(pair), 120)
            load.wait()
        # The connections that be2 and be3 still have end by themselves; be1 came back meanwhile.
        assert named(here).keys() >= {"be4", "be1"}
    assert_unharmed(load)
    assert {b["state"] for name, b in named(here).items() if name in ("be2", "be3")} <= {"drain"}
    wait_until("those without flows are forgotten", lambda: set(named(here)) == {"be4", "be1"})


def test_a_source_that_fails_lies_or_is_gone_takes_nobody_away(here: Site, source: Source) -> None:
    with here.load(keep_alive=3, streams=1) as load:
        for text, problem in (
            ("<html>It works!</html>", "the answer is HTML"),
            ("[]", "the answer names 0 targets, and min is 1"),
            ('[{"targets": ["10.0.0', "JSON"),
        ):
            source.says(text)
            wait_until(problem, lambda problem=problem: problem in shown(here)["problem"])
            stay(here)
        source.stop()
        wait_until("nobody answers", lambda: "refused" in shown(here)["problem"].lower())
        here.stop_agent(signal.SIGKILL)
        here.start_agent()
        wait_until("the agent asks again", lambda: shown(here)["problem"])
        stay(here)
        (problem,) = here.get("/v1/status")["agent"]["discovery_problems"]
        assert problem.startswith("service web: http http://127.0.0.1:8099/gpu.json: ")
    assert_unharmed(load)
    source.names("be1", "be2", "be3")
    source.start()
    wait_until("it is asked again", lambda: up(here) == ["be1", "be2", "be3"])
    wait_until("all is well", lambda: not here.get("/v1/status")["agent"]["discovery_problems"])


def test_an_answer_that_lacks_most_waits_for_an_operator(here: Site, source: Source) -> None:
    source.names("be1", "be2", "be3", "be4")
    wait_until("all serve", lambda: len(up(here)) == 4)
    source.names("be1")
    wait_until("the answer is held", lambda: shown(here)["held"] == 1)
    wait_until("all serve as before", lambda: len(up(here)) == 4)
    here.api.post("/v1/discovery/web/accept", {})
    wait_until("the others are gone", lambda: list(named(here)) == ["be1"])
    with pytest.raises(ApiRefusedError, match="no answer that waits"):
        here.api.post("/v1/discovery/web/accept", {})


@pytest.mark.soak  # tests/unit/config/test_layers.py has it too
def test_what_an_operator_drained_stays_drained(here: Site, source: Source) -> None:
    drained = named(here)["be2"]["name"]
    here.edit("backend.set", service="web", backend=drained, values={"state": "drain"})
    source.names("be1", "be3")
    wait_until("be2 is forgotten", lambda: set(named(here)) == {"be1", "be3"})
    source.names("be1", "be2", "be3", weight="300")
    wait_until("be2 is named again", lambda: "be2" in named(here))
    assert named(here)["be2"]["admin_state"] == "drain"
    assert {b["weight_configured"] for b in named(here).values()} == {300}
    with contextlib.suppress(ApiRefusedError):
        here.edit("backend.remove", service="web", backend=drained)
    assert "be2" in named(here), "its source names it"
    here.edit("backend.set", service="web", backend=drained, values={"state": None})
    wait_until("it serves again", lambda: up(here) == ["be1", "be2", "be3"])
