"""A control that keeps everything in memory, and a real server on a real Unix socket."""

import asyncio
import contextlib
import dataclasses
import json
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest

from agent.api import (
    discoveryviews,
    failoverviews,
    fleetviews,
    guardviews,
    scaleviews,
    trace,
    views,
)
from agent.api.server import ApiServer
from agent.auditlog import AuditLog
from agent.config.edit import apply_edits
from agent.config.load import parse
from agent.config.origins import origins
from agent.config.plan import plan
from agent.config.versions import Version
from agent.fleet.overview import Overview
from agent.fleet.reports import Difference, Report
from agent.fleet.versions import Active, Ended, FleetVersion, Rollout
from agent.logs import LogLevel
from agent.model import BackendState, Health, HealthStatus, NextHop, Protocol, ServiceState
from agent.state.causes import Troubles
from agent.state.events import Lost
from agent.state.fleetview import FleetStatus
from agent.state.guardview import Blocked, Verdicts
from agent.state.journal import Entry, newest, tally
from agent.state.matrix import Matrix, MatrixCell
from agent.state.moves import Moved
from agent.state.queries import (
    Draw,
    Explanation,
    FiveTuple,
    FlowPage,
    FlowRequests,
    FlowView,
    TopPage,
    TopSource,
)
from agent.state.snapshot import (
    BackendCounts,
    BackendSnapshot,
    DataplaneSnapshot,
    Handshakes,
    Latency,
    Load,
    NatPorts,
    Page,
    Rates,
    RecentTimes,
    ServiceRow,
    ServiceSnapshot,
    Snapshot,
)
from agent.state.tables import ServiceSlot
from tests import described

SERVER = ServiceSlot(ip_address("192.0.2.1"), 80, 6)

NOW = 1_700_000_000.0

CONFIG = """
name: edge-1
interface: eth0
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    protocol: tcp
    health: {type: http, path: /health}
    backends:
      - {name: gpu-1, address: 10.0.0.21}
      - {name: gpu-2, address: 10.0.0.22, weight: 50}
  - name: dns
    vip: "fd00::10"
    port: any
    protocol: udp
    backends:
      - {name: ns-1, address: "fd00::21", state: drain}
"""

TIMES = Latency((3,), count=4, sum_s=1.5, recent_count=2, recent_p50_ms=250.1234)
LOAD = Load(
    open=6,
    busy=5,
    idle_resets=2,
    score=7.5678,
    waiting_bytes=4096,
    awaiting=2,
    first_byte=TIMES,
    handshake=Latency(()),
)
FLOW = FlowView(
    "chat",
    FiveTuple(Protocol.TCP, ip_address("192.0.2.7"), 1234, ip_address("10.0.0.10"), 80),
    "gpu-1",
    "established",
    12.5,
    0.25,
    (ip_address("10.0.0.1"), 10_240),
    FlowRequests(awaiting=True, waiting_bytes=4096, handshake_ms=0.7312, talk="http2"),
)


def backend_snapshot(backend, state=BackendState.UP, **changes):
    view = BackendSnapshot(
        backend=backend,
        id=1,
        state=state,
        reason="2 checks passed",
        since=NOW - 60,
        health=HealthStatus(Health.UP, "200 OK", NOW - 61.5, latency_ms=1.2345),
        next_hop=NextHop(
            backend.address, 3, "02:00:00:00:00:21", "02:00:00:00:00:01", 1500, on_link=True
        ),
        weight_effective=backend.weight,
        weight_reason="as configured",
        share_expected=2 / 3,
        share_actual=0.7,
        flows=4,
        counts=BackendCounts(10, 1000, 5, 1, 4, reply_packets=8, reply_bytes=800, answers=7),
        rates=Rates(1.0, 2.0, 3.0, 0.0),
        load=LOAD,
    )
    return dataclasses.replace(view, **changes)


def make_snapshot(config):
    chat, dns = config.services
    return Snapshot(
        at=NOW,
        version="0.1.0",
        name=config.name,
        pid=42,
        started=NOW - 3600,
        config_path="/etc/steelyard/agent.yaml",
        config_problem="",
        changes_since_file=1,
        reconcile_problem="",
        defects=0,
        events={},
        link_problems=("eth0 has no carrier",),
        vip_problems=("8e:c8:18:5b:31:e4 answers for 10.9.0.100, too: it is no backend's",),
        dataplane=DataplaneSnapshot(
            interface="eth0",
            ifindex=2,
            attached=True,
            hook="native",
            hook_reason="the driver supports it",
            driver="virtio_net",
            program_id=7,
            abi=1,
            features=("ipv6",),
            compile_ms=223.456,
            instructions=900,
            jited_bytes=5000,
            verified_insns=12_345,
            flow_slots=1000,
            flows_by_state={"established": 50, "acked": 25, "embryonic": 20, "closing": 5},
            passed={"not-vip": 12},
            backend_interfaces=("eth1",),
            nat_ports=(NatPorts(ip_address("198.51.100.200"), SERVER, 5, 22_528),),
            events_lost=9,
        ),
        services=(
            ServiceSnapshot(
                service=chat,
                id=1,
                state=ServiceState.DEGRADED,
                reason="1 of 2 backends up",
                since=NOW - 10,
                backends=(
                    backend_snapshot(chat.backends[0]),
                    backend_snapshot(
                        chat.backends[1],
                        BackendState.UNREACHABLE,
                        next_hop=None,
                        health=HealthStatus(Health.CHECKING, "no check yet", NOW),
                    ),
                ),
                counts=BackendCounts(20, 2000, 10, 2, 8, reply_packets=16, reply_bytes=1600),
                drops={"no-backend": 3, "malformed": 0},
                not_recorded=1,
                rates=Rates(1.0, 2.0, 3.0, 4.0),
                replied=6,
                not_replied=2,
            ),
            ServiceSnapshot(
                service=dns,
                id=2,
                state=ServiceState.DOWN,
                reason="every backend is draining",
                since=NOW - 10,
                backends=(
                    backend_snapshot(dns.backends[0], BackendState.DRAIN, load=Load(open=3)),
                ),
                counts=BackendCounts(),
                drops={},
                not_recorded=0,
                rates=Rates(),
            ),
        ),
        service_states={ServiceState.DEGRADED: 1, ServiceState.DOWN: 1},
        backend_states={
            BackendState.UP: 1,
            BackendState.UNREACHABLE: 1,
            BackendState.DRAIN: 1,
        },
        rates=Rates(1.0, 2.0, 3.0, 4.0),
    )


VERSIONS = (
    Version(1, 1_000_000.0, "start", "lb-agent", "", (), 0, "a"),
    Version(2, 1_000_060.0, "edit", "root", "too slow", ("change backend chat/gpu-1",), 1, "b"),
)
ENTRIES = (
    Entry(1, 1_000_000.0, LogLevel.INFO, "ready", {"name": "edge-1"}),
    Entry(2, 1_000_001.0, LogLevel.WARNING, "backend", {"backend": "chat/gpu-1", "old": "up"}),
    Entry(3, 1_000_002.5, LogLevel.ERROR, "service", {"service": "chat", "new": "down"}),
    Entry(4, 1_000_003.0, LogLevel.INFO, "backend", {"backend": "chat/gpu-1", "new": "up"}),
)


class FakeControl:
    """Edits for real, in memory. ``failure`` is raised by whatever is called next."""

    def __init__(self):
        self.running = self.file = parse(CONFIG, "agent.yaml")
        self.failure = None
        self.asked = []
        self.authors = []
        self.attached = True
        self.problem_of_saving = ""
        self.followers = []
        self.found = ()
        self.pending = ()
        self.fleet = FakeFleet()

    def _called(self, *what):
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure

    async def snapshot(self, services=None):
        self._called("snapshot")
        made = make_snapshot(parse(CONFIG, "agent.yaml"))
        dataplane = dataclasses.replace(made.dataplane, attached=self.attached)
        those = [s for s in made.services if services is None or s.service.name in services]
        return dataclasses.replace(made, dataplane=dataplane, services=tuple(those))

    def origins(self, service):
        self._called("origins", service)
        return origins(self.running.services[0], None)

    def reverts(self):
        self._called("reverts")
        return self.pending

    def sources(self):
        self._called("sources")
        return self.found, {}

    async def accept_answer(self, service):
        self._called("accept", service)

    async def page(self, of, query):
        self._called("page", of, query)
        chat = make_snapshot(parse(CONFIG, "agent.yaml")).services[0]
        if of == "services":
            row = ServiceRow(
                chat.service,
                chat.state,
                chat.reason,
                chat.since,
                1,
                2,
                8,
                chat.rates,
                8192,
                RecentTimes(3, 12.3456, 250.0),
                Handshakes(40, 30, 25.04),
            )
            return Page(NOW, (), (row,), 7, 9)
        return Page(NOW, tuple((chat.service, each) for each in chat.backends), (), 7, 9)

    def matrix(self):
        self._called("matrix")
        cell = MatrixCell(0, 0, "gpu-1", BackendState.UP, 0.25)
        return Matrix((("gpu-1", (ip_address("10.0.0.21"),)),), ("chat",), (cell,))

    def is_attached(self):
        return self.attached

    def config(self):
        return self.running

    def file_changes(self):
        return plan(self.file, self.running)

    def unsaved(self):
        return self.problem_of_saving

    async def edit(self, *edits, dry_run=False, confirmed=False, for_s=None, trial=None, author):
        self.authors.append(author)
        self.for_s, self.trial = for_s, trial
        self._called("edit", *edits, dry_run)
        changed = apply_edits(self.running, edits)
        changes = plan(self.running, changed)
        if not dry_run:
            self.running = changed
        return changes

    async def rollback(self, number, service, dry_run, *, confirmed=False, author):
        self.authors.append(author)
        self._called("rollback", number, service, dry_run, confirmed)
        return plan(self.running, self.file)

    def in_fleet(self):
        self._called("in_fleet")
        return self.fleet

    async def fleet_rollback(self, number, service, dry_run, *, confirmed=False, author):
        self.authors.append(author)
        self._called("fleet_rollback", number, service, dry_run, confirmed)
        return plan(self.running, self.file)

    async def versions(self):
        return VERSIONS

    async def diff(self, old, new):
        self._called("diff", old, new)
        return plan(self.running, self.file)

    def troubles(self):
        return Troubles

    def recent(self):
        return tally(reversed(ENTRIES), 0.0)

    def events(self, query):
        self._called("events", query)
        return newest(reversed(ENTRIES), query)

    async def reload(self, *, dry_run=False, confirmed=False, author):
        self.authors.append(author)
        self._called("reload", dry_run, confirmed)
        changes = plan(self.running, self.file)
        if not dry_run:
            self.running = self.file
        return changes

    async def move(self, order):
        self._called("move", order)
        return Moved("handed over", 12)

    async def block(self, order):
        self._called("block", order)
        return Blocked(3, 1)

    async def unblock(self, prefixes):
        self._called("unblock", prefixes)
        return 1

    def guard_test(self, address):
        self._called("guard_test", address)
        return Verdicts(address, None, ("drop",), {"chat": "served"})

    async def top_sources(self, query):
        self._called("top", query)
        return TopPage((TopSource(ip_address("192.0.2.9"), 5, 6),), total=7)

    async def flows(self, query):
        self._called("flows", query)
        return FlowPage((FLOW,), matched=17)

    def follow(self, query):
        self._called("follow", query)
        self.followers.append(FakeFollower(query))
        return self.followers[-1]

    def explain(self, tuple5):
        self._called("explain", tuple5)
        return Explanation(
            verdict="forward",
            service="chat",
            backend="gpu-1",
            reason="recorded flow",
            steps=("service chat", "flow found"),
            recorded=FLOW,
            ring_slots=65537,
            draws=(Draw(5, "gpu-1", usable=True, score=3.14159),),
            scheduler="least-load",
            depends_on="load",
        )


FLEET = FleetStatus("prod", "lb1", 11, NOW - 60, 11, 11, 12, ("lb3",), None, None, "", None)
ACTIVE = Active(
    11, 12, 0, Rollout(12, ("lb3",), NOW - 5, 60.0), Ended(9, "aborted", "bad", "anna", NOW - 99)
)
REPORTS = {
    node: Report(
        node, "id", "0.1.0", NOW - 1, "master", version, NOW - 5, services="ab", rings="cd"
    )
    for node, version in (("lb1", 11), ("lb3", 12))
}
FLEET_VERSION = FleetVersion(
    11, 10, NOW - 60, "lb1", "edit", "anna", "why", ("change backend chat/gpu-1",), 3
)


class FakeFleet:
    """A balancer's part in a fleet of two, of which one tries a version."""

    def __init__(self):
        self.active = ACTIVE
        self.asked = []
        self.different = (Difference("chat", "other settings or backends"),)
        self.shown = Overview(FLEET, ACTIVE, REPORTS, frozenset({"lb3"}), {"lb4": NOW - 600})

    async def overview(self):
        return self.shown

    async def history(self, most):
        self.asked.append(("history", most))
        return (FLEET_VERSION,)

    async def version(self, number):
        self.asked.append(("version", number))
        return FLEET_VERSION, {"chat": {"name": "chat", "vip": "10.0.0.10", "port": 80}}

    async def diff(self, old, new):
        self.asked.append(("diff", old, new))
        return ()

    async def compare(self, one, other):
        self.asked.append(("compare", one, other))
        return self.different

    async def import_services(self, author):
        self.asked.append(("import", author))
        return 12

    async def end_rollout(self, *, promote, author):
        self.asked.append(("promote" if promote else "abort", author))
        return ACTIVE

    async def forget(self, node):
        self.asked.append(("forget", node))

    async def freeze(self, author):
        self.asked.append(("freeze", author))

    async def thaw(self):
        self.asked.append(("thaw",))


class FakeFollower:
    """Hands out what it is given with ``tell``; ``left`` is set once nobody follows."""

    def __init__(self, query):
        self.query = query
        self.lost = Lost()
        self.ended = False
        self.left = asyncio.Event()
        self._events = []
        self._wake = asyncio.Event()

    def tell(self, *events):
        self._events += events
        self._wake.set()

    async def next(self, timeout_s, limit):
        self._wake.clear()
        if not self._events and not self.ended:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout_s)
        events, self._events = self._events[:limit], self._events[limit:]
        return tuple(events)

    def close(self):
        self.ended = True
        self._wake.set()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.left.set()


class Api:
    """Starts a server for each request, so that a test needs no event loop of its own."""

    def __init__(self, control, path):
        self.control = control
        self.path = path
        self.group = None
        self.metrics_listen = None
        self.audit = AuditLog(path.parent, "edge-1", lambda: self.control.running.audit_required)

    def server(self):
        return ApiServer(
            self.control,
            self.path,
            self.group,
            self.metrics_listen,
            metrics=lambda snapshot, _of_backends: (
                f"steelyard_up{{name={snapshot.name!r}}} 1\n".encode()
            ),
            audit=self.audit,
        )

    def raw(self, method, target, body=None, headers=None):
        """Status, content type and body of one answer over the Unix socket."""

        async def ask():
            server = self.server()
            await server.start()
            try:
                connector = aiohttp.UnixConnector(path=str(self.path))
                async with (
                    aiohttp.ClientSession(connector=connector) as session,
                    session.request(
                        method, f"http://agent{target}", data=body, headers=headers
                    ) as answer,
                ):
                    return answer.status, answer.content_type, await answer.text()
            finally:
                await server.stop()

        answered = asyncio.run(asyncio.wait_for(ask(), 60))
        described.check(method, target, *answered)
        return answered

    def request(self, method, target, body=None, headers=None):
        """Status and JSON of one answer."""
        status, content_type, text = self.raw(method, target, body, headers)
        assert content_type == "application/json", text
        return status, json.loads(text)

    def get(self, target):
        return self.request("GET", target)

    def post(self, target, **body):
        return self.request("POST", target, json.dumps(body).encode())


# Views that make a whole body, or a part of one that has a name of its own.
VIEWS = (
    (views, "service", "Service"),
    (views, "page", ("BackendPage", "ServicePage")),
    (views, "versions", "History"),
    (views, "events", "Events"),
    (views, "flows", "Flows"),
    (views, "explanation", "Explanation"),
    (views, "error", "Error"),
    (views, "remote_api", "RemoteApi"),
    (scaleviews, "scale", "Scale"),
    (guardviews, "guard", "Guard"),
    (guardviews, "tested", "GuardTest"),
    (guardviews, "top", "Top"),
    (failoverviews, "failover", "Failover"),
    (failoverviews, "summary", "FailoverSummary"),
    (failoverviews, "router", "Router"),
    (discoveryviews, "sources", "Sources"),
    (fleetviews, "overview", "FleetOverview"),
    (fleetviews, "history", "FleetHistory"),
    (fleetviews, "version", "WholeFleetVersion"),
    (fleetviews, "compared", "FleetComparison"),
    (trace, "event", "TraceEvent"),
    (trace, "lost", "TraceLost"),
)


@pytest.fixture(autouse=True)
def documented(monkeypatch):
    """Check that each view returns what the OpenAPI document says, in every test."""

    def checked(view, names):
        def call(*args, **kwargs):
            body = view(*args, **kwargs)
            described.check_shape(names, body)
            return body

        return call

    for module, name, names in VIEWS:
        names = (names,) if isinstance(names, str) else names
        monkeypatch.setattr(module, name, checked(getattr(module, name), names))


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def api(control, tmp_path):
    return Api(control, tmp_path / "agent.sock")


@pytest.fixture
def snapshot(control):
    return asyncio.run(control.snapshot())


@pytest.fixture
def config() -> object:
    return parse(CONFIG, "agent.yaml")


@pytest.fixture
def now():
    return NOW


@pytest.fixture
def socket_path(tmp_path) -> Path:
    return tmp_path / "agent.sock"
