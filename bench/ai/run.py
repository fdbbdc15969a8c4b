"""Owns the real run: engines, a balancer and a client in the lab, case after case."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from agent.errors import SteelyardError
from agent.model import TelemetryKind
from agent.telemetry.engines import read_engine
from agent.telemetry.report import EngineReport
from bench.ai import plan as plans
from bench.ai import setups
from bench.ai.client import SOURCES
from bench.ai.plan import Played
from bench.ai.setups import Setup, Start
from bench.ai.simulator import Scenario
from bench.peers import wiring
from bench.peers.wiring import Cores, Wired
from lbctl.lab import build, netns, topology
from lbctl.lab.topology import Role

_WARM_UP_TIMEOUT_S = 60.0
_ENGINE_PATIENCE_S = 10.0
_REST_S = 0.3  # between two cases


class RunError(SteelyardError):
    """The real run cannot go on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One case of one contender; times of answers are in the engines' time."""

    played: Played
    duration_s: float  # in the machine's time
    idle_share: float  # of all processors
    balancer_cpu_s: float  # of the processes on the balancer, and of the tier
    cached_share: float  # of all prompt tokens, those found in prefix caches


def run(
    start: Start, scenarios: Mapping[str, Scenario], setup: Setup, warm_up: Scenario
) -> dict[str, Measured]:
    """Run all cases of one contender in one network, so it keeps what it has learned."""
    found: dict[str, Measured] = {}
    with _network(setup) as wired:
        start(wired)
        _play(wired, setup, warm_up)
        for name, scenario in scenarios.items():
            with _silenced(wired, scenario.lost):
                time.sleep(_REST_S)
                found[name] = _play(wired, setup, scenario)
    return found


@contextmanager
def _network(setup: Setup) -> Iterator[Wired]:
    """Build the network with its engines; remove it at the end of the block."""
    cpus = sorted(os.sched_getaffinity(0))
    made = Wired(setup.lab, Cores(cpus[-1], frozenset(cpus)))
    with wiring.wired(made, partial(_start_engines, setup)) as wired:
        yield wired


def _start_engines(setup: Setup, wired: Wired) -> None:
    if wired.lab.forward.is_nat:  # otherwise client and servers share a network
        _let_bypass(wired)
    if setup.has_sources:
        _have_sources(wired)
    for backend in wired.backends:
        command = [*build.server_command(wired.lab, backend), *setup.engine]
        if setup.tls:  # nginx has the port that clients use
            at = command.index("--port")
            del command[at : at + 2]
        wired.start(backend, backend.name, command)
    if setup.tls:
        setups.start_tls_fronts(wired)
    _await_engines(wired)


def _have_sources(wired: Wired) -> None:
    """Give the client a whole network of addresses, and all others a route to it."""
    netns.ip([f"route add local {SOURCES} dev lo"], wired.client.namespace)
    others = wired.lab.nodes(Role.CLIENT)[1:]
    for node in (wired.balancer, *others, *wired.backends):
        netns.ip([f"route add {SOURCES} via {wired.client.ipv4}"], node.namespace)


def _let_bypass(wired: Wired) -> None:
    """Let client and servers, two networks on one bridge, reach each other past the balancer."""
    for node, other in [(wired.client, wired.backends[0])] + [
        (backend, wired.client) for backend in wired.backends
    ]:
        network = next(a.network for a in other.links[0].addresses if a.version == 4)
        netns.ip([f"route add {network} dev {topology.NODE_INTERFACE}"], node.namespace)


def _await_engines(wired: Wired) -> None:
    deadline = time.monotonic() + _ENGINE_PATIENCE_S
    for node in wired.backends:
        while f":{wired.lab.server_port} " not in wired.run(node.namespace, "ss", "-Hltn"):
            if time.monotonic() > deadline:
                raise RunError("an engine does not listen", where=node.namespace)
            time.sleep(0.05)


@contextmanager
def _silenced(wired: Wired, lost: frozenset[int]) -> Iterator[None]:
    """Drop the telemetry of these servers, whose requests use another port."""
    nodes = [wired.backends[server] for server in sorted(lost)]
    rules = (
        "table inet silent {\n chain input {\n  type filter hook input priority 0;\n"
        f"  tcp dport {topology.ENGINE_PORT} drop\n }}\n}}\n"
    )
    for node in nodes:
        wired.run(node.namespace, "nft", "-f", "-", text=rules)
    try:
        yield
    finally:
        for node in nodes:
            wired.run(node.namespace, "nft", "delete", "table", "inet", "silent")


def _play(wired: Wired, setup: Setup, scenario: Scenario) -> Measured:
    """Run a scenario with a client process of its own."""
    port = wired.lab.server_port
    targets = [
        "{}:{}".format(*setup.front),
        *(f"{node.ipv4}:{port}" for node in wired.backends),
    ]
    source, result = wired.file("plan.json"), wired.file("result.json")
    plan = replace(plans.make(scenario, targets, wired.lab.time_scale), tls=setup.tls or setup.tier)
    plans.write(source, plan)
    command = [sys.executable, "-m", "bench.ai.client"]
    command += ["--plan", str(source), "--result", str(result)]
    longest_s = plan.asks[-1].at_s + plan.patience_s + _WARM_UP_TIMEOUT_S
    nodes = [wired.balancer, *wired.lab.nodes(Role.CLIENT)[1:]]  # the tier's host is the last one
    tokens, balancer_s = _tokens(wired), sum(_cpu_s(node.namespace) for node in nodes)
    idle_s, began_s = _idle_s(), time.monotonic()
    wired.run(wired.client.namespace, *command, timeout_s=longest_s)
    duration_s = time.monotonic() - began_s
    cpus = os.cpu_count() or 1
    idle_share = (_idle_s() - idle_s) / duration_s / cpus
    balancer_s = sum(_cpu_s(node.namespace) for node in nodes) - balancer_s
    prompt, cached = (after - before for before, after in zip(tokens, _tokens(wired), strict=True))
    played = plans.read_played(result)
    return Measured(played, duration_s, idle_share, balancer_s, cached / max(1.0, prompt))


def _tokens(wired: Wired) -> tuple[float, float]:
    """Return all engines' prompt tokens, and how many of them were found in caches."""
    prompt = cached = 0.0
    for node in wired.backends:
        url = f"http://{node.ipv4}:{topology.ENGINE_PORT}/metrics"
        page = wired.run(wired.client.namespace, "curl", "-sf", "--noproxy", "*", url)
        report = read_engine(TelemetryKind.VLLM, page.encode())
        if isinstance(report, EngineReport):
            prompt += report.prompt_tokens or 0.0
            cached += report.cached_tokens or 0.0
    return prompt, cached


def _cpu_s(namespace: str) -> float:
    """Return the CPU time of all processes in a network namespace."""
    inode = netns.path(namespace).stat().st_ino
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            if (process / "ns/net").stat().st_ino == inode:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # utime and stime: proc_pid_stat(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def _idle_s() -> float:
    """Return the idle and waiting seconds of all processors, since the boot."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
