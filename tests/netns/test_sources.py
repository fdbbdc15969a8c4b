"""Blocks and lists with real clients: what a blocked client sees, and what outlives what."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.api.client import ApiRefusedError
from agent.model import Forward
from lbctl.lab import netns, processes
from tests.netns.site import Site, site, wait_until

# Asks once, says so, and waits for more.
HOLD = """
import socket, sys
with socket.create_connection((sys.argv[1], 80)) as s:
    s.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    print(len(s.recv(4096)), flush=True)
    s.recv(4096)
"""


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    name = f"st-sources-{os.getpid()}"
    with site(name=name, forward=Forward.FULLNAT, backends=2, clients=2) as built:
        yield built


@pytest.fixture(autouse=True)
def nobody_blocked(here: Site) -> Iterator[None]:
    before = here.config()
    yield
    here.reload(before)
    blocked = [each["prefix"] for each in here.get("/v1/guard")["blocks"]]
    if blocked:
        here.api.post("/v1/guard/unblock", {"prefixes": blocked})


def address_of(here: Site, client: str) -> str:
    addresses = here.lab.node(client).links[0].addresses
    return next(str(each.ip) for each in addresses if each.version == 4)


def block(here: Site, *prefixes: str, for_s: float = 600.0, why: str = "a test") -> Any:
    return here.api.post(
        "/v1/guard/block", {"prefixes": list(prefixes), "for_s": for_s, "why": why}
    )


def is_served(here: Site, client: str = "client", limit_s: int = 60) -> bool:
    """Whether curl gets an answer; nothing at all may come back otherwise."""
    url = f"http://{here.lab.vips[0]}/health"
    told = ("-sS", "-m", str(limit_s), "-o", "/dev/null", "-w", "%{http_code}")
    done = here.run(client, "curl", *told, url)
    assert done.returncode in (0, 28), done.stderr
    return bool(done.returncode == 0)


def is_dropped(here: Site) -> bool:
    """Whether nothing comes back."""
    return not is_served(here, limit_s=2)


def has_server(here: Site, source: str) -> Callable[[], bool]:
    """Whether a server's kernel has the connection, which a client has open now, still then."""
    flows = here.get("/v1/flows", client=source, state="established", limit="10")["flows"]
    port = f":{flows[0]['nat_source_port']}"

    def still() -> bool:
        command = ("ss", "-Htn", "state", "established", "sport", "=", ":80", "dport", "=", port)
        return any(here.run(name, *command).stdout for name in ("be1", "be2"))

    assert still()
    return still


def drops(here: Site) -> dict[str, int]:
    counted: dict[str, int] = here.get("/v1/services/web")["drops_total"]
    return counted


@contextlib.contextmanager
def holding(here: Site, client: str) -> Iterator[subprocess.Popen[str]]:
    command = [*netns.entering(here.lab.node(client).namespace), sys.executable, "-c", HOLD]
    environment = processes.environment(here.lab.run_dir)
    with subprocess.Popen(
        [*command, str(here.lab.vips[0])], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        try:
            yield process
        finally:
            process.kill()


def test_a_blocked_client_loses_its_connections_and_others_do_not(here: Site) -> None:
    source = address_of(here, "client")
    with holding(here, "client"), holding(here, "client2") as other:
        wait_until(
            "both are in the table",
            lambda: (
                {each["source"] for each in here.get("/v1/guard/top")["sources"]}
                >= {source, address_of(here, "client2")}
            ),
        )
        still = has_server(here, source)
        done = block(here, source)
        assert done == {
            "blocked": [source], "flows_ended": 1, "told_balancers": 0, "unsaved_problem": "",
        }  # fmt: skip
        wait_until("the server hears that it is over", lambda: not still())
        assert is_dropped(here)
        assert drops(here)["blocked"] > 0
        assert is_served(here, "client2")
        assert other.poll() is None
    tested = here.get("/v1/guard/test", address=source)
    assert {each["verdict"] for each in tested["services"]} == {"blocked"}
    assert tested["block"]["why"] == "a test"
    here.api.post("/v1/guard/unblock", {"prefixes": [source]})
    assert is_served(here)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.soak), signal.SIGKILL]
)
def test_blocks_outlive_the_agent_and_hold_while_it_is_away(
    here: Site, number: signal.Signals
) -> None:
    source = address_of(here, "client")
    block(here, source)
    before = here.get("/v1/guard")["blocks"]
    here.stop_agent(number)
    assert is_dropped(here)
    here.start_agent()
    after = here.get("/v1/guard")["blocks"]
    assert [each | {"left_s": 0} for each in after] == [each | {"left_s": 0} for each in before]
    assert is_dropped(here)
    here.api.post("/v1/guard/unblock", {"prefixes": [source]})
    here.stop_agent(number)
    here.start_agent()
    # So the next block does not wait for the compiler.
    assert "guard" in here.get("/v1/status")["dataplane"]["features"]


def test_a_block_ends_by_itself_also_if_the_agent_was_away_then(here: Site) -> None:
    source = address_of(here, "client")
    block(here, source, for_s=1.0)
    wait_until("the block ends", lambda: not here.get("/v1/guard")["blocks"])
    assert is_served(here)
    block(here, source, for_s=2.0)
    ended = time.time() + 2.0
    here.stop_agent(signal.SIGKILL)
    wait_until("its time is over", lambda: time.time() > ended)
    here.start_agent()
    assert not here.get("/v1/guard")["blocks"]
    wait_until("it is served", lambda: is_served(here))


def test_in_a_dry_run_it_is_counted_and_served(here: Site) -> None:
    document = here.config()
    for service in document["services"]:
        service["guard"] = "dry-run"
    here.reload(document)
    with holding(here, "client") as process:
        assert block(here, address_of(here, "client"))["flows_ended"] == 0
        assert is_served(here)
        assert process.poll() is None
    assert here.get("/v1/guard")["would_block_packets_total"] > 0


def listed(here: Site, name: str) -> Any:
    return next(each for each in here.get("/v1/guard")["lists"] if each["name"] == name)


def test_a_list_is_read_again_and_one_that_broke_stays_as_it_was(
    here: Site, tmp_path: Path
) -> None:
    path = tmp_path / "drop.txt"
    path.write_text("203.0.113.0/24 ; nobody\n")
    document = here.config()
    document["lists"] = {"drop": {"files": [str(path)]}}
    for service in document["services"]:
        service["deny"] = ["drop"]
    here.reload(document)
    assert listed(here, "drop")["prefixes"] == 1
    assert is_served(here)
    source = address_of(here, "client")
    with holding(here, "client") as process:
        path.write_text(f"203.0.113.0/24 ; nobody\n{source}\n")
        wait_until("the file is read again", lambda: listed(here, "drop")["prefixes"] == 2)
        assert is_dropped(here)
        assert is_served(here, "client2")
        assert process.poll() is None, "what is open stays"
    assert listed(here, "drop")["dropped_packets_total"] == drops(here)["denied"] > 0
    path.write_text("nonsense\n")
    # Not just some problem: it may be read before it is written, and is empty then.
    wait_until(
        "the file is found broken", lambda: f"{path}:1" in str(listed(here, "drop")["problem"])
    )
    assert is_dropped(here)
    path.write_text("")
    wait_until(
        "it is found empty",
        lambda: "hold no prefix any more" in str(listed(here, "drop")["problem"]),
    )
    assert is_dropped(here)
    path.write_text("203.0.113.0/24\n")
    wait_until("the file is read again", lambda: not listed(here, "drop")["problem"])
    assert is_served(here)


def test_a_reload_with_a_list_that_cannot_be_read_changes_nothing(here: Site) -> None:
    document = here.config()
    document["lists"] = {"drop": {"files": ["/nowhere/drop.txt"]}, "office": ["192.0.2.0/24"]}
    for service in document["services"]:
        service["deny"] = ["drop"]
    with pytest.raises(ApiRefusedError, match="list drop cannot be read"):
        here.reload(document)
    assert is_served(here)
    for service in document["services"]:
        service["deny"], service["allow"] = [], ["office"]
    here.reload(document)
    assert is_dropped(here)
    assert drops(here)["not-allowed"] > 0
