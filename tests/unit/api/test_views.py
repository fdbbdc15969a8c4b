"""The JSON that scripts rely on."""

import asyncio
import json
from dataclasses import replace

import pytest

from agent.api import scaleviews, views
from agent.errors import ConfigError, DataplaneError
from agent.model import CheckKind, Scheduler
from agent.state.causes import Troubles
from agent.state.journal import Tally

RECENT = Tally({"info": 9, "warning": 2}, {"chat/gpu-1": 3})


def test_status_has_the_keys_of_the_contract(snapshot):
    body = views.status(snapshot, Troubles(), RECENT)
    assert body == {
        "agent": {
            "name": "edge-1",
            "version": "0.1.0",
            "pid": 42,
            "uptime_s": 3600.0,
            "started_at": "2023-11-14T21:13:20.000Z",
            "config_file": "/etc/steelyard/agent.yaml",
            "config_problem": "",
            "changes_since_file": 1,
            "reconcile_problem": "",
            "unsaved_problem": "",
            "audit_problem": "",
            "discovery_problems": [],
        },
        "dataplane": {
            "interface": "eth0",
            "backend_interfaces": ["eth1"],
            "attached": True,
            "hook": "native",
            "hook_reason": "the driver supports it",
            "driver": "virtio_net",
            "program_id": 7,
            "abi_version": 1,
            "features": ["ipv6"],
            "compile_ms": 223.5,
            "instructions": 900,
            "machine_code_bytes": 5000,
            "verified_instructions": 12_345,
            "flow_table": {
                "slots": 1000,
                "established": 50,
                "acked": 25,
                "embryonic": 20,
                "closing": 5,
                "used_share": 0.1,
            },
            "nat_ports": [
                {
                    "source": "198.51.100.200",
                    "server": "192.0.2.1:80/tcp",
                    "used_ports": 5,
                    "ports": 22_528,
                }
            ],
            "nat_problems": [],
            "passed_packets": {"not-vip": 12},
            "trace_events_lost_total": 9,
            "link_problems": ["eth0 has no carrier"],
            "vip_problems": ["8e:c8:18:5b:31:e4 answers for 10.9.0.100, too: it is no backend's"],
        },
        "services": {"total": 2, "up": 0, "degraded": 1, "down": 1},
        "backends": {
            "total": 3,
            "up": 1,
            "drain": 1,
            "maintenance": 0,
            "checking": 0,
            "down": 0,
            "ejected": 0,
            "unreachable": 1,
        },
        "rates": {
            "new_flows_per_s": 1.0,
            "packets_per_s": 2.0,
            "bits_per_s": 3.0,
            "drops_per_s": 4.0,
        },
        "unserved": [],
        "unconnected": [],
        "late": [],
        "troubles": [],
        "troubles_total": 0,
        "threats": 0,
        "events_last_hour": {"warning": 2, "error": 0},
        "failover": {"configured": False, "problem": "", "instances": [], "flow_sync": []},
        "fleet": None,
        "tier": None,
    }


def test_service_has_the_keys_of_the_contract(snapshot, now):
    body = views.service(snapshot.services[0], now, RECENT)
    backends = body.pop("backends")
    assert len(backends) == 2
    assert body == {
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
        "slo": [],
        "scale": scaleviews.scale(snapshot.services[0]),
        "outlier": {
            "eject_s": 30.0,
            "threshold": 0.5,
            "window_s": 30.0,
            "requests": 10,
            "most_ejected": 1,
        },
        "syn_protection": "off",
        "challenges_clients": False,
        "syn_cookies": False,
        "gives_cookies": False,
        "cookies_problem": "",
        "cookies_keys": [],
        "first_byte_is": None,
        "affinity": None,
        "discover": None,
        "cookie_connections_total": 0,
        "guard": "enforce",
        "allow": [],
        "deny": [],
        "detect": "log",
        "trusted": [],
        "limits": {
            "new_flows_per_source": None,
            "new_flows_per_prefix": None,
            "new_flows": None,
            "packets_per_source": None,
            "open_flows_per_source": None,
            "waiting_per_source": None,
        },
        "down_flows": "auto",
        "reset_after_s": 5.0,
        "slow_start_s": 0.0,
        "quic_id_bytes": None,
        "counts_waiting_bytes": True,
        "draws_in_use": None,
        "spill_over": [],
        "learns_speed": True,
        "telemetry": "none",
        "node_telemetry": "none",
        "model": None,
        "state": "degraded",
        "reason": "1 of 2 backends up",
        "since": "2023-11-14T22:13:10.000Z",
        "since_s": 10.0,
        "backends_up": 1,
        "backends_total": 2,
        "flows_established": 8,
        "open_connections": 12,
        "busy_connections": 10,
        "skew": None,
        "idle_resets_total": 4,
        "waiting_bytes": 8192,
        "waiting_requests": 4,
        "rates": {
            "new_flows_per_s": 1.0,
            "packets_per_s": 2.0,
            "bits_per_s": 3.0,
            "drops_per_s": 4.0,
        },
        "packets_total": 20,
        "bytes_total": 2000,
        "new_flows_total": 10,
        "closed_flows_total": 2,
        "established_flows_total": 8,
        "reply_packets_total": 16,
        "reply_bytes_total": 1600,
        "replied_packets_total": 6,
        "not_replied_packets_total": 2,
        "flows_not_recorded_total": 1,
        "drops_total": {"no-backend": 3, "malformed": 0},
        "timeouts_s": {"embryonic": 30, "acked": 60, "established": 900, "closing": 30},
        "health_check": {
            "type": "http",
            "via": "vip",
            "port": 80,
            "interval_s": 2.0,
            "timeout_s": 1.0,
            "rise": 2,
            "fall": 3,
            "jitter": 0.1,
            "method": "GET",
            "path": "/health",
            "host": None,
            "expect_status": "200-399",
        },
    }


def test_backend_has_the_keys_of_the_contract(snapshot, now):
    body = views.service(snapshot.services[0], now, RECENT)["backends"][0]
    assert body == {
        "service": "chat",
        "name": "gpu-1",
        "address": "10.0.0.21",
        "port": None,
        "backup": False,
        "priority": 0,
        "zone": None,
        "discovered": False,
        "state": "up",
        "reason": "2 checks passed",
        "since": "2023-11-14T22:12:20.000Z",
        "since_s": 60.0,
        "state_changes_last_hour": 3,
        "admin_state": "active",
        "health": "up",
        "health_reason": "200 OK",
        "health_since": "2023-11-14T22:12:18.500Z",
        "certificate_until": None,
        "health_latency_ms": 1.234,
        "next_hop": {"mac": "02:00:00:00:00:21", "ifindex": 3, "on_link": True, "mtu": 1500},
        "weight_configured": 100,
        "weight_effective": 100,
        "weight_reason": "as configured",
        "share_expected": 0.666667,
        "share_actual": 0.7,
        "flows_established": 4,
        "open_connections": 6,
        "busy_connections": 5,
        "idle_resets_total": 2,
        "waiting_bytes": 4096,
        "waiting_requests": 2,
        "unanswered_bytes": None,
        "error_answers_total": None,
        "hangups_total": None,
        "ejections_total": 0,
        "load_score": 7.568,
        "hot": False,
        "reported": None,
        "learned": None,
        "first_byte": {
            "count_total": 4,
            "mean_ms": 375.0,
            "last_minute": {"count": 2, "p50_ms": 250.123, "p99_ms": None},
        },
        "handshake": {
            "count_total": 0,
            "mean_ms": None,
            "last_minute": {"count": 0, "p50_ms": None, "p99_ms": None},
        },
        "rates": {
            "new_flows_per_s": 1.0,
            "packets_per_s": 2.0,
            "bits_per_s": 3.0,
            "drops_per_s": 0.0,
        },
        "packets_total": 10,
        "bytes_total": 1000,
        "new_flows_total": 5,
        "closed_flows_total": 1,
        "established_flows_total": 4,
        "reply_packets_total": 8,
        "reply_bytes_total": 800,
        "answers_total": 7,
    }


def test_what_is_not_known_is_null(snapshot, now):
    body = views.service(snapshot.services[0], now, RECENT)["backends"][1]
    assert body["next_hop"] is None
    assert body["health_latency_ms"] is None


def test_any_port_is_a_word(snapshot, now):
    body = views.service(snapshot.services[1], now, RECENT)
    assert body["port"] == "any"
    assert body["vip"] == "fd00::10"
    assert body["health_check"] == {"type": "none"}


def test_a_prefix_and_a_range_are_as_the_operator_wrote_them(snapshot, now):
    view = snapshot.services[0]
    key = replace(view.service.key, port=8000, port_last=8010, vip_bits=24)
    body = views.service(replace(view, service=replace(view.service, key=key)), now, RECENT)
    assert (body["vip"], body["port"]) == ("10.0.0.10/24", "8000-8010")


def test_what_a_service_does_not_count_is_null(snapshot, now):
    body = views.service(snapshot.services[1], now, RECENT)
    assert body["counts_waiting_bytes"] is False
    assert (body["waiting_bytes"], body["waiting_requests"], body["open_connections"]) == (
        None, None, 3,
    )  # fmt: skip
    backend = body["backends"][0]
    for key in ("waiting_bytes", "waiting_requests", "load_score", "first_byte", "handshake"):
        assert backend[key] is None


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        (Scheduler.LEAST_LOAD, {"draws": 8, "bytes_per_connection": 250}),
        (Scheduler.SOURCE, {"source_bits": None, "source_bound": 1.25}),
        (Scheduler.ROUND_ROBIN, {}),
    ],
)
def test_a_scheduler_shows_what_it_goes_by(snapshot, now, scheduler, settings):
    view = snapshot.services[0]
    changed = replace(view, service=replace(view.service, scheduler=scheduler))
    assert views.service(changed, now, RECENT)["scheduler_settings"] == settings


def test_health_check_shows_only_what_its_kind_uses(snapshot, now):
    view = snapshot.services[0]

    def shown(**changes):
        check = replace(view.service.health, **changes)
        changed = replace(view, service=replace(view.service, health=check))
        return views.service(changed, now, RECENT)["health_check"]

    assert "path" not in shown(kind=CheckKind.TCP)
    assert "verify_tls" not in shown(kind=CheckKind.HTTP)
    assert shown(kind=CheckKind.HTTPS)["verify_tls"] is True
    for kind in (CheckKind.GRPC, CheckKind.COMPLETION):
        assert shown(kind=kind)["tls"] is False
        assert "verify_tls" not in shown(kind=kind)
        assert shown(kind=kind, tls=True)["verify_tls"] is True
    assert shown(port=8000)["port"] == 8000
    assert shown(expect_status=((200, 299), (404, 404)))["expect_status"] == "200-299,404"


def test_health_check_has_a_port_where_all_backends_have_the_same(snapshot, now):
    def shown(*ports):
        view = snapshot.services[0]
        first = view.service.backends[0]
        backends = tuple(replace(first, name=f"b{port}", port=port) for port in ports)
        changed = replace(view, service=replace(view.service, backends=backends))
        return views.service(changed, now, RECENT)["health_check"]["port"]

    assert shown(8001, 8001) == 8001
    assert shown(8001, 8002) is None
    assert shown() == shown(None) == 80


def test_clock_set_back_makes_no_negative_age(snapshot, now):
    assert views.service(snapshot.services[0], now - 1000, RECENT)["since_s"] == 0.0


def test_flow_table_without_slots_is_not_full(snapshot):
    bare = replace(snapshot.dataplane, flow_slots=0, flows_by_state={})
    table = views.status(replace(snapshot, dataplane=bare), Troubles(), RECENT)["dataplane"][
        "flow_table"
    ]
    assert table == {
        "slots": 0,
        "established": 0,
        "acked": 0,
        "embryonic": 0,
        "closing": 0,
        "used_share": 0.0,
    }


def test_flows_and_explanation(control):
    flow = {
        "service": "chat",
        "protocol": "tcp",
        "client": "192.0.2.7",
        "client_port": 1234,
        "vip": "10.0.0.10",
        "port": 80,
        "backend": "gpu-1",
        "state": "established",
        "age_s": 12.5,
        "idle_s": 0.25,
        "nat_source": "10.0.0.1",
        "nat_source_port": 10_240,
        "awaiting_answer": True,
        "waiting_bytes": 4096,
        "handshake_ms": 0.731,
        "talk": "http2",
    }
    assert views.flows(asyncio.run(control.flows(None))) == {
        "flows": [flow],
        "matched": 17,
        "shown": 1,
    }
    explained = control.explain(None)
    assert views.explanation(explained) == {
        "verdict": "forward",
        "service": "chat",
        "backend": "gpu-1",
        "reason": "recorded flow",
        "scheduler": "least-load",
        "depends_on": "load",
        "steps": ["service chat", "flow found"],
        "recorded_flow": flow,
        "ring": {
            "slots": 65537,
            "draws": [
                {
                    "slot": 5,
                    "backend": "gpu-1",
                    "usable": True,
                    "load_score": 3.142,
                    "open_connections": None,
                    "most_open_connections": None,
                    "cpu": None,
                }
            ],
        },
    }
    assert views.explanation(replace(explained, recorded=None))["recorded_flow"] is None


def test_a_flow_of_which_little_is_known_has_nulls(control):
    page = asyncio.run(control.flows(None))
    plain = replace(page.flows[0], nat_source=None, requests=None)
    (flow,) = views.flows(replace(page, flows=(plain,)))["flows"]
    unknown = {"nat_source", "nat_source_port", "awaiting_answer", "waiting_bytes", "talk"}
    assert {key for key, value in flow.items() if value is None} == unknown | {"handshake_ms"}


def test_error_lists_problems_only_when_there_are_several():
    one = DataplaneError("no", where="eth0", remedy="yes")
    assert views.error(one) == {"error": {"message": "no", "where": "eth0", "remedy": "yes"}}
    first, second = ConfigError("a", where="1"), ConfigError("b", where="2")
    many = ConfigError("a", where="1", problems=(first, second))
    assert views.error(many)["error"]["problems"] == [
        {"message": "a", "where": "1", "remedy": ""},
        {"message": "b", "where": "2", "remedy": ""},
    ]


def test_every_view_is_json(snapshot, now):
    json.dumps(views.status(snapshot, Troubles(), RECENT), allow_nan=False)
    json.dumps(
        [views.service(service, now, RECENT) for service in snapshot.services], allow_nan=False
    )


@pytest.mark.parametrize(
    ("address", "read_at", "told"),
    [(None, None, (None, None)), (("127.0.0.1", 9117), 40.0, ("127.0.0.1:9117", 2.5)),
     (("::1", 9117), None, ("[::1]:9117", None))],
)  # fmt: skip
def test_where_metrics_listen_and_when_they_were_read(address, read_at, told):
    listen, last_read_s = told
    expected = {"metrics": {"listen": listen, "last_read_s": last_read_s}}
    assert views.metrics_read(address, read_at, 42.5) == expected
