"""Owns the real run: engines, a balancer and a client in the lab, case after case."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SteelyardError
from bench.ai import plan as plans
from bench.ai import setups
from bench.ai.contenders import Contender
from bench.ai.plan import Played
from bench.ai.simulator import Scenario
from bench.peers import wiring
from bench.peers.wiring import Cores, Wired
from lbctl.lab import build, netns, topology

_WARM_UP_TIMEOUT_S = 60.0
_ENGINE_PATIENCE_S = 10.0
_REST_S = 0.3  # between two cases


class RunError(SteelyardError):
    """The real run cannot go on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One case of one contender; times of answers are the engines' own."""

    played: Played
    duration_s: float  # of the machine
    idle_share: float  # of all processors


def run(
    contender: Contender,
    scenarios: Mapping[str, Scenario],
    weights: Sequence[int],
    time_scale: float,
    warm_up: Scenario,
) -> dict[str, Measured]:
    """All cases of one contender, in one network: what it has learned it keeps."""
    servers = len(warm_up.fleet)
    found: dict[str, Measured] = {}
    with _network(servers, weights, time_scale) as wired:
        contender.start(wired)
        _play(wired, warm_up, time_scale)
        for name, scenario in scenarios.items():
            with _silenced(wired, scenario.lost):
                time.sleep(_REST_S)
                found[name] = _play(wired, scenario, time_scale)
    return found


@contextmanager
def _network(servers: int, weights: Sequence[int], time_scale: float) -> Iterator[Wired]:
    """Built with its engines, and removed with the block."""
    cpus = sorted(os.sched_getaffinity(0))
    lab = setups.lab(servers, weights, time_scale)
    with wiring.wired(Wired(lab, Cores(cpus[-1], frozenset(cpus))), _start_engines) as wired:
        yield wired


def _start_engines(wired: Wired) -> None:
    _let_bypass(wired)
    for backend in wired.backends:
        build.start_server(wired.lab, backend)
    _await_engines(wired)


def _let_bypass(wired: Wired) -> None:
    """Client and servers are two networks on one bridge: let them speak past the balancer."""
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
    """Nothing is heard from the metrics of these servers; their requests come by another port."""
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


def _play(wired: Wired, scenario: Scenario, time_scale: float) -> Measured:
    """Everything of a scenario, by a client process of its own."""
    port = wired.lab.server_port
    targets = [
        f"{wired.vip}:{topology.PORT}",
        *(f"{node.ipv4}:{port}" for node in wired.backends),
    ]
    source, result = wired.file("plan.json"), wired.file("result.json")
    plan = plans.make(scenario, targets, time_scale)
    plans.write(source, plan)
    command = [sys.executable, "-m", "bench.ai.client"]
    command += ["--plan", str(source), "--result", str(result)]
    longest_s = plan.asks[-1].at_s + plan.patience_s + _WARM_UP_TIMEOUT_S
    idle_s, began_s = _idle_s(), time.monotonic()
    wired.run(wired.client.namespace, *command, timeout_s=longest_s)
    duration_s = time.monotonic() - began_s
    cpus = os.cpu_count() or 1
    idle_share = (_idle_s() - idle_s) / duration_s / cpus
    return Measured(plans.read_played(result), duration_s, idle_share)


def _idle_s() -> float:
    """Idle and waiting seconds of all processors, since the start."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
