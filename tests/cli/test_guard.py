"""``lbctl guard``: what a person sees of blocks and lists, and what it asks of the agent."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from agent.api import guardviews
from agent.model import Detect, GuardMode, Protocol, Service, ServiceKey
from agent.state.alerts import Outcome, Seen
from agent.state.blocks import Block
from agent.state.guardview import AlertsView, Guarded, LimitView, ListView, ThreatView, Verdicts
from agent.state.queries import TopPage, TopSource
from agent.state.threats import Evidence, Sign, Threat, why

NOW = 1_790_000_000.0
BLOCK = Block(ip_network("198.51.100.7/32"), "scans", NOW - 60, NOW + 539.8)
WIDE = Block(ip_network("2001:db8:7::/64"), "", NOW - 60, NOW + 60)
LISTS = (
    ListView("drop", 1400, (Path("/etc/drop.txt"),), NOW - 30, "", 1234, 0, ("chat",)),
    ListView("office", 0, (Path("/etc/x"),), None, "/etc/x: cannot be read", 0, 5, ()),
)
LIMITS = (
    LimitView("chat", "new_flows_per_source", "50/s", 0, 1200, 0),
    LimitView("chat", "open_flows_per_source", "200", 0, 7, 2),
)
THREATS = (
    ThreatView(
        Threat("chat", ip_network("203.0.113.66/32"), Evidence(Sign.OPEN, 900, 2, 40), 1.0),
        NOW - 80, Detect.BLOCK, proven=True,
    ),
    ThreatView(
        Threat("embed", ip_network("2001:db8:66::/64"), Evidence(Sign.UNUSED, 70, 0, 3), 1.0),
        NOW - 9, Detect.LOG, proven=False,
    ),
)  # fmt: skip
VIEW = Guarded(
    blocks=(BLOCK, WIDE), lists=LISTS, limits=LIMITS, blocked_packets=17, not_allowed_packets=3,
    would_block_packets=5, nodes=8200, nodes_total=131_072,
)  # fmt: skip
CHAT = Service(
    "chat", ServiceKey(ip_address("10.0.0.10"), 80, Protocol.TCP), deny=("drop",),
    guard=GuardMode.DRY_RUN,
)  # fmt: skip


class OfGuard:
    """As much of a snapshot as there is to see."""

    def __init__(self, view: Guarded) -> None:
        self.guard, self.at = view, NOW
        self.services = (type("OfService", (), {"service": CHAT}),)


@pytest.fixture(autouse=True)
def guarded(agent):
    agent.guard = guardviews.guard(OfGuard(VIEW))
    agent.tested = guardviews.tested(
        Verdicts(ip_address("198.51.100.7"), BLOCK, ("drop",), {"chat": "blocked", "web": "served"})
    )
    agent.top = guardviews.top(TopPage((TopSource(ip_address("192.0.2.9"), 12_345, 678),), 40))


def test_status_says_who_is_unwanted_and_what_it_has_cost(run) -> None:
    lines = run("guard", "status").out.splitlines()
    assert lines[0] == "blocked  2 prefixes (lbctl guard list)"
    assert "17 packets of blocked sources, 3 of sources that no list allows" in lines[1]
    assert lines[2] == "dry run  1,212 packets would have been dropped"
    assert lines[3] == "room     8.2k of 131k nodes"
    assert lines[6].split() == ["chat", "dry-run", "all", "drop"]
    assert lines[9].split() == ["drop", "1,400", "1,234", "0", "30s", "ago", "chat"]
    assert lines[10].split() == ["office", "0", "0", "5", "-", "nobody"]
    assert lines[11] == "list office: /etc/x: cannot be read"
    assert lines[14].split() == ["chat", "new_flows_per_source", "50/s", "0", "1,200", "-"]
    assert lines[15].split() == ["chat", "open_flows_per_source", "200", "0", "7", "2"]


def test_status_names_what_hinders(run, agent) -> None:
    agent.guard |= {"problem": "no room", "unsaved_problem": "disk full"}
    out = run("guard", "status").out
    assert "problem  no room\n" in out
    assert "in memory only, a restart of the agent forgets it: disk full\n" in out


def test_status_as_json_is_the_agents_answer(run, agent) -> None:
    assert json.loads(run("guard", "status", "-o", "json").out) == agent.guard


def test_blocks_are_listed_as_they_end(run, agent) -> None:
    first, second = run("guard", "list").out.splitlines()[1:]
    assert first.split()[:2] == ["2001:db8:7::/64", "1m00s"]
    assert second.split()[:2] == ["198.51.100.7", "8m59s"]
    assert second.endswith("scans")
    agent.guard["blocks"] = []
    assert run("guard", "list").out == "nobody is blocked\n"


def test_blocking_names_whom_for_how_long_and_why(run, agent) -> None:
    result = run("guard", "block", "198.51.100.7", "2001:db8::/64", "--for", "2h", "--why", "scans")
    assert agent.moves == [
        ("block", {"prefixes": ["198.51.100.7", "2001:db8::/64"], "for_s": 7200.0,
                   "why": "scans", "confirmed": False})
    ]  # fmt: skip
    assert result.out == "blocked: 198.51.100.7, 2001:db8::/64; 2 open connections ended\n"
    agent.unsaved = "disk full"
    assert "forgets it: disk full" in run("guard", "block", "198.51.100.7").out
    assert agent.moves[1][1]["for_s"] == 600.0


def test_unblocking_names_whom(run, agent) -> None:
    assert run("guard", "unblock", "198.51.100.7").out == "served again: 198.51.100.7\n"
    agent.told = 2
    out = run("guard", "block", "198.51.100.7").out
    assert out.endswith("2 open connections ended; 2 other balancers informed\n")
    agent.moves.pop()
    assert agent.moves == [("unblock", {"prefixes": ["198.51.100.7"]})]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("block",), "Missing argument"),
        (("block", "198.51.100.300"), "not an IPv4 or IPv6 address"),
        (("block", "198.51.100.7/24"), "is an address inside 198.51.100.0/24"),
        (("block", "198.51.100.7", "--for", "5 years"), "is not a time such as"),
        (("unblock", "x"), "not an IPv4 or IPv6 address"),
        (("test", "198.51.100.0/24"), "is not an IPv4 or IPv6 address"),
        (("top", "--by", "name"), "is not one of"),
    ],
)
def test_what_is_mistyped_is_refused(run, agent, words: tuple[str, ...], why: str) -> None:
    result = run("guard", *words)
    assert (result.code, agent.moves) == (2, [])
    assert why in result.err


def test_an_address_is_tested(run, agent) -> None:
    lines = run("guard", "test", "198.51.100.7").out.splitlines()
    assert agent.queries[-1] == ("/v1/guard/test", {"address": "198.51.100.7"})
    assert lines[0] == "198.51.100.7 is on drop"
    assert lines[1].startswith("blocked as 198.51.100.7 until 20")
    assert lines[1].endswith(": scans")
    assert [line.split() for line in lines[4:]] == [["chat", "blocked"], ["web", "served"]]


def test_who_has_most_is_shown(run, agent) -> None:
    lines = run("guard", "top", "--by", "waiting", "--service", "chat").out.splitlines()
    asked = {"service": "chat", "by": "waiting", "limit": "20"}
    assert agent.queries[-1] == ("/v1/guard/top", asked)
    assert lines[1].split() == ["192.0.2.9", "12,345", "678"]
    assert lines[2] == "40 sources have open flows"
    agent.top = guardviews.top(TopPage((), 0))
    assert run("guard", "top").out == "no open flows\n"


def test_what_is_not_in_force_yet_says_so(run, agent) -> None:
    agent.guard["in_force"] = False
    for command in ("status", "list"):
        assert "not in force yet: the program for it is being compiled" in run("guard", command).out


def test_threats_say_who_for_how_long_and_why(run, agent) -> None:
    blocked = Block(ip_network("203.0.113.66/32"), why(THREATS[0].threat), NOW - 70, NOW + 530)
    view = replace(VIEW, threats=THREATS, blocks=(BLOCK, blocked))
    agent.guard = guardviews.guard(OfGuard(view))
    lines = run("threats").out.splitlines()
    assert lines[1].split()[:5] == ["chat", "203.0.113.66", "1m20s", "block", "900"]
    assert lines[2].split()[:4] == ["embed", "2001:db8:66::/64", "9s", "log"]
    assert lines[2].endswith("70 connections without a request")
    assert lines[3].startswith("note: sources of embed may be forged")
    assert lines[5] == "blocked for it:"
    assert lines[7].split()[:2] == ["203.0.113.66", "8m50s"]
    assert len(lines) == 8
    assert "threats  2 sources (lbctl threats)\n" in run("guard", "status").out
    agent.guard["threats_total"] = 1002
    assert "\nand 1,000 more\n" in run("threats").out


def test_alerts_are_shown_beside_threats(run, agent) -> None:
    address = ip_address("203.0.113.66")
    recent = tuple(
        Seen(2024897 + number, f"ET SCAN {number}", 2, outcome, address, "10.0.0.10:80", 1200,
             NOW - 9)
        for number, outcome in enumerate(Outcome)
    )  # fmt: skip
    blocked = Block(ip_network("203.0.113.66/32"), "suricata: 7 ET SCAN", NOW - 70, NOW + 530)
    view = replace(VIEW, alerts=AlertsView(Path("/var/log/eve.json")))
    agent.guard = guardviews.guard(OfGuard(view))
    lines = run("threats").out.splitlines()
    assert lines[1:] == ["", "alerts in /var/log/eve.json:", "none since the agent began"]
    full = AlertsView(Path("/x"), "/x: cannot be read", recent, {(2, Outcome.LOGGED): 7}, 1, 3, 99)
    agent.guard = guardviews.guard(OfGuard(replace(view, alerts=full, blocks=(BLOCK, blocked))))
    lines = run("threats").out.splitlines()
    first = "2024897 ET SCAN 0  2  blocked  1,200  9s ago  203.0.113.66  10.0.0.10:80"
    assert lines[4].split() == first.split()
    assert lines[10:13] == [
        "problem: /x: cannot be read",
        "3 lines could not be read",
        "99 bytes were left out: alerts came faster than they can be read",
    ]
    assert lines[14] == "blocked for an alert:"
    assert lines[16].split()[:2] == ["203.0.113.66", "8m50s"]
    assert len(lines) == 17


def test_without_threats_it_says_who_is_watched(run, agent) -> None:
    watched = "no source behaves unlike the others (1 service watched)\n"
    assert run("threats").out == watched
    agent.guard["services"][0]["detect"] = "off"
    assert run("threats").out == "no service is watched: `detect` is off\n"
