"""A lab of its own for a test: real clients, servers and an agent in namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from unittest import mock

import yaml

from agent.api.client import Client
from agent.errors import SteelyardError
from agent.model import Hook
from lbctl.lab import build, documents, netns, processes
from lbctl.lab.topology import Lab, Node

START_S = 300.0  # an agent may have to compile its program first


def wait_until(what: str, condition: Any, timeout_s: float = 90.0) -> None:
    """Poll until it is so; fail with ``what`` otherwise.

    The limit ends a test that would wait for ever; it says nothing about how fast a host is.
    """
    deadline, pause_s = time.monotonic() + timeout_s, 0.02
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.2)  # an agent that is asked all the time does little else


def _is_stopped(pid: int) -> bool:
    """Whether all threads of a process are stopped (proc_pid_stat(5))."""
    try:
        files = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread has just ended
        return False
    return bool(files) and all(file.rpartition(")")[2].split()[0] == "T" for file in files)


def freeze(pid: int) -> None:
    """Stop a process; on a busy host its threads go on for a while after the signal."""
    os.kill(pid, signal.SIGSTOP)
    wait_until("the process is stopped", lambda: _is_stopped(pid))


class Load(dict[str, Any]):
    """Traffic on its way; the generator's summary and ``records`` once it has ended."""

    def __init__(self, written: IO[str]) -> None:
        super().__init__(records=[])
        self._written = written

    def requests(self) -> int:
        """Those that have ended, well or not."""
        return self._text().count('"record": "request"')

    def wait(self, more: int = 50) -> None:
        """Until so many more requests have ended: what happens next happens under load."""
        wanted = self.requests() + more
        wait_until(f"{wanted} requests have ended", lambda: self.requests() >= wanted)

    def close(self) -> None:
        *records, summary = [json.loads(line) for line in self._text().splitlines()]
        self.update(summary, records=records)

    def _text(self) -> str:
        # Not by reading the file itself: its offset is shared with the generator that writes.
        return Path(f"/proc/self/fd/{self._written.fileno()}").read_text()


@dataclass
class Site:
    """A running lab and what tests do to it, by one of its balancers."""

    lab: Lab
    at: str = "lb1"

    @property
    def balancer(self) -> Node:
        return self.lab.node(self.at)

    def on(self, balancer: str) -> Site:
        """The same, by another balancer."""
        return Site(self.lab, balancer)

    @property
    def api(self) -> Client:
        # A change may compile a program, which takes its time on a busy host.
        return Client(self.lab.socket(self.balancer), timeout_s=180.0)

    def run(self, node: str, *command: str, timeout_s: float = 120.0) -> Any:
        """A command in a node's namespace."""
        return subprocess.run(
            [*netns.entering(self.lab.node(node).namespace), *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=processes.environment(self.lab.run_dir),
        )

    def agent(self, *arguments: str, timeout_s: float = 120.0) -> Any:
        """``lb-agent`` in the balancer's namespace."""
        program = processes.program("lb-agent", "agent.main")
        return self.run(self.balancer.name, *program, *arguments, timeout_s=timeout_s)

    def get(self, path: str, **params: str) -> Any:
        return self.api.get(path, params) if params else self.api.get(path)

    def edit(self, op: str, **body: Any) -> Any:
        return self.api.post("/v1/edit", {"op": op, **body})

    def backend(self, service: str, name: str) -> Any:
        return next(b for b in self.get(f"/v1/services/{service}")["backends"] if b["name"] == name)

    def config(self) -> Any:
        return yaml.safe_load(self.lab.config_path(self.balancer).read_text())

    def write_config(self, document: Any) -> None:
        text = document if isinstance(document, str) else yaml.safe_dump(document)
        self.lab.config_path(self.balancer).write_text(text)

    def reload(self, document: Any) -> None:
        """Write the configuration and have the agent take it over."""
        self.write_config(document)
        self.api.post("/v1/reload", {"confirmed": True})

    def agent_pid(self) -> int | None:
        return processes.pid_of(self.lab.run_dir, self.balancer.name)

    def signal_agent(self, number: signal.Signals) -> None:
        pid = self.agent_pid()
        assert pid is not None
        if number is signal.SIGSTOP:
            freeze(pid)
        else:
            os.kill(pid, number)

    def stop_agent(self, number: signal.Signals) -> None:
        self.signal_agent(number)
        wait_until("the agent ends", lambda: self.agent_pid() is None)

    def start_agent(self) -> None:
        build.start_agent(self.lab, self.balancer)
        wait_until("the agent answers", self._answers, START_S)

    def _answers(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self.get("/v1/status"))
        return False

    def xdp_program_id(self) -> int:
        links = json.loads(self.run(self.balancer.name, "ip", "-j", "link", "show", "eth0").stdout)
        return int(links[0].get("xdp", {}).get("prog", {}).get("id", 0))

    @contextlib.contextmanager
    def load(self, rate: int = 200, keep_alive: int = 10, streams: int = 5) -> Iterator[Load]:
        """Traffic from the client before, while and after the block runs."""
        command = [*netns.entering(self.lab.node("client").namespace), sys.executable]
        command += ["-m", "lbctl.lab.load", "--rate", str(rate), "--timeout", "60"]
        command += ["--keep-alive", str(keep_alive), "--streams", str(streams)]
        for vip in self.lab.vips:
            host = f"[{vip}]" if vip.version == 6 else str(vip)
            command += ["--target", f"{host}:80"]
        # A file: the load would stand still once a pipe that nobody reads is full.
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                command, stdout=out, env=processes.environment(self.lab.run_dir)
            )
            load = Load(out)
            try:
                load.wait()
                yield load
                load.wait()
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=120)
            load.close()


def assert_unharmed(load: Load) -> None:
    """No request failed, and no held connection broke."""
    assert load["requests"] >= 100
    assert load["failed"] == 0, load["errors"]
    broke = [r for r in load["records"] if r.get("event") in ("broke", "refused")]
    assert not broke, broke[:3]


@contextlib.contextmanager
def site(
    services: Callable[[Lab], list[dict[str, Any]]] = lambda _: [], **options: Any
) -> Iterator[Site]:
    """Build a lab, give it to a test, remove it; with native XDP, as network cards have it.

    ``services``: what its agent is configured with beside the lab's own. To add them later would
    compile two programs.
    """
    lab = Lab(**{"hook": Hook.NATIVE} | options)
    build.down(lab.name, lambda _text: None)
    with _configured(services):
        build.up(lab, build.Owner(), lambda _text: None)
    try:
        yield Site(lab)
    finally:
        build.down(lab.name, lambda _text: None)
        assert not build.leftovers(lab.name)


@contextlib.contextmanager
def _configured(services: Callable[[Lab], list[dict[str, Any]]]) -> Iterator[None]:
    """Agents of labs that are built meanwhile have these services, too, and are more patient: on a
    busy host, a server that is well may be late twice in a row.
    """
    own, own_answers = documents.agent_document, build.await_answers

    def document(lab: Lab, balancer: Node) -> dict[str, Any]:
        made: dict[str, Any] = own(lab, balancer)
        made["defaults"]["health"]["fall"] = 8
        return made | {"services": made["services"] + services(lab)}

    def await_backends(lab: Lab, balancer: Node, wanted: int) -> None:
        """Of the lab's own services: others may have fewer, or none."""
        here = Site(lab, balancer.name)

        def are_up() -> bool:
            with contextlib.suppress(SteelyardError):  # it starts
                up = {s["name"]: s["backends_up"] for s in here.get("/v1/services")["services"]}
                return all(up[service.name] >= wanted for service in lab.services)
            return False

        wait_until("the backends are up", are_up, START_S)

    def await_answers(lab: Lab) -> None:
        own_answers(lab, timeout_s=90)

    with (
        mock.patch.object(documents, "agent_document", document),
        mock.patch.object(build, "await_answers", await_answers),
        mock.patch.object(build, "await_backends", await_backends),
    ):
        yield
