"""``python -m bench.scale``: what the control plane costs with many services and backends.

An agent runs in a network namespace, with a generated configuration; in another namespace, nginx
answers the checks of all backends. The figure that counts is the CPU time of the agent's process,
as it hardly depends on what else the machine does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import click
import yaml

from agent.api.client import Client
from agent.dataplane.program import require_root
from agent.errors import SteelyardError
from bench import machine
from lbctl.lab import netns, processes
from lbctl.lab.netns import LabError

_BALANCER, _BACKENDS, _INTERFACE = "scale-lb", "scale-be", "eth0"
_FIRST_BACKEND, _FIRST_VIP = IPv4Address("10.200.0.1"), IPv4Address("10.230.0.1")
_PORT = 8000
_TIMEOUT_S = 600.0
_TICKS = os.sysconf("SC_CLK_TCK")
_INTERVAL_S, _FALL = 2, 3


@dataclass(frozen=True, slots=True)
class Size:
    """The number of services, and of their backends in all."""

    services: int
    backends: int

    def __str__(self) -> str:
        return f"{self.services:,} x {self.backends:,}"


SIZES = (Size(10, 100), Size(100, 1000), Size(1000, 10_000))


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure; ``target``: the limit for it on one core at the largest size, if there is one."""

    name: str
    value: float
    unit: str
    target: float | None = None


class Agent:
    """The measured agent: its process, and a client of its socket."""

    def __init__(self, folder: Path, size: Size, check: str) -> None:
        self.folder, self.size = folder, size
        self.file = folder / "agent.yaml"
        self.file.write_text(_document(folder, size, check))
        self.client = Client(folder / "agent.sock", timeout_s=_TIMEOUT_S)
        started = time.monotonic()
        command = [*processes.program("lb-agent", "agent.main"), "run", "--config", str(self.file)]
        self._process = processes.start(
            folder, "agent", _BALANCER, [*command, "--log-format", "json"]
        )
        self._await_event("ready", started + _TIMEOUT_S)
        self.started_s = time.monotonic() - started
        self.start_cpu_s = self.cpu_s()

    def stop(self) -> None:
        """Stop the agent, and remove its pinned tables."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        command = [*processes.program("lb-agent", "agent.main"), "detach", "--config"]
        subprocess.run(
            [*netns.entering(_BALANCER), *command, str(self.file)], capture_output=True, check=False
        )

    def cpu_s(self) -> float:
        """Return the CPU time that the process has used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_mb(self) -> float:
        """Return the resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0

    def events(self, name: str, **fields: object) -> int:
        """Count the log lines with this event and these fields."""
        lines = map(json.loads, self._log().splitlines())
        wanted = {"event": name} | fields
        return sum(wanted.items() <= line.items() for line in lines)

    def edit(self, number: int, weight: int) -> None:
        """Set the weight of the first backend of a service; ``number`` picks the service."""
        service = number % self.size.services
        each = self.size.backends // self.size.services
        self.client.post(
            "/v1/edit",
            {
                "op": "backend.set",
                "service": f"service-{service}",
                "backend": f"gpu-{service * each}",
                "values": {"weight": weight},
            },
        )

    def _log(self) -> str:
        return "".join(
            line
            for line in (self.folder / "agent.log").read_text().splitlines(keepends=True)
            if line.startswith("{") and line.endswith("}\n")
        )

    def _await_event(self, name: str, until: float) -> None:
        while not self.events(name):
            if self._process.poll() is not None or time.monotonic() > until:
                last = (self.folder / "agent.log").read_text()[-2000:]
                raise LabError(f"the agent did not get ready: {last}", where=str(self.folder))
            time.sleep(0.05)


def _document(folder: Path, size: Size, check: str) -> str:
    """Return the configuration; ``check``: the type of its health checks, or `none`."""
    health: dict[str, object] = {"type": check}
    if check != "none":
        times = {"interval": f"{_INTERVAL_S}s", "timeout": "1s", "fall": _FALL, "port": _PORT}
        health |= times | ({"path": "/health"} if check == "http" else {})
    each = size.backends // size.services
    return yaml.dump(
        {
            "name": "scale",
            "interface": _INTERFACE,
            "socket": str(folder / "agent.sock"),
            "state_dir": str(folder),
            "metrics": "127.0.0.1:9217",
            "manage_vips": False,
            "tables": {
                "flows": 65_536,
                "services": max(128, size.services + 64),
                "backends": max(4096, size.backends + 2048),
            },
            "defaults": {"forward": "ipip", "scheduler": "least-load", "health": health},
            "services": [
                {
                    "name": f"service-{service}",
                    "vip": str(_FIRST_VIP + service),
                    "port": 80,
                    "backends": [
                        {"name": f"gpu-{n}", "address": str(_FIRST_BACKEND + n), "weight": 100}
                        for n in range(service * each, (service + 1) * each)
                    ],
                }
                for service in range(size.services)
            ],
        },
        sort_keys=False,
        Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
    )


_NGINX = """\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
worker_rlimit_nofile 65535;
events {{ worker_connections 20000; }}
http {{ access_log off; server {{
listen {port} backlog=65535; listen 80 backlog=65535; location / {{ return 200 "ok"; }} }} }}
"""


@contextmanager
def _network() -> Iterator[None]:
    """Make a namespace for the balancer, and one that has the addresses of all backends."""
    _remove()
    for name in (_BALANCER, _BACKENDS):
        netns.ip([f"netns add {name}"])
    try:
        for name, own in ((_BALANCER, "10.199.0.1"), (_BACKENDS, "10.199.0.2")):
            if name == _BALANCER:
                peer = f"peer name {_INTERFACE} netns {_BACKENDS}"
                netns.ip([f"link add {_INTERFACE} netns {_BALANCER} type veth {peer}"])
            netns.ip(
                [
                    "link set lo up",
                    f"addr add {own}/24 dev {_INTERFACE}",
                    f"link set {_INTERFACE} up",
                ],
                name,
            )
        netns.ip(["route add 10.200.0.0/15 via 10.199.0.2"], _BALANCER)
        netns.ip(["route add local 10.200.0.0/15 dev lo"], _BACKENDS)
        netns.ip([f"route add local {_FIRST_VIP - 1}/20 dev lo"], _BACKENDS)
        netns.write_sysctls(_BALANCER, {"net.ipv4.ip_local_port_range": "10000 65000"})
        netns.write_sysctls(_BACKENDS, {"net.core.somaxconn": "65535"})
        yield
    finally:
        _remove()


def _remove() -> None:
    for name in netns.names():
        if name in (_BALANCER, _BACKENDS):
            netns.ip([f"netns del {name}"])


@contextmanager
def _nginx(folder: Path, size: Size) -> Iterator[None]:
    """Run nginx, which answers every check, also at the VIPs."""
    if shutil.which("nginx") is None:
        raise LabError("nginx is not installed", where="the checks", remedy="apt install nginx")
    vips = [word for n in range(size.services) for word in ("--vip", str(_FIRST_VIP + n))]
    command = [*processes.program("lb-agent", "agent.main"), "decap", "--interface", _INTERFACE]
    subprocess.run([*netns.entering(_BACKENDS), *command, *vips], check=True, capture_output=True)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=_PORT))
    server = processes.start(folder, "nginx", _BACKENDS, ["nginx", "-c", str(config)])
    try:
        time.sleep(1)
        yield
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def _running(size: Size, check: str) -> Iterator[Agent]:
    with tempfile.TemporaryDirectory(prefix="steelyard-scale-") as name:
        folder = Path(name)
        with _network(), _nginx(folder, size) if check != "none" else nullcontext():
            agent = Agent(folder, size, check)
            try:
                yield agent
            finally:
                agent.stop()


def _share(agent: Agent, seconds: float) -> float:
    """Return the agent's CPU use over ``seconds``, in per cent of a core."""
    before, began = agent.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return 100 * (agent.cpu_s() - before) / (time.monotonic() - began)


def _cost(agent: Agent, work: Callable[[int], object], times: int) -> tuple[float, float]:
    """Return the milliseconds of CPU and of waiting per call of ``work``.

    The CPU time includes whatever else the agent does meanwhile.
    """
    took = []
    before = agent.cpu_s()
    for number in range(times):
        began = time.monotonic()
        work(number)
        took.append(time.monotonic() - began)
    return 1000 * (agent.cpu_s() - before) / times, 1000 * statistics.median(took)


def _reload(agent: Agent) -> Callable[[int], object]:
    text = agent.file.read_text()

    def once(number: int) -> None:
        agent.file.write_text(text.replace("weight: 100", f"weight: {90 + number}", 1))
        agent.client.post("/v1/reload", {})

    return once


def _metrics() -> bytes:
    page = "http://127.0.0.1:9217/metrics"
    read = f"import urllib.request as u, sys; sys.stdout.buffer.write(u.urlopen('{page}').read())"
    command = [*netns.entering(_BALANCER), sys.executable, "-c", read]
    return subprocess.run(command, capture_output=True, check=True).stdout


def at_rest(size: Size) -> Iterator[Figure]:
    """Measure without health checks: start, idle load, edits, reloads and API reads."""
    with _running(size, "none") as agent:
        yield Figure("start, to attached", agent.start_cpu_s, "s", 5)
        time.sleep(3)
        yield Figure("idle, without checks", _share(agent, 20), "% of a core", 10)
        times = 20 if size.services < SIZES[-1].services else 5
        cpu, wall = _cost(agent, lambda n: agent.edit(n, 50 + n), times)
        yield Figure("one edit", cpu, "ms", 50)
        yield Figure("one edit, waited for", wall, "ms")
        cpu, _ = _cost(agent, _reload(agent), max(times // 4, 2))
        yield Figure("reload of one weight", cpu, "ms", 1000)
        cpu, _ = _cost(agent, lambda _: agent.client.get("/v1/status"), 3)
        yield Figure("GET /v1/status", cpu, "ms")
        cpu, _ = _cost(agent, lambda _: agent.client.get("/v1/services"), 3)
        yield Figure("GET /v1/services", cpu, "ms")
        yield from _scrapes(agent, "", None)
        yield from _churn(agent)
        yield Figure("resident memory", agent.rss_mb(), "MB", 600)
        agent.file.write_text("metrics_backends: basic\n" + agent.file.read_text())
        agent.client.post("/v1/reload", {})
        yield from _scrapes(agent, ", basic", 10)


def _scrapes(agent: Agent, of: str, most_mb: float | None) -> Iterator[Figure]:
    pages: list[int] = []
    cpu, _ = _cost(agent, lambda _: pages.append(len(_metrics())), 3)
    yield Figure(f"GET /metrics{of}", cpu, "ms")
    yield Figure(f"/metrics{of}", pages[-1] / 1e6, "MB", most_mb)


def _churn(agent: Agent, seconds: float = 20, rate: float = 20) -> Iterator[Figure]:
    """Edit at a steady rate; an edit is sent when it is due and the previous one is done."""
    took: list[float] = []
    before, began = agent.cpu_s(), time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        due = began + len(took) / rate
        if now < due:
            time.sleep(due - now)
        at = time.monotonic()
        agent.edit(len(took), 20 + len(took) % 50)
        took.append(time.monotonic() - at)
    passed = time.monotonic() - began
    took.sort()
    yield Figure("edits made, of 20 a second", len(took) / passed, "a second", rate)
    yield Figure("edit, p99 of those", 1000 * took[int(len(took) * 0.99)], "ms", 100)
    yield Figure("CPU meanwhile", 100 * (agent.cpu_s() - before) / passed, "% of a core")


def with_checks(size: Size) -> Iterator[Figure]:
    """Measure with health checks of every backend, then let a twentieth of them die at once."""
    with _running(size, "http") as agent:
        time.sleep(5)
        rate = size.backends / _INTERVAL_S
        yield Figure(f"{rate:,.0f} http checks/s", _share(agent, 20), "% of a core", 30)
        dead = size.backends // 20
        last = _FIRST_BACKEND + (dead - 1)
        rule = f"ip daddr {_FIRST_BACKEND}-{last} tcp dport {_PORT} drop"
        chain = f"chain input {{\ntype filter hook input priority 0\n{rule}\n}}"
        before, began = agent.events("backend", new="down"), time.monotonic()
        nft = [*netns.entering(_BACKENDS), "nft", "-f", "-"]
        subprocess.run(nft, input=f"table ip scale {{\n{chain}\n}}\n", text=True, check=True)
        while agent.events("backend", new="down") - before < dead:
            if time.monotonic() - began > 60:
                raise LabError(f"{dead} dead backends are not all out after 60 s", where="checks")
            time.sleep(0.1)
        bound = _FALL * _INTERVAL_S + 1.0 + 1.0
        yield Figure(f"{dead} die at once: all out", time.monotonic() - began, "s", bound)


PARTS: dict[str, Callable[[Size], Iterator[Figure]]] = {
    "rest": at_rest,
    "checks": with_checks,
}


def _line(size: Size, figure: Figure) -> str:
    target = "" if figure.target is None or size != SIZES[-1] else f"{figure.target:g}"
    return f"| {size} | {figure.name} | {figure.value:,.4g} | {figure.unit} | {target} |"


def _sizes(_context: object, _parameter: object, texts: tuple[str, ...]) -> tuple[Size, ...]:
    try:
        pairs = [tuple(map(int, text.split("x"))) for text in texts]
        return tuple(Size(*pair) for pair in pairs) or SIZES
    except (TypeError, ValueError):
        raise click.BadParameter("write SERVICESxBACKENDS, such as 100x1000") from None


@click.command()
@click.option(
    "--size",
    "sizes",
    multiple=True,
    callback=_sizes,
    metavar="SERVICESxBACKENDS",
    help="Only this size; can be given more than once.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(list(PARTS)),
    help="Only this part; can be given more than once.",
)
def main(sizes: tuple[Size, ...], parts: tuple[str, ...]) -> None:
    """Measure the agent's CPU time with many services and backends. Needs root."""
    try:
        require_root()
        on = machine.describe()
        print(f"{on.cpu}, {on.cpus} CPUs, Linux {on.kernel}, {on.commit}\n")
        print("| services x backends | what | value | unit | to reach |\n|-|-|-:|-|-:|", flush=True)
        for size in sizes:
            for part in parts or PARTS:
                for figure in PARTS[part](size):
                    print(_line(size, figure), flush=True)
    except SteelyardError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
