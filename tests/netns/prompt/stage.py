"""Sets up a lab with the servers of all cases, plays them at the same time, keeps what was seen."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.model import Forward, Hook
from lbctl.lab import processes, topology
from lbctl.lab.topology import Node
from tests.netns.prompt import nginx, wire
from tests.netns.prompt.cases import Case, Server, Talk, cases_for
from tests.netns.prompt.clients import Door
from tests.netns.prompt.judge import Answered, Reading
from tests.netns.prompt.ledger import Counted, Ledger, Watch
from tests.netns.prompt.relay import Faults, Relay, behind_relay
from tests.netns.prompt.tap import Tap, tapped
from tests.netns.site import Site, site, wait_until

FIRST_PORT = 7100
_BEHIND_NGINX = 8900
_FAULTS = Faults(lose=9, hold=7, double=11)
_DRIFT_TIMEOUT_S = 90.0
_METRICS_AGE_S = 60.0  # figures are not older


@dataclass
class Played:
    """What became of a case."""

    case: Case
    backend: int
    talks: list[Talk] = field(default_factory=list)
    trouble: str = ""
    from_ns: int = 0
    to_ns: int = 0
    readings: list[Reading] = field(default_factory=list)
    times_us: list[float] = field(default_factory=list)  # of its answers, by the kernel
    connections: dict[int, wire.Pair] = field(default_factory=dict)  # by the client's port
    requests: dict[int, Answered] = field(default_factory=dict)
    left: int = 0  # bytes that still waited when all was over
    counted: Counted | None = None
    relay: Relay | None = None
    metrics: str = ""


type Show = dict[str, Played]  # cases by name


def _service(case: Case, door: Door, backend: Node) -> dict[str, Any]:
    return {
        "name": case.name,
        "vip": door.vip,
        "port": door.port,
        "health": {"type": "none"},
        "backends": [
            {
                "name": backend.name,
                "address": str(backend.ipv6 if case.ipv6 else backend.ipv4),
            }
        ],
        **case.service,
    }


def _start_servers(lab: Site, doors: dict[str, Door], cases: Sequence[Case], log: Path) -> None:
    run_dir, backend = lab.lab.run_dir, lab.lab.node("be1")
    certificate, key = nginx.make_certificate(run_dir)

    def ports(kind: Server) -> list[int]:
        return [doors[case.name].port for case in cases if case.server is kind]

    def start(name: str, *command: object) -> None:
        words = [str(word) for word in command]
        processes.start(run_dir, name, backend.namespace, words)

    here = "tests.netns.prompt"
    upstream_ports = [_BEHIND_NGINX, *ports(Server.UPSTREAM)]
    start("upstream", sys.executable, "-m", f"{here}.upstream", "--log", log, *upstream_ports)
    tls = [word for port in ports(Server.RPC_TLS) for word in ("--tls-port", port)]
    start(
        "rpc",
        *(sys.executable, "-m", f"{here}.rpc_server", "--log", log),
        *("--certificate", certificate, "--key", key, *tls, *ports(Server.RPC)),
    )
    fronts = [
        replace(case.front, port=doors[case.name].port)
        for case in cases
        if case.server is Server.NGINX
    ]
    config = nginx.write_config(run_dir / "nginx", fronts, _BEHIND_NGINX, certificate, key)
    start("nginx", "nginx", "-p", config.parent, "-c", config)


def _await_ports(lab: Site, doors: dict[str, Door]) -> None:
    """Until every server listens."""

    def listening() -> set[int]:
        shown = lab.run("be1", "ss", "-Hnlt").stdout
        return {int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines()}

    wanted = {door.port for door in doors.values()} | {_BEHIND_NGINX}
    wait_until("the servers listen", lambda: wanted <= listening())


def _play(played: Played, door: Door) -> None:
    played.from_ns = time.monotonic_ns()
    try:
        played.talks = played.case.play(door)
    except Exception:  # noqa: BLE001 (the test of the case shows it)
        played.trouble = traceback.format_exc()
    played.to_ns = time.monotonic_ns()


def _logged(log: Path) -> dict[str, Answered]:
    """The server's view of each request."""
    events: dict[str, dict[str, int]] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        events.setdefault(entry["id"], {})[entry["event"]] = entry["at_ns"]
    return {
        ident: Answered(seen["received"], seen.get("first"), seen.get("done"))
        for ident, seen in events.items()
        if "received" in seen
    }


def _tapped(lab: Site, node: str) -> AbstractContextManager[Tap]:
    return tapped(lab.lab.node(node).namespace, topology.NODE_INTERFACE)


def _fill(played: Played, door: Door, watch: Watch, log: Path) -> None:
    """What was seen of a case."""
    margin_ns = 10**9
    played.readings = [
        reading
        for reading in watch.curve(played.backend)
        if played.from_ns - margin_ns < reading[0] < played.to_ns + margin_ns
    ]
    played.times_us = watch.times_us(played.backend)
    prefix = f"{door.name}-"
    played.requests = {
        int(ident.removeprefix(prefix)): answered
        for ident, answered in _logged(log).items()
        if ident.startswith(prefix) and ident.removeprefix(prefix).isdigit()
    }


def _doors(lab: Site, cases: Sequence[Case], far: str) -> dict[str, Door]:
    """A port for each case; ``far``: the namespace behind the relay."""
    near, vips = lab.lab.node("client").namespace, lab.lab.vips
    return {
        case.name: Door(
            case.name,
            far if case.relayed else near,
            str(vips[case.ipv6]),
            FIRST_PORT + place,
            lab.lab.run_dir,
        )
        for place, case in enumerate(cases)
    }


def _serve(lab: Site, doors: dict[str, Door], cases: Sequence[Case], log: Path) -> None:
    """Servers that listen, and services in the balancer."""
    log.touch()
    _start_servers(lab, doors, cases, log)
    document, backend = lab.config(), lab.lab.node("be1")
    document["services"] += [_service(case, doors[case.name], backend) for case in cases]
    lab.write_config(document)
    lab.api.post("/v1/reload", {})
    _await_ports(lab, doors)


def perform(forward: Forward, all_cases: Sequence[Case], hook: Hook = Hook.NATIVE) -> Show:
    """Play the cases of a mode in a lab of their own, all at once."""
    cases = cases_for(forward, all_cases)
    name = f"st-pr{os.getpid()}-{forward.value}"
    with (
        site(name=name, backends=1, clients=2, forward=forward, hook=hook) as lab,
        behind_relay(lab.lab.node("client2")) as (far, relay),
    ):
        log, doors = lab.lab.run_dir / "prompt.log", _doors(lab, cases, far)
        spared = frozenset(doors[case.name].port for case in cases if case.spared)
        relay.faults = replace(_FAULTS, spared=spared)
        _serve(lab, doors, cases, log)
        ledger = Ledger(lab.balancer.namespace)
        show: Show = {
            case.name: Played(
                case, ledger.backend_of(lab.lab.vips[case.ipv6], doors[case.name].port)
            )
            for case in cases
        }
        backends = [played.backend for played in show.values()]
        with (
            _tapped(lab, "client") as near,
            _tapped(lab, "client2") as behind,
            _tapped(lab, "be1") as server,
            Watch(ledger, backends) as watch,
        ):
            with ThreadPoolExecutor(len(cases)) as pool:
                for case in cases:
                    pool.submit(_play, show[case.name], doors[case.name])
            _await_nothing_waits(ledger, backends)
            sent = {False: near.segments(), True: behind.segments()}
            arrived = server.segments()
        for name, played in show.items():
            port = doors[name].port
            played.connections = wire.pairs(sent[played.case.relayed], arrived, port)
            _fill(played, doors[name], watch, log)
            played.counted = ledger.counted(played.backend)
            (played.left,) = ledger.waiting([played.backend])
        metrics = _metrics(lab, [played.counted for played in show.values() if played.counted])
        for played in show.values():
            played.relay, played.metrics = relay, metrics
        return show


def _await_nothing_waits(ledger: Ledger, backends: Sequence[int]) -> None:
    """Until every sum is 0, or for as long as any timeout takes: the tests say which are not."""
    deadline = time.monotonic() + _DRIFT_TIMEOUT_S
    while any(ledger.waiting(backends)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _metrics(lab: Site, counted: Sequence[Counted]) -> str:
    """The page for Prometheus, as soon as it has all of that and nothing waits, or as it is in the
    end. The agent reads the tables one after the other, so one may be older than another.
    """
    url, deadline = "http://127.0.0.1:9117/metrics", time.monotonic() + _METRICS_AGE_S
    answers, timed = sum(c.answers for c in counted), sum(sum(c.first_byte) for c in counted)
    while True:
        page: str = lab.run(lab.balancer.name, "curl", "-q", "-sS", "--noproxy", "*", url).stdout
        waits = _total(page, "steelyard_waiting_bytes")
        shown = _total(page, "steelyard_answers_total")
        shown_timed = _total(page, "steelyard_first_byte_seconds_count")
        if (shown >= answers and shown_timed >= timed and not waits) or time.monotonic() > deadline:
            return page
        time.sleep(0.1)


def _total(page: str, family: str) -> float:
    """The sum of a family over the services of cases."""
    lines = [line for line in page.splitlines() if line.startswith(f"{family}{{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'service="web' not in line)
