"""A fake agent on a real Unix socket, and lbctl as a function that is called with it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from lbctl.environment import Environment
from lbctl.main import cli

RATES = {
    "new_flows_per_s": 12.34,
    "packets_per_s": 45_678.0,
    "bits_per_s": 1_234_567_890.0,
    "drops_per_s": 0.0,
}
IDLE = dict.fromkeys(RATES, 0.0)
TOTALS = {
    "packets_total": 1_234_567,
    "bytes_total": 987_654_321,
    "new_flows_total": 4321,
    "closed_flows_total": 4000,
    "established_flows_total": 4300,
    "reply_packets_total": 0,
    "reply_bytes_total": 0,
}
TIMES = {
    "count_total": 1_234_567,
    "mean_ms": 412.5,
    "last_minute": {"count": 321, "p50_ms": 287.4, "p99_ms": 1894.2},
}
HANDSHAKES = {
    "count_total": 4300,
    "mean_ms": 0.412,
    "last_minute": {"count": 0, "p50_ms": None, "p99_ms": None},
}


def backend_view(name: str, address: str, **changed: object) -> dict[str, Any]:
    """A BackendView of a backend that is well."""
    view: dict[str, Any] = {
        "service": "chat",
        "name": name,
        "address": address,
        "port": None,
        "backup": False,
        "priority": 0,
        "zone": None,
        "discovered": False,
        "state": "up",
        "reason": "http 200 in 3 ms",
        "since": "2026-01-02T03:04:05.000Z",
        "since_s": 7500.0,
        "state_changes_last_hour": 2,
        "admin_state": "active",
        "health": "up",
        "health_reason": "http 200",
        "health_since": "2026-01-02T03:04:05.000Z",
        "health_latency_ms": 3.21,
        "next_hop": {"mac": "02:00:00:00:00:21", "ifindex": 2, "on_link": True, "mtu": 1500},
        "weight_configured": 100,
        "weight_effective": 100,
        "weight_reason": "",
        "share_expected": 0.333333,
        "share_actual": 0.34,
        "flows_established": 321,
        "open_connections": 330,
        "busy_connections": 40,
        "idle_resets_total": 0,
        "error_answers_total": None,
        "hangups_total": None,
        "ejections_total": 0,
        "waiting_bytes": 45_600,
        "waiting_requests": 12,
        "load_score": 376.6,
        "hot": False,
        "reported": None,
        "learned": None,
        "first_byte": TIMES,
        "handshake": HANDSHAKES,
        "rates": RATES,
        **TOTALS,
        "answers_total": 987,
    }
    return view | changed


def scale_view(service: str, **changed: object) -> dict[str, Any]:
    """What a scaler is told of a service without targets, with one usable backend of three."""
    unknown = dict.fromkeys(("connections", "waiting_bytes", "requests", "queued"))
    load = unknown | {"connections": 642, "waiting_bytes": 91_200}
    view: dict[str, Any] = {
        "service": service,
        "wanted_backends": None,
        "wanted_because": None,
        "wanted_by": unknown,
        "min_backends": 1,
        "max_backends": None,
        "usable_backends": 1,
        "draining_backends": 1,
        "load": load,
        "load_per_backend": load,
        "target_per_backend": unknown,
        "first_byte_p95_s": None,
        "misses_objective": None,
        "held_clients": None,
    }
    return view | changed


def service_view() -> dict[str, Any]:
    """A ServiceView with a backend that is well, one that drains, and one that is down."""
    return {
        "name": "chat",
        "vip": "10.0.0.10",
        "port": 80,
        "protocol": "tcp",
        "forward": "dsr",
        "scheduler": "least-load",
        "scheduler_settings": {"draws": 8, "bytes_per_connection": 250},
        "no_backend": "drop",
        "held_clients": None,
        "panic": 0.0,
        "outlier": None,
        "slo": [],
        "scale": scale_view("chat"),
        "syn_protection": "off",
        "challenges_clients": False,
        "syn_cookies": False,
        "gives_cookies": False,
        "cookies_problem": "",
        "cookies_keys": [],
        "first_byte_is": "token",
        "affinity": None,
        "discover": None,
        "cookie_connections_total": 0,
        "guard": "enforce",
        "allow": [],
        "deny": [],
        "detect": "log",
        "trusted": [],
        "down_flows": "keep",
        "reset_after_s": 5.0,
        "slow_start_s": 0.0,
        "quic_id_bytes": None,
        "counts_waiting_bytes": True,
        "draws_in_use": 8,
        "spill_over": [],
        "learns_speed": True,
        "telemetry": "none",
        "node_telemetry": "none",
        "model": None,
        "state": "degraded",
        "reason": "1 of 3 backends is down",
        "since": "2026-01-02T03:04:05.000Z",
        "since_s": 75.0,
        "backends_up": 1,
        "backends_total": 3,
        "flows_established": 642,
        "open_connections": 660,
        "busy_connections": 80,
        "skew": None,
        "idle_resets_total": 0,
        "waiting_bytes": 91_200,
        "waiting_requests": 24,
        "rates": RATES,
        **TOTALS,
        "replied_packets_total": 0,
        "not_replied_packets_total": 0,
        "flows_not_recorded_total": 0,
        "drops_total": {"no_backend": 0, "malformed": 17},
        "limits": {"new_flows_per_source": "50/s", "open_flows_per_source": None},
        "timeouts_s": {"embryonic": 30.0, "acked": 60.0, "established": 900.0, "closing": 30.0},
        "health_check": {
            "type": "http",
            "via": "vip",
            "port": 8000,
            "interval_s": 1.0,
            "timeout_s": 0.5,
            "rise": 2,
            "fall": 3,
            "jitter": 0.1,
            "path": "/health",
            "host": None,
        },
        "backends": [
            backend_view("gpu-1", "10.0.0.21"),
            backend_view(
                "gpu-2",
                "10.0.0.22",
                state="drain",
                reason="drained by the operator, 321 flows left",
                admin_state="drain",
                weight_effective=0,
                weight_reason="drain",
                share_expected=0.0,
                share_actual=0.0,
            ),
            backend_view(
                "gpu-3",
                "10.0.0.23",
                state="down",
                reason="http: connection refused by 10.0.0.23:8000 (3 failures in a row)",
                health="down",
                health_latency_ms=None,
                next_hop=None,
                since_s=42.0,
                flows_established=0,
                rates=IDLE,
            ),
        ],
    }


STATUS: dict[str, Any] = {
    "agent": {
        "name": "edge-1",
        "version": "0.1.0",
        "pid": 4711,
        "uptime_s": 93_784.0,
        "started_at": "2026-01-01T00:00:00.000Z",
        "config_file": "/etc/steelyard/agent.yaml",
        "config_problem": "",
        "changes_since_file": 2,
        "reconcile_problem": "",
        "unsaved_problem": "",
        "audit_problem": "",
        "discovery_problems": [],
    },
    "dataplane": {
        "interface": "eth0",
        "backend_interfaces": [],
        "link_problems": [],
        "vip_problems": [],
        "attached": True,
        "hook": "native",
        "hook_reason": "the fastest",
        "driver": "mlx5_core",
        "program_id": 42,
        "abi_version": 1,
        "features": ["ipv4", "ipv6"],
        "compile_ms": 221.5,
        "instructions": 1432,
        "machine_code_bytes": 8123,
        "verified_instructions": 45_123,
        "flow_table": {
            "slots": 1_048_576,
            "established": 642,
            "acked": 3,
            "embryonic": 9,
            "closing": 12,
            "used_share": 0.000635,
        },
        "nat_ports": [],
        "nat_problems": [],
        "passed_packets": {"not_ip": 12, "not_vip": 34_567, "vip_other": 0},
        "trace_events_lost_total": 0,
    },
    "services": {"total": 1, "up": 0, "degraded": 1, "down": 0},
    "backends": {
        "total": 3,
        "up": 1,
        "down": 1,
        "drain": 1,
        "maintenance": 0,
        "checking": 0,
        "unreachable": 0,
    },
    "rates": RATES,
    "failover": {"configured": False, "problem": "", "instances": [], "flow_sync": []},
}

CONFIG: dict[str, Any] = {
    "name": "edge-1",
    "interface": "eth0",
    "services": [
        {
            "name": "chat",
            "vip": "10.0.0.10",
            "port": 80,
            "health": {"type": "http", "port": 8000, "path": "/health"},
            "backends": [
                {"name": "gpu-1", "address": "10.0.0.21"},
                {"name": "gpu-2", "address": "10.0.0.22", "state": "drain"},
                {"name": "gpu-3", "address": "10.0.0.23"},
            ],
        }
    ],
}

FLOW = {
    "service": "chat",
    "protocol": "tcp",
    "client": "198.51.100.7",
    "client_port": 40_000,
    "vip": "10.0.0.10",
    "port": 80,
    "backend": "gpu-1",
    "state": "established",
    "age_s": 192.0,
    "idle_s": 1.5,
    "nat_source": None,
    "nat_source_port": None,
    "awaiting_answer": True,
    "waiting_bytes": 4567,
    "handshake_ms": 0.731,
    "talk": "tls",
}

WEIGHT_CHANGE = {
    "action": "change",
    "kind": "backend",
    "service": "chat",
    "backend": "gpu-1",
    "fields": [{"field": "weight", "old": 100, "new": 50}],
    "effect": "gets 20.0 % of the new flows instead of 33.3 %",
}
ADDITION = {
    "action": "add",
    "kind": "backend",
    "service": "chat",
    "backend": "gpu-4",
    "fields": [{"field": "address", "old": None, "new": "10.0.0.24"}],
    "effect": "gets 25.0 % of the new flows",
}
REMOVAL = {
    "action": "remove",
    "kind": "backend",
    "service": "chat",
    "backend": "gpu-3",
    "fields": [],
    "effect": "its 0 flows end",
}


def refusal(message: str, where: str = "", remedy: str = "") -> dict[str, Any]:
    return {"error": {"message": message, "where": where, "remedy": remedy}}


@dataclass
class FakeAgent:
    """Answers as the contract says; ``edits`` are what it was asked to change."""

    socket: Path
    services: list[dict[str, Any]] = field(default_factory=lambda: [service_view()])
    status: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(STATUS))
    config: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(CONFIG))
    since_file: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=lambda: [WEIGHT_CHANGE])
    flows: list[dict[str, Any]] = field(default_factory=lambda: [dict(FLOW)])
    matched: int = 1
    explanation: dict[str, Any] = field(default_factory=dict)
    refuse_edits: tuple[int, dict[str, Any]] | None = None
    refuse_unconfirmed: dict[str, Any] | None = None
    unsaved: str = ""
    edits: list[dict[str, Any]] = field(default_factory=list)
    queries: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    failover: dict[str, Any] = field(default_factory=dict)
    moves: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    guard: dict[str, Any] = field(default_factory=dict)
    origins: list[dict[str, Any]] = field(default_factory=list)
    reverts: list[dict[str, Any]] = field(default_factory=list)
    discovery: dict[str, Any] = field(default_factory=lambda: {"sources": []})
    tested: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    whoami: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    told: int = 0  # other balancers, of blocks
    refuse_moves: str = ""
    fleet: dict[str, Any] = field(default_factory=dict)
    fleet_versions: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    raw: bytes | None = None  # what to answer instead of JSON
    events: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    traces: list[list[dict[str, Any]]] = field(default_factory=list)  # lines, answer by answer

    @property
    def applied(self) -> list[dict[str, Any]]:
        return [edit for edit in self.edits if not edit["dry_run"]]

    def get(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        self.queries.append((path, query))
        match path.split("/")[2:]:
            case ["status"]:
                return 200, self.status
            case ["services"]:
                return 200, {"services": self.services}
            case ["services", name]:
                found = [view for view in self.services if view["name"] == unquote(name)]
                return (200, found[0]) if found else (404, refusal(f"there is no service {name!r}"))
            case ["scale", *names]:
                return self.scaling(names)
            case ["list" | "events" | "history" | "discovery" | "reverts", *_] | [
                "services",
                _,
                "origins",
            ]:
                return 200, self.remembered(path, query)
            case ["failover" | "guard" | "whoami" | "audit" as name]:
                return 200, getattr(self, name)
            case ["guard", "test" | "top" as what]:
                return 200, self.tested if what == "test" else self.top
            case ["config"]:
                return 200, {"config": self.config, "changes_since_file": self.since_file}
            case ["fleet", *rest]:
                return self.of_fleet(rest, query)
            case ["flows"]:
                shown = self.flows[: int(query["limit"])]
                return 200, {"flows": shown, "matched": self.matched, "shown": len(shown)}
            case ["explain"]:
                return 200, self.explanation
        return 404, refusal("there is no such path")

    def of_fleet(self, rest: list[str], query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        match rest:
            case []:
                return 200, self.fleet
            case ["history"]:
                return 200, {"versions": self.fleet_versions[: int(query["limit"])]}
            case ["versions", number]:
                found = [v for v in self.fleet_versions if v["number"] == int(number)]
                return (200, found[0]) if found else (404, refusal(f"there is no version {number}"))
            case ["diff"]:
                return 200, {"changes": self.changes}
        return 200, {**query, "differences": self.differences}

    def scaling(self, names: list[str]) -> tuple[int, dict[str, Any]]:
        """Of all services, or of the named one."""
        views = {view["name"]: view["scale"] for view in self.services}
        if not names:
            return 200, {"services": list(views.values())}
        found = views.get(unquote(names[0]))
        return (404, refusal("there is no such service")) if found is None else (200, found)

    def listed(self, of: str, query: dict[str, str]) -> dict[str, Any]:
        """A page, in the order in which they are here."""
        chosen = [each for each in self.services if query.get("service") in (None, each["name"])]
        rows = chosen if of == "services" else [b for s in chosen for b in s["backends"]]
        found = [
            row
            for row in rows
            if query.get("backend") in (None, row["name"]) and query.get("match", "") in row["name"]
        ]
        first = int(query.get("offset", 0))
        page = found[first : first + int(query["limit"])]
        return {of: page, "matched": len(found), "total": len(rows)}

    def remembered(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        if path.startswith("/v1/list/"):
            return self.listed(path.rsplit("/", 1)[1], query)
        if path == "/v1/events":
            found = [each for each in self.events if each["number"] > int(query.get("after", 0))]
            return {"events": found[-int(query.get("limit", 10_000)) :]}
        if path == "/v1/discovery":
            return self.discovery
        if path == "/v1/reverts":
            return {"reverts": self.reverts}
        if path.endswith("/origins"):
            return {"service": path.split("/")[3], "settings": self.origins}
        if path == "/v1/history":
            return {"versions": self.versions}
        return {"changes": self.changes}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path.startswith("/v1/failover/"):
            if self.refuse_moves:
                return 409, refusal(self.refuse_moves)
            self.moves.append((path.rsplit("/", 1)[1], body))
            return 200, {"text": "handed over", "flows_sent": 3, "applied": not body["dry_run"]}
        if path.startswith("/v1/discovery/"):
            self.moves.append((path.removeprefix("/v1/discovery/"), body))
            return 200, self.discovery
        if path.startswith("/v1/fleet/") and path != "/v1/fleet/rollback":
            self.moves.append((path.removeprefix("/v1/fleet/"), body))
            return 200, self.fleet
        if path.startswith("/v1/guard/"):
            self.moves.append((path.rsplit("/", 1)[1], body))
            named = {"blocked": body["prefixes"], "unblocked": body["prefixes"]}
            done = {"flows_ended": 2, "told_balancers": self.told, "unsaved_problem": self.unsaved}
            return 200, done | named
        self.edits.append(body)
        if self.refuse_edits is not None:
            return self.refuse_edits
        asks = not (body.get("confirmed") or body.get("dry_run"))
        if self.refuse_unconfirmed is not None and asks:
            return 428, self.refuse_unconfirmed
        unsaved = {"unsaved_problem": self.unsaved} if self.unsaved else {}
        return 200, {"changes": self.changes, "applied": not body.get("dry_run")} | unsaved


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    agent: FakeAgent

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # who was killed while it asked
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/v1/trace" and self.server.agent.traces:
            self.server.agent.queries.append((parts.path, dict(parse_qsl(parts.query))))
            self._stream(self.server.agent.traces.pop(0))
            return
        self._answer(*self.server.agent.get(parts.path, dict(parse_qsl(parts.query))))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(*self.server.agent.post(self.path, body))

    def _stream(self, lines: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.end_headers()
        for line in lines:
            self.wfile.write(json.dumps(line).encode() + b"\n")

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = self.server.agent.raw
        if content is None:
            content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    """A fake agent that listens."""
    path = tmp_path / "agent.sock"
    with _Server(str(path), _Handler) as server:
        server.agent = FakeAgent(path)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.agent
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Result:
    """What a run of lbctl came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


type Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """lbctl as a function; keyword arguments are fields of its environment."""
    monkeypatch.delenv("STEELYARD_SOCKET", raising=False)

    def call(*arguments: str, **environment: Any) -> Result:
        out, err = io.StringIO(), io.StringIO()
        settings: dict[str, Any] = {
            "socket": tmp_path / "agent.sock",
            "width": None,
            "colour": False,
            "interactive": False,
            "stdin": io.StringIO(),
        } | environment
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main(list(arguments), "lbctl", obj=Environment(**settings))
            except SystemExit as exit_:
                code = exit_.code if isinstance(exit_.code, int) else 1
        return Result(code, out.getvalue(), err.getvalue())

    return call
