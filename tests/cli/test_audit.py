"""``lbctl audit``: every rule kept, broken and not applicable, and how the command tells it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbctl.audit.checks import RULES, audit
from lbctl.audit.rules import Practice, Seen, Verdict, named
from lbctl.commands import audit as command
from tests.cli.conftest import STATUS, service_view

type Change = Callable[[dict[str, Any]], object]

PEER = {"address": "10.0.0.2", "name": "edge-2", "state": "connected", "behind_s": 0.1}
ROUTER = {"name": "a/ipv4", "role": "master", "problems": []}
INSTANCE = {"name": "a", "authentication": "hmac", "track": {"scripts": [{"name": "gateway"}]}}
PORTS = {"source": "10.0.0.1", "server": "10.0.0.21:80/tcp", "used_ports": 5, "ports": 22_528}
GPU = {"gpu": "0", "lost": False, "xid": None, "throttled_by": []}
REPORT = {
    "source": "vllm",
    "fresh": True,
    "problem": "",
    "cached_ratio": 0.4,
    "gpus_source": "dcgm",
    "gpus_problem": "",
    "gpus": [GPU],
}
OBJECTIVE = {"within_s": 2.0, "is_missed": False, "late_share_last_minute": 0.01}


def well() -> dict[str, Any]:
    """A system that keeps every rule, and to which every rule applies."""
    service = service_view()
    for backend in service["backends"]:
        backend |= {"state": "up", "share_actual": backend["share_expected"], "reported": REPORT}
        backend |= {"answers_total": 5000, "learned": {"confidence": 0.9}}
        recent = {"count": 50, "p50_ms": 0.4, "p99_ms": 0.9}
        backend["handshake"] = {"count_total": 50, "mean_ms": 0.4, "last_minute": recent}
    service |= {
        "outlier": {"eject_s": 30.0},
        "slo": [OBJECTIVE],
        "syn_protection": "auto",
        "affinity": {"by": "source"},
        "telemetry": "vllm",
        "node_telemetry": "dcgm",
        "rates": service["rates"] | {"new_flows_per_s": 50.0},
        "drops_total": {"no-room": 0},
    }
    status = copy.deepcopy(STATUS)
    status["agent"]["changes_since_file"] = 0
    status["dataplane"]["nat_ports"] = [dict(PORTS)]
    status["failover"] = {
        "configured": True,
        "problem": "",
        "instances": [dict(ROUTER)],
        "flow_sync": [PEER | {"why": "", "since_s": 60.0, "peer": "10.0.0.2"}],
    }
    status["metrics"] = {"listen": "10.0.0.1:9117", "last_read_s": 12.0}
    return copy.deepcopy(
        {
            "status": status,
            "services": [service],
            "config": {
                "script_user": "steelyard-script",
                "failover": {"instances": [dict(INSTANCE)]},
            },
            "failover": {
                "instances": [{"adverts_received_total": 7}],
                "flow_sync": {"peers": [PEER]},
            },
            "guard": {
                "blocks": [], "lists": [{"name": "bad", "problem": ""}], "in_force": True,
                "problem": "", "unsaved_problem": "",
            },
            "host": [
                {"check": check, "verdict": "ok", "message": "fine", "fix": ""}
                for check in ("queues", "mtu", "tunnel mtu", "kernel", "certificate")
            ],
            "socket_mode": 0o140660,
        }
    )  # fmt: skip


def verdicts(seen: dict[str, Any]) -> dict[str, set[Verdict]]:
    found: dict[str, set[Verdict]] = {}
    for rule, finding in audit(Seen(**seen)):
        assert finding.evidence
        assert bool(finding.fix) is (finding.verdict is Verdict.BROKEN), (rule.name, finding)
        found.setdefault(rule.name, set()).add(finding.verdict)
    return found


def service(key: str, value: object) -> Change:
    return lambda seen: seen["services"][0].update({key: value})


def backend(key: str, value: object) -> Change:
    return lambda seen: seen["services"][0]["backends"][0].update({key: value})


def check(key: str, value: object) -> Change:
    return lambda seen: seen["services"][0]["health_check"].update({key: value})


def status(part: str, key: str, value: object) -> Change:
    return lambda seen: seen["status"][part].update({key: value})


def guard(key: str, value: object) -> Change:
    return lambda seen: seen["guard"].update({key: value})


def host(name: str, verdict: str) -> Change:
    def change(seen: dict[str, Any]) -> None:
        found = next(one for one in seen["host"] if one["check"] == name)
        found |= {"verdict": verdict, "fix": "mend it"}

    return change


def alone(seen: dict[str, Any]) -> None:
    for one in seen["services"][0]["backends"][1:]:
        one["state"] = "down"


def unheard(seen: dict[str, Any]) -> None:
    seen["status"]["failover"]["flow_sync"] = []
    seen["failover"]["instances"] = [{"adverts_received_total": 0}]


def peers(*found: dict[str, Any]) -> Change:
    return lambda seen: seen["failover"]["flow_sync"].update({"peers": list(found)})


def routers(*found: dict[str, Any]) -> Change:
    return lambda seen: seen["config"].update(failover={"instances": list(found)})


BROKEN: list[tuple[str, Change]] = [
    ("flow-table", status("dataplane", "flow_table", {"used_share": 0.8, "slots": 1024})),
    ("flows-recorded", service("flows_not_recorded_total", 1)),
    ("flows-recorded", service("drops_total", {"no-room": 3})),
    ("ports", status("dataplane", "nat_ports", [PORTS, PORTS | {"used_ports": 20_000}])),
    ("server-speed", backend("learned", {"confidence": 0.4})),
    ("server-speed", backend("learned", None)),
    ("table-rows", lambda seen: seen["config"].update({"tables": {"backends": 3}})),
    ("table-rows", lambda seen: seen["config"].update({"tables": {"services": 1}})),
    ("shares", backend("share_actual", 0.9)),
    ("queues", host("queues", "warning")),
    ("certificates", host("certificate", "warning")),
    ("two-servers", alone),
    ("two-servers", lambda seen: [b.update(address="10.0.0.21") for b in
                                  seen["services"][0]["backends"]]),
    ("second-balancer", status("failover", "configured", False)),
    ("second-balancer", status("failover", "problem", "no failover process")),
    ("second-balancer", status("failover", "instances", [ROUTER | {"role": "fault"}])),
    ("second-balancer", unheard),
    ("flows-follow", peers()),
    ("flows-follow", peers(PEER | {"state": "connecting"})),
    ("flows-follow", peers(PEER, PEER | {"behind_s": 9.0})),
    ("balancers-agree", status("failover", "instances", [ROUTER | {"problems": ["two masters"]}])),
    ("saved", status("agent", "unsaved_problem", "disk full")),
    ("nothing-wrong", status("agent", "config_problem", "agent.yaml:3: bad")),
    ("nothing-wrong", status("dataplane", "attached", False)),
    ("as-written", status("agent", "changes_since_file", 1)),
    ("host", host("kernel", "problem")),
    ("syn-protection", service("syn_protection", "off")),
    ("limits", service("limits", {"new_flows": None})),
    ("guard", guard("in_force", False)),
    ("guard", guard("problem", "no room for blocks")),
    ("guard", guard("lists", [{"name": "bad", "problem": "line 3"}])),
    ("guard", service("guard", "dry-run")),
    ("api", lambda seen: seen.update(socket_mode=0o140666)),
    ("commands", lambda seen: seen["config"].pop("script_user")),
    ("commands", lambda seen: seen["config"].update(script_user="root")),
    ("adverts", routers(INSTANCE, INSTANCE | {"name": "b", "authentication": "password"})),
    ("adverts", routers({"name": "a"})),
    ("metrics-address", status("metrics", "listen", "0.0.0.0:9117")),
    ("metrics-address", status("metrics", "listen", "[::]:9117")),
    ("metrics-address", status("metrics", "listen", "8.8.8.8:9117")),
    ("checked", check("type", "none")),
    ("checks-ask", check("type", "tcp")),
    ("checks-by-vip", check("via", "host")),
    ("objectives", service("slo", [])),
    ("scraped", status("metrics", "last_read_s", None)),
    ("scraped", status("metrics", "last_read_s", 301.0)),
    ("objectives-kept", service("slo", [OBJECTIVE | {"is_missed": True}])),
    ("hook", status("dataplane", "hook", "generic")),
    ("packet-size", host("tunnel mtu", "warning")),
    ("distance", backend("handshake", {"last_minute": {"count": 50, "p50_ms": 30.0}})),
    ("counts-work", service("scheduler", "maglev")),
    ("counts-work", service("counts_waiting_bytes", False)),
    ("learns-speed", service("learns_speed", False)),
    ("first-token", service("first_byte_is", "head")),
    ("errors-eject", service("outlier", None)),
    ("reports", backend("reported", REPORT | {"fresh": False})),
    ("reports", backend("reported", REPORT | {"gpus_problem": "refused"})),
    ("reports", backend("reported", None)),
    ("prefix-caches", service("affinity", None)),
    ("gpus", backend("reported", REPORT | {"gpus": [GPU | {"throttled_by": ["heat"]}]})),
    ("gpus", backend("reported", REPORT | {"gpus": [GPU | {"lost": True}]})),
]  # fmt: skip


def test_a_system_that_is_well_keeps_every_rule():
    assert verdicts(well()) == {rule.name: {Verdict.KEPT} for rule in RULES}


@pytest.mark.parametrize(("name", "change"), BROKEN)
def test_what_is_wrong_breaks_its_rule(name: str, change: Change):
    seen = well()
    change(seen)
    assert Verdict.BROKEN in verdicts(seen)[name]


def test_every_rule_can_be_broken():
    assert {rule.name for rule in RULES} == {name for name, _ in BROKEN}
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert {rule.practice for rule in RULES} == set(Practice)


def test_a_balancer_without_services_breaks_no_rule_of_services():
    seen = well() | {"services": []}
    found = verdicts(seen)
    assert not [name for name, those in found.items() if Verdict.BROKEN in those]
    of_services = {"two-servers", "syn-protection", "limits", "checked", "counts-work", "reports",
                   "shares", "server-speed", "distance", "gpus", "first-token"}  # fmt: skip
    assert all(found[name] == {Verdict.NOT_APPLICABLE} for name in of_services)


@pytest.mark.parametrize(
    ("name", "change"),
    [("ports", status("dataplane", "nat_ports", [])),
     ("flows-follow", status("failover", "configured", False)),
     ("balancers-agree", status("failover", "configured", False)),
     ("metrics-address", status("metrics", "listen", None)),
     ("objectives-kept", service("slo", [])),
     ("commands", routers()),
     ("adverts", routers({"name": "a", "method": "announce"})),
     ("checks-by-vip", service("forward", "nat"))],
)  # fmt: skip
def test_a_rule_that_says_nothing_of_a_system_is_not_broken(name: str, change: Change):
    seen = well()
    change(seen)
    assert verdicts(seen)[name] == {Verdict.NOT_APPLICABLE}


def test_what_could_not_be_looked_at_is_unknown():
    found = verdicts(well() | {"host": None, "socket_mode": None})
    unknown = {name for name, those in found.items() if those == {Verdict.UNKNOWN}}
    assert unknown == {"host", "queues", "packet-size", "api", "certificates"}


def test_a_check_with_an_expected_answer_is_more_than_a_connection():
    seen = well()
    seen["services"][0]["health_check"] |= {"type": "tcp", "send": "PING", "expect": "PONG"}
    assert verdicts(seen)["checks-ask"] == {Verdict.KEPT}


def test_many_are_named_in_one_line():
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


@pytest.fixture
def audited(agent, run, monkeypatch: pytest.MonkeyPatch):
    """``lbctl audit`` of a system that is well, or not quite."""
    seen = well()
    monkeypatch.setattr(command, "_host", lambda _env: seen["host"])

    def call(*arguments: str, change: Change = lambda _: None, **settings: Any):
        change(seen)
        agent.status, agent.services = seen["status"], seen["services"]
        agent.config, agent.failover, agent.guard = seen["config"], seen["failover"], seen["guard"]
        agent.socket.chmod(0o660)
        return run("audit", *arguments, **settings)

    return call


def test_the_command_asks_the_agent_and_tells_every_rule(audited):
    result = audited("-o", "json", "--strict")
    assert result.code == 0
    assert {row["verdict"] for row in result.json["findings"]} == {"kept"}
    assert len(result.json["findings"]) == result.json["counts"]["kept"] == len(RULES)


def test_a_broken_rule_comes_with_its_risk_and_its_remedy(audited):
    result = audited("--broken", change=service("syn_protection", "off"), width=60)
    assert result.code == 0
    assert result.out == (
        "Security\n"
        "  ✘ In a SYN flood, clients have to prove that they exist.\n"
        "    chat: syn_protection is off\n"
        "    A flood of forged SYNs reaches the servers, and fills\n"
        "    their backlogs.\n"
        "    fix: lbctl service set chat --syn-protection auto\n"
        "\n"
        f"{len(RULES) - 1} rules kept, 1 broken, 0 not applicable, 0 unknown\n"
    )


def test_strict_fails_if_a_rule_of_the_chosen_practices_is_broken(audited):
    change = service("syn_protection", "off")
    assert audited("--strict", "--practice", "security", change=change).code == 1
    other = audited("--strict", "--practice", "ai", "--practice", "latency")
    assert other.code == 0
    assert "Network latency\n" in other.out
    assert "Security" not in other.out


def test_the_example_of_the_documentation_has_as_many_rules():
    page = Path(__file__).parents[2] / "docs" / "observe.md"
    (line,) = re.findall(r"^\d+ rules kept, .* unknown$", page.read_text(), re.MULTILINE)
    assert sum(map(int, re.findall(r"\d+", line))) == len(RULES)
