"""Commands that look: tables, JSON and YAML of what the agent says."""

from __future__ import annotations

import json

import pytest
import yaml

from lbctl.commands.events import local_time
from lbctl.top import Answers, Kind, Place, Size, View, screen
from lbctl.views import fleet_facts
from tests.cli.conftest import refusal, service_view

WIDTHS = (80, 100, 120, 160, 200)


def test_backend_list_says_state_why_since_weight_rates_and_share(agent, run):
    result = run("backend", "list")
    assert result.code == 0
    header, *rows = result.out.splitlines()
    assert header.split() == [
        "SERVICE",
        "BACKEND",
        "ADDRESS",
        "STATE",
        "SINCE",
        "WHY",
        "WEIGHT",
        "FLOWS",
        "NEW/S",
        "PKT/S",
        "BIT/S",
        "SHARE",
        "exp/act",
        "WAITING",
        "B",
        "1ST",
        "BYTE",
        "p50/p99",
    ]
    assert rows[0].split() == [
        "chat",
        "gpu-1",
        "10.0.0.21",
        "up",
        "2h05m",
        "http",
        "200",
        "in",
        "3",
        "ms",
        "100",
        "321",
        "12.3",
        "45.7k",
        "1.2G",
        "33.3/34.0%",
        "45.6k",
        "287ms/1.9s",
    ]
    assert "100→0" in rows[1]
    assert "drained by the operator" in rows[1]
    assert len(rows) == 3


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "command", ["backend list", "service list", "service show chat", "status", "flows"]
)
def test_output_fits_the_terminal_and_cuts_no_names(agent, run, width, command):
    agent.services[0]["backends"][0]["name"] = "a-backend-with-a-long-name"
    result = run(*command.split(), width=width)
    assert max(map(len, result.out.splitlines())) <= width
    assert "…" not in result.out
    if "backend" in command:
        assert "a-backend-with-a-long-name" in result.out


def test_narrow_terminal_says_which_columns_it_left_out(agent, run):
    assert "left out PKT/S" in run("service", "show", "chat", width=80).out
    assert "left out" not in run("service", "show", "chat", width=160).out


def test_colour_is_used_on_request_only(agent, run):
    assert "\x1b[" not in run("backend", "list").out
    assert "\x1b[" in run("backend", "list", colour=True).out


@pytest.mark.parametrize("place", ["before", "after"])
def test_output_option_stands_before_or_after_the_command(agent, run, place):
    arguments = ["status", "-o", "json"] if place == "after" else ["-o", "json", "status"]
    assert run(*arguments).json == agent.status


def test_socket_option_stands_before_or_after_the_command(agent, run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    assert run("--socket", str(agent.socket), "status", socket=elsewhere).code == 0
    assert run("status", "--socket", str(agent.socket), socket=elsewhere).code == 0


def test_socket_comes_from_the_environment(agent, run, tmp_path, monkeypatch):
    monkeypatch.setenv("STEELYARD_SOCKET", str(agent.socket))
    assert run("status", socket=tmp_path / "elsewhere").code == 0


def test_yaml_is_the_same_answer(agent, run):
    answer = yaml.safe_load(run("service", "show", "chat", "-o", "yaml").out)
    assert answer == agent.services[0] | {"hottest_flows": []}


def test_backend_list_filters_by_service_and_state(agent, run):
    result = run("backend", "list", "chat", "--state", "down", "-o", "json")
    assert [entry["name"] for entry in result.json["backends"]] == ["gpu-3"]
    assert run("backend", "list", "caht").code == 1
    assert run("backend", "list", "--state", "checking").out == "no backends\n"


def test_empty_balancer_says_how_to_begin(agent, run):
    agent.services = []
    assert "lbctl service add" in run("service", "list").out
    assert run("backend", "list").out == "no backends\n"
    assert run("service", "list", "-o", "json").json == {"services": []}


def test_service_show_has_details_and_backends(agent, run):
    out = run("service", "show", "chat").out
    assert "tcp 10.0.0.10:80" in out
    assert "degraded for 1m15s: 1 of 3 backends is down" in out
    assert "http: via vip, port 8000, interval 1s, timeout 500ms" in out
    assert "17 malformed" in out
    assert "gpu-3" in out


def test_service_show_tells_of_flows_without_room(agent, run):
    agent.services[0]["flows_not_recorded_total"] = 5000
    assert "5,000 flows found no room" in run("service", "show", "chat").out


def test_clients_that_wait_for_a_backend_are_counted(run, agent):
    agent.services[0] |= {"no_backend": "hold", "held_clients": 0}
    assert "clients wait for one)\n" in run("service", "show", "chat").out
    agent.services[0] |= {"held_clients": 3}
    assert "clients wait for one); waiting now: 3\n" in run("service", "show", "chat").out


def test_service_show_tells_whether_clients_are_challenged(agent, run):
    assert "SYN protection" not in run("service", "show", "chat").out
    agent.services[0] |= {"syn_protection": "auto"}
    assert "auto: nobody is challenged now" in run("service", "show", "chat").out
    agent.services[0] |= {"challenges_clients": True}
    assert "auto: new clients are challenged" in run("service", "show", "chat").out
    agent.services[0] |= {"cookies_problem": "gpu-1: its companion has another key"}
    shown = run("service", "show", "chat").out
    assert "challenged (no SYN cookies: gpu-1: its companion has another key)" in shown
    agent.services[0] |= {
        "gives_cookies": True,
        "cookies_problem": "",
        "cookies_keys": ["1a", "2b"],
    }
    shown = run("service", "show", "chat").out
    assert "auto: new clients get SYN cookies; cookies are signed with key 1a, 2b is ready" in shown


def test_ports_backups_slow_start_and_quic_are_shown_where_they_are_set(agent, run):
    before = run("service", "show", "chat").out
    assert "slow start" not in before
    assert "QUIC" not in before
    agent.services[0] |= {"slow_start_s": 30.0, "quic_id_bytes": 4}
    agent.services[0]["backends"][0] |= {"port": 8001, "backup": True}
    after = run("service", "show", "chat").out
    assert "slow start    a backend that comes up: 30s" in after
    assert "QUIC          server ids of 4 bytes" in after
    assert "10.0.0.21:8001" in after
    shown = run("backend", "show", "chat/gpu-1").out
    assert "10.0.0.21:8001" in shown
    assert "active, as a backup" in shown


def test_backend_show_has_health_next_hop_and_weight(agent, run):
    out = run("backend", "show", "chat/gpu-2").out
    assert "02:00:00:00:00:21, on the same segment" in out
    assert "100→0 (drain)" in out
    assert "http 200 (3.2 ms)" in out
    assert "330 open connections, 12 requests (45.6 kB) waiting for an answer" in out
    assert "first byte  287ms/1.9s (p50/p99 of 321 in the last minute); 412ms on average" in out
    assert "handshake   none in the last minute; 412µs on average of 4,300" in out
    assert "not resolved" in run("backend", "show", "chat/gpu-3").out


def test_where_nothing_is_counted_there_are_no_columns_for_it(agent, run):
    unknown = dict.fromkeys(("waiting_bytes", "waiting_requests", "first_byte", "handshake"))
    agent.services[0] |= {"waiting_bytes": None, "waiting_requests": None}
    for backend in agent.services[0]["backends"]:
        backend |= unknown
    assert "WAITING" not in run("backend", "list").out
    assert "WAITING" not in run("service", "list").out
    out = run("backend", "show", "chat/gpu-1").out
    assert "load        330 open connections, load score 376.60\n" in out
    assert "first byte  not counted\n" in out


def test_a_service_shows_what_its_scheduler_goes_by(agent, run):
    out = run("service", "show", "chat").out
    assert "scheduler     least-load (draws 8, bytes per connection 250)\n" in out
    assert "no backend    drop (" in out
    agent.services[0] |= {
        "scheduler": "source",
        "scheduler_settings": {"source_bits": None, "source_bound": 1.25},
        "draws_in_use": None,
    }
    assert "scheduler     source (source bound 1.25)\n" in run("service", "show", "chat").out


def test_answers_of_backends_are_in_the_totals_where_they_come_by(agent, run):
    assert "back:" not in run("service", "show", "chat").out
    agent.services[0] |= {"reply_packets_total": 1200, "reply_bytes_total": 3_400_000}
    assert "; back: 1,200 packets, 3.4 MB" in run("service", "show", "chat").out


def test_status_says_whether_it_balances(agent, run):
    out = run("status").out
    assert "edge-1: balancing on eth0 (native XDP, driver mlx5_core)" in out
    assert "3: 1 up, 1 down, 1 drain" in out
    assert "2 changes since" in out
    assert "PROBLEM" not in out
    assert "hook        native XDP: the fastest\n" in out
    agent.status["dataplane"] |= {"hook": "tc", "hook_reason": "native: no"}
    assert "hook        tc ingress: native: no\n" in run("status").out
    assert "(tc ingress, driver mlx5_core)" in run("status").out


def test_status_and_top_say_what_the_tier_of_the_host_does(agent, run):
    assert "tier" not in run("status").out
    tier = {
        "problems": [],
        "load": {
            "connections": 40, "current": 12, "queued": 3,
            "requests_per_s": 50.0, "refused_per_s": 5.0, "failed_per_s": 0.0,
        },
    }  # fmt: skip
    does = "40 connections, 50 requests/s, 5 refused/s, 12 at engines, 3 queued"
    agent.status["tier"] = tier
    assert f"tier        {does}\n" in run("status").out
    answers = Answers(View(Kind.SERVICES), agent.status)
    shown = [line.plain for line in screen(Place(), answers, Size(120, 30))]
    assert f"tier: {does}" in shown
    agent.status["tier"] = {"problems": ["HAProxy is not running"], "load": None}
    out = run("status").out
    assert "PROBLEM     the tier of this host: HAProxy is not running\n" in out
    assert "tier        not known: lbctl tier status\n" in out
    shown = [line.plain for line in screen(Place(), answers, Size(120, 30))]
    assert "the tier of this host: HAProxy is not running" in shown


def test_status_says_what_the_program_is_and_what_it_has(agent, run):
    out = run("status").out
    assert "1,432 instructions (8.1 kB of machine code)" in out
    assert "45,123 instructions verified" in out
    assert "features    ipv4 ipv6\n" in out
    assert "nat " not in out


UNCONNECTED = (
    "nobody gets a connection to embed: 1,234 were begun in the last half minute, and no handshake "
    "was completed, with 2 backends up; lbctl trace service embed"
)


def trouble(*names: str, **changed: object) -> dict[str, object]:
    """A cause as the agent tells it."""
    return {
        "servers": [{"name": name, "addresses": ["10.0.0.21"]} for name in names],
        "servers_total": len(names),
        "state": "down",
        "reason": "connection refused",
        "since": "2026-01-02T03:04:05.000Z",
        "since_s": 192.0,
        "services": ["chat", "embed"],
        "services_total": 2,
        "backends": 2,
        "other_backends": 0,
    } | changed


def test_status_begins_with_what_is_wrong_and_for_whom(agent, run):
    agent.status |= {
        "unserved": [
            {
                "service": "chat",
                "reason": "nobody is up",
                "since": "2026-01-02T03:04:05.000Z",
                "since_s": 61.0,
                "clients": "reset",
            }
        ],
        "unconnected": [{"service": "embed", "begun": 1234, "backends_up": 2}],
        "troubles": [
            trouble("gpu-7"),
            trouble("gpu-8", services=["chat"], services_total=1, other_backends=3),
            trouble("a", "b", "c", "d", services=["s1"] * 12, services_total=12, state="ejected"),
        ],
    }
    lines = run("status").out.splitlines()
    assert [line.partition("PROBLEM")[2].strip() for line in lines[:5]] == [
        "service chat serves nobody for 1m01s: nobody is up; its clients are answered with a reset",
        UNCONNECTED,
        "gpu-7 (10.0.0.21) is down in chat, embed for 3m12s: connection refused",
        "gpu-8 (10.0.0.21) is down in chat, not in 3 others for 3m12s: connection refused",
        "4 servers (a, b, c, …) are ejected in 12 services for 3m12s: connection refused",
    ]
    assert lines[5].startswith("balancer")


def test_of_many_troubles_the_worst_are_shown(agent, run):
    agent.status["troubles"] = [trouble(f"gpu-{number}") for number in range(25)]
    lines = run("status").out.splitlines()
    assert sum(line.startswith("PROBLEM") for line in lines) == 11
    assert "and 15 more: lbctl server list --sort state" in lines[10]


def test_status_ends_with_the_services_of_which_the_worst_are_shown(agent, run):
    lines = run("status").out.splitlines()
    assert lines[-2].split()[:4] == ["SERVICE", "VIP", "FORWARD", "STATE"]
    assert lines[-1].split()[:5] == ["chat", "tcp", "10.0.0.10:80", "dsr", "degraded"]
    assert agent.queries[-1] == ("/v1/list/services", {"sort": "state", "limit": "10"})
    assert "services" in run("status", "-o", "json").json
    agent.services = [service_view() | {"name": f"s{n}"} for n in range(30)]
    assert run("status").out.splitlines()[-1] == "10 of 30 services; lbctl top has all"
    agent.services = []
    assert "SERVICE" not in run("status").out


def test_status_of_an_agent_that_lists_no_services_yet_does_without(agent, run, monkeypatch):
    """lbctl is new at once after an upgrade, the agent after its restart."""
    answer = agent.get

    def older(path, query):
        if path.startswith("/v1/list/"):
            return 404, refusal("there is no such path")
        return answer(path, query)

    monkeypatch.setattr(agent, "get", older)
    result = run("status")
    assert (result.code, "balancing" in result.out, "SERVICE" in result.out) == (0, True, False)


def test_status_says_that_there_are_threats(run, agent) -> None:
    assert "threats" not in run("status").out
    agent.status["threats"] = 2
    assert "threats     2 sources unlike all others: lbctl threats" in run("status").out


def test_status_counts_the_warnings_of_the_last_hour(agent, run):
    assert "last hour" not in run("status").out
    agent.status["events_last_hour"] = {"warning": 3, "error": 1}
    assert "last hour   1 error, 3 warnings: lbctl events --since 1h" in run("status").out


def test_a_watch_shows_what_the_screen_has_room_for(agent, run):
    agent.services[0]["backends"] *= 20
    clock = Clock(frames=1)
    result = run("backend", "list", "--watch", "1", width=200, height=10, sleep=clock.sleep)
    frame = result.out.split("\x1b[2J")[1].rstrip().splitlines()
    assert len(frame) == 9
    assert frame[-1].endswith(" more lines; --limit, --state and --sort choose)")


def test_backends_that_change_often_say_so(agent, run):
    first = agent.services[0]["backends"][0]
    assert "changes" not in run("backend", "list").out
    first["state_changes_last_hour"] = 9
    assert "http 200 in 3 ms; 9 changes in an hour" in run("backend", "list").out
    assert "9 changes in the last hour" in run("backend", "show", "chat/gpu-1").out


def test_status_says_how_many_ports_fullnat_has_left(agent, run):
    agent.status["dataplane"]["nat_ports"] = [
        {"source": source, "server": server, "used_ports": used, "ports": 22_528}
        for source, server, used in (
            ("198.51.100.200", "192.0.2.1:80/tcp", 7),
            ("198.51.100.200", "192.0.2.2:80/tcp", 5632),
            ("2001:db8::200", "[2001:db8::1]:80/tcp", 0),
        )
    ]
    agent.status["dataplane"]["nat_problems"] = ["nearly all are in use"]
    out = run("status").out
    expected = "198.51.100.200: 5.6k of 22.5k ports in use (25.0%) towards 192.0.2.2:80/tcp\n"
    assert f"nat         {expected}" in out
    expected = "2001:db8::200: 0 of 22.5k ports in use (0.0%) towards [2001:db8::1]:80/tcp\n"
    assert f"            {expected}" in out
    assert "PROBLEM     fullnat: nearly all are in use\n" in out


def test_status_says_what_a_restart_would_forget(agent, run):
    agent.status["agent"]["unsaved_problem"] = "no space left"
    text = "PROBLEM     changes are in memory only, and a restart forgets them: no space left\n"
    assert text in run("status").out


def test_status_does_not_say_that_it_balances_where_no_packet_comes(agent, run):
    agent.status["dataplane"]["link_problems"] = ["eth0 has no carrier"]
    out = run("status").out
    assert "edge-1: eth0 has no carrier, attached to eth0 (native XDP, driver mlx5_core)" in out
    assert "balancing" not in out


def test_status_names_who_else_answers_for_a_vip(agent, run):
    told = "8e:c8:18:5b:31:e4 answers for 10.0.0.10, too: it is no backend's"
    agent.status["dataplane"]["vip_problems"] = [told]
    assert f"PROBLEM     {told}" in run("status").out


def test_status_names_every_interface(agent, run):
    agent.status["dataplane"]["backend_interfaces"] = ["eth1", "bond0.7"]
    assert "balancing on eth0, eth1, bond0.7 (" in run("status").out


def test_status_shows_problems(agent, run):
    agent.status["agent"]["config_problem"] = "agent.yaml:3: unknown key\n  remedy: remove it"
    agent.status["agent"]["changes_since_file"] = 0
    agent.status["dataplane"]["attached"] = False
    out = run("status").out
    assert "NOT attached" in out
    assert "PROBLEM     agent.yaml:3: unknown key\n              remedy: remove it\n" in out
    assert "refused as it is now: the last good configuration runs" in out
    assert "as written" not in out


FLEET = {
    "name": "prod",
    "node": "lb1",
    "version": 12,
    "since": "2026-01-02T03:04:05.000Z",
    "wanted_version": 13,
    "stable_version": 13,
    "newest_version": 13,
    "trying": [],
    "frozen": None,
    "refused_version": 13,
    "problem": "version 13 of the fleet is refused here, 12 stays: chat: no interface eth7",
    "store_away_s": None,
}


def test_status_begins_with_why_a_balancer_does_not_follow_its_fleet(agent, run):
    assert "PROBLEM" not in run("status").out
    agent.status["fleet"] = FLEET
    assert run("status").out.startswith(f"PROBLEM     {FLEET['problem']}\n")


def test_a_line_says_which_version_of_the_fleet_runs_since_when():
    ((name, text),) = fleet_facts(FLEET)
    since = local_time(FLEET["since"])
    assert (name, text) == (
        "fleet",
        f"prod: lb1 has run version 12 since {since}; version 13 is wanted",
    )
    assert fleet_facts(None) == []


def test_flows_passes_its_filters_on(agent, run):
    run("flows", "--backend", "chat/gpu-1", "--client", "198.51.100.7/24", "--state", "established")
    assert agent.queries[-1][1] == {
        "service": "chat",
        "backend": "gpu-1",
        "client": "198.51.100.0/24",
        "state": "established",
        "limit": "100",
    }
    run("flows", "--backend", "gpu-1", "--service", "chat")
    assert agent.queries[-1][1] == {"service": "chat", "backend": "gpu-1", "limit": "100"}


def test_flows_says_when_there_are_more(agent, run):
    agent.matched = 1234
    result = run("flows", "--limit", "1")
    assert "198.51.100.7:40000" in result.out
    assert "1 of 1,234 flows shown" in result.err


def test_flows_show_what_is_known_of_requests(agent, run):
    header, row = run("flows").out.splitlines()
    assert header.split() == [
        "SERVICE", "BACKEND", "PROTO", "CLIENT", "VIP", "STATE",
        "WAITING", "B", "TALK", "HANDSHAKE", "AGE", "IDLE",
    ]  # fmt: skip
    assert row.split()[5:9] == ["established", "4.6k", "tls", "731µs"]


def test_flows_without_requests_or_nat_have_no_columns_for_them(agent, run):
    unknown = dict.fromkeys(("awaiting_answer", "waiting_bytes", "handshake_ms", "talk"))
    agent.flows[0] |= unknown
    header = run("flows").out.splitlines()[0]
    assert "WAITING" not in header
    assert "NAT" not in header


def test_flows_of_fullnat_show_what_the_backend_sees(agent, run):
    agent.flows[0] |= {"nat_source": "fd00::1", "nat_source_port": 10_240}
    assert "[fd00::1]:10240" in run("flows").out


def test_flows_of_the_awaiting_can_be_asked_for(agent, run):
    run("flows", "--state", "awaiting")
    assert agent.queries[-1][1]["state"] == "awaiting"


def test_flows_refuses_filters_that_contradict(agent, run):
    assert run("flows", "--service", "web", "--backend", "chat/gpu-1").code == 2
    assert run("flows", "--client", "10.0.0.300").code == 2


DRAW = {
    "slot": 123,
    "backend": "gpu-3",
    "usable": True,
    "load_score": None,
    "open_connections": None,
    "most_open_connections": None,
    "cpu": None,
}
EXPLANATION = {
    "verdict": "forward",
    "service": "chat",
    "backend": "gpu-3",
    "reason": "drawn from the ring",
    "scheduler": "maglev",
    "depends_on": None,
    "steps": ["service chat", "no recorded flow"],
    "recorded_flow": None,
    "ring": {
        "slots": 65_537,
        "draws": [
            DRAW | {"slot": 8123, "backend": "gpu-2", "usable": False},
            DRAW,
        ],
    },
}


def test_explain_shows_verdict_steps_and_draws(agent, run):
    agent.explanation = EXPLANATION
    result = run("explain", "tcp", "198.51.100.7:40000", "10.0.0.10:80")
    assert "forward to chat/gpu-3" in result.out
    assert "2. no recorded flow" in result.out
    assert "slot 8123 of 65537: gpu-2, which is not usable" in result.out
    assert agent.queries[-1][1] == {
        "protocol": "tcp",
        "client": "198.51.100.7",
        "client_port": "40000",
        "vip": "10.0.0.10",
        "port": "80",
    }


def test_explain_takes_ipv6_in_brackets(agent, run):
    agent.explanation = EXPLANATION
    assert run("explain", "udp", "[2001:db8::7]:40000", "[fd00::10]:443").code == 0
    assert agent.queries[-1][1]["client"] == "2001:db8::7"


@pytest.mark.parametrize(
    ("client", "vip", "hint"),
    [
        ("2001:db8::7:40000", "[fd00::10]:443", "[2001:db8::1]:443"),
        ("10.0.0.1", "10.0.0.10:80", "192.0.2.1:443"),
        ("10.0.0.1:70000", "10.0.0.10:80", "1 to 65535"),
        ("10.0.0.1:4000", "[fd00::10]:80", "both IPv4 or both IPv6"),
        ("gpu-1:4000", "10.0.0.10:80", "'gpu-1' is not an address"),
    ],
)
def test_explain_refuses_what_is_no_connection(run, client, vip, hint):
    result = run("explain", "tcp", client, vip)
    assert result.code == 2
    assert hint in result.err


def explained(agent, run, **changes) -> str:
    agent.explanation = EXPLANATION | changes
    return run("explain", "tcp", "198.51.100.7:40000", "10.0.0.10:80").out


def test_explain_shows_a_recorded_flow(agent, run):
    flow = agent.flows[0] | {"nat_source": "10.0.0.1", "nat_source_port": 12_345}
    out = explained(agent, run, recorded_flow=flow, ring={"slots": 0, "draws": []})
    assert "established on gpu-1, for 3m12s, idle for 1s, from 10.0.0.1:12345" in out
    assert "4.6 kB of a request wait for an answer" in out


def test_explain_says_what_the_choice_depends_on(agent, run):
    draws = [DRAW | {"load_score": 12.5}, DRAW | {"backend": "gpu-1", "load_score": 7.25}]
    out = explained(agent, run, depends_on="load", ring={"slots": 101, "draws": draws})
    assert "depends on  the load of the moment" in out
    assert "draw 1: slot 123 of 101: gpu-3, load score 12.50" in out
    assert "draw 2: slot 123 of 101: gpu-1, load score 7.25" in out


def test_explain_shows_how_far_a_backend_is_from_its_bound(agent, run):
    draws = [DRAW | {"open_connections": 11, "most_open_connections": 10}]
    out = explained(agent, run, ring={"slots": 101, "draws": draws})
    assert "gpu-3, 11 open of at most 10" in out


def test_explain_of_a_turn_names_the_cpus(agent, run):
    draws = [DRAW | {"cpu": 0}, DRAW | {"cpu": 1, "backend": "gpu-1"}]
    out = explained(agent, run, backend=None, depends_on="turn", ring={"slots": 3, "draws": draws})
    assert "verdict     forward to a backend of chat" in out
    assert "CPU 0: slot 123 of 3: gpu-3" in out
    assert "CPU 1: slot 123 of 3: gpu-1" in out


def test_explain_of_nobody_says_what_the_client_gets(agent, run):
    out = explained(agent, run, verdict="reset", backend=None, ring={"slots": 0, "draws": []})
    assert out.startswith("verdict  reset\n")
    assert "service  chat" in out


def test_export_is_the_running_configuration(agent, run):
    assert yaml.safe_load(run("export").out) == agent.config
    assert run("export", "-o", "json").json == agent.config
    services = yaml.safe_load(run("export", "--services-only").out)
    assert services == {"services": agent.config["services"]}


class Clock:
    """Ends a watch after some frames, as Ctrl-C does."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == self.frames:
            raise KeyboardInterrupt


def test_watch_repeats_until_ctrl_c_and_ends_well(agent, run):
    clock = Clock(3)
    result = run("backend", "list", "--watch", "0.5", width=120, sleep=clock.sleep)
    assert result.code == 0
    assert clock.slept == [0.5] * 3
    assert result.out.count("\x1b[H\x1b[2J") == 3


def test_watch_needs_no_number(agent, run):
    clock = Clock(1)
    assert run("status", "-w", sleep=clock.sleep).code == 0
    assert clock.slept == [2.0]


def test_watch_into_a_pipe_has_no_control_characters(agent, run):
    result = run("status", "-w", "-o", "json", sleep=Clock(2).sleep)
    assert "\x1b" not in result.out
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(result.out)
    second, _ = decoder.raw_decode(result.out[end:].lstrip())
    assert first == second == agent.status


def test_watch_outlives_a_restart_of_the_agent(agent, run):
    moved = agent.socket.with_name("moved")

    def restart(_seconds: float) -> None:
        if agent.socket.exists():
            agent.socket.rename(moved)
        elif moved.exists():
            moved.rename(agent.socket)
            restart.back = True
            return
        if getattr(restart, "back", False):
            raise KeyboardInterrupt

    restart.back = False
    result = run("status", "-w", "1", sleep=restart)
    assert result.code == 0
    assert result.out.count("balancing") == 2
    assert "trying again" in result.out


def test_watch_without_an_agent_fails_at_once(run):
    assert run("status", "--watch").code == 3


def test_a_service_says_where_its_settings_come_from(run, agent) -> None:
    agent.origins = [
        {"backend": None, "field": "panic", "value": 0.5, "origin": "file"},
        {"backend": None, "field": "allow", "value": ["office", "home"], "origin": "runtime"},
        {"backend": None, "field": "discover.match", "value": {"a": "b"}, "origin": "file"},
        {"backend": "10.0.0.40", "field": "weight", "value": 7, "origin": "override"},
        {"backend": "10.0.0.40", "field": "zone", "value": None, "origin": "source"},
    ]
    lines = [line.split() for line in run("service", "show", "chat", "--origin").out.splitlines()]
    assert lines == [
        ["BACKEND", "SETTING", "VALUE", "FROM"],
        ["-", "panic", "0.5", "file"],
        ["-", "allow", "office,", "home", "runtime"],
        ["-", "discover.match", "a=b", "file"],
        ["10.0.0.40", "weight", "7", "override"],
        ["10.0.0.40", "zone", "-", "source"],
    ]
    assert "did you mean" in run("service", "show", "chatt", "--origin").err
