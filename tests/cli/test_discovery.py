"""``lbctl discovery``: what a person sees of sources, and what it asks of the agent."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.api import discoveryviews
from agent.config.layers import LeftOut
from agent.discovery.answer import Refused
from agent.discovery.run import SourceView
from agent.model import AdminState, Discover, Override, Protocol, Service, ServiceKey, Target
from agent.state.sources import Placed, SourceState

NOW = 1_790_000_000.0


def target(number: int, port: int | None = 8000, **more: object) -> Target:
    return Target(ip_address(f"10.0.0.{number}"), port, **more)


def chat(name: str, **more: object) -> Service:
    key = ServiceKey(ip_address("10.0.0.10"), 80, Protocol.TCP)
    return Service(name, key, **more)


HELD = "the answer lacks 3 of the 5 targets, and most_removed is 50%"
VIEWS = (
    SourceView(
        chat(
            "chat",
            discover=Discover(file=Path("/etc/gpu.yaml"), match=(("model", "llama"),)),
            overrides=(Override(ip_address("10.0.0.2"), 8000, 5, AdminState.DRAIN),),
        ),
        SourceState(
            "file /etc/gpu.yaml",
            (
                Placed(target(1, zone="a", weight=70)),
                Placed(target(2)),
                Placed(target(3), NOW - 90),
                Placed(target(4)),
            ),
            NOW - 30,
            HELD,
            NOW - 20,
            (target(1), target(2)),
        ),
        NOW - 20,
        (Refused("gpu-9:8000", "names are not resolved"),),
    ),
    SourceView(
        chat("embed", discover=Discover(dns="_http._tcp.example.org")),
        SourceState(problem="there is no such name", since=NOW - 5),
        NOW - 5,
        (),
    ),
    SourceView(
        chat("new", discover=Discover(http="https://inventory.example.org/gpu")),
        SourceState(),
        None,
        (),
    ),
)


@pytest.fixture(autouse=True)
def found(agent):
    left_out = {"chat": (LeftOut(target(4), "its address is a VIP"),)}
    agent.discovery = discoveryviews.sources(VIEWS, left_out, NOW)


def test_the_list_says_whether_answers_are_used(run) -> None:
    lines = run("discovery").out.splitlines()
    assert lines[0].split() == ["SERVICE", "SOURCE", "TARGETS", "LEFT", "OUT", "ANSWERED", "STATE"]
    assert lines[1].split()[:5] == ["chat", "file", "/etc/gpu.yaml", "2", "2"]
    assert f"held: {HELD}: lbctl discovery accept chat" in " ".join(lines)
    assert any("embed" in line and "never" in line for line in lines)
    assert any("not yet asked" in line for line in lines)
    assert run("discovery", "list").out == run("discovery").out


def test_without_a_source_it_says_how_to_get_one(run, agent) -> None:
    agent.discovery = {"sources": []}
    assert "lbctl service set SERVICE --discover" in run("discovery").out


def test_show_tells_of_each_target(run) -> None:
    out = run("discovery", "show", "chat").out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "70" in lines["10.0.0.1-8000"]
    assert "an operator set weight 5, state drain" in lines["10.0.0.2-8000"]
    assert "no longer named for 1m30s, and drains" in lines["10.0.0.3-8000"]
    assert "  10.0.0.4:8000: its address is a VIP" in out
    assert "  gpu-9:8000: names are not resolved" in out
    assert "model=llama" in lines["match"]


def test_an_override_is_shown_for_the_targets_that_it_holds_for() -> None:
    """In dsr a target's port is the service's, whether the source or the override names it."""
    override = Override(ip_address("10.0.0.1"), 80, 5)
    service = chat("chat", discover=Discover(dns="x"), overrides=(override,))
    state = SourceState("dns x", (Placed(target(1, None)), Placed(target(2, None))), NOW)
    shown = discoveryviews.sources([SourceView(service, state, NOW, ())], {}, NOW)
    (source,) = shown["sources"]  # type: ignore[misc]
    assert [each["override"] for each in source["targets"]] == [{"weight": 5, "state": None}, None]


def test_a_service_without_a_source_is_refused_with_those_that_have_one(run, agent) -> None:
    refused = run("discovery", "show", "web")
    assert "these have one: chat, embed, new" in refused.err
    agent.discovery = {"sources": []}
    assert "service set web --discover" in run("discovery", "show", "web").err


def test_accept_asks_the_agent(run, agent) -> None:
    run("discovery", "accept", "chat")
    assert agent.moves == [("chat/accept", {})]


def test_a_source_is_tried_without_the_agent(run, tmp_path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text('[{"targets": ["10.0.0.5:80", "x:80"], "labels": {"model": "m"}}]')
    out = json.loads(run("discovery", "test", f"file={path}", "-o", "json").out)
    assert [each["name"] for each in out["targets"]] == ["10.0.0.5-80"]
    assert out["left_out_total"] == 1
    assert "10.0.0.5:80" in run("discovery", "test", f"file={path}", "match.model=m").out
    assert "no target is a backend" in run("discovery", "test", f"file={path}", "match.model=n").out
    assert "cannot be read" in run("discovery", "test", f"file={path}x").err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["interval=5"], "give one of file=…, http=…, dns=…, kubernetes=…"),
        (["most-removed=5%"], "did you mean most_removed?"),
        (["dns"], "is not KEY=VALUE"),
        (["match.=x", "dns=y"], "is not KEY=VALUE"),
        (["file=gpu.yaml"], "is not an absolute path"),
        (["dns=x", "port=0"], "port: 0 is out of range"),
    ],
)
def test_settings_that_make_no_sense(run, given: list[str], says: str) -> None:
    refused = run("discovery", "test", *given)
    assert refused.code in (1, 2)
    assert says in refused.err


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (
            ["dns=gpu.example.org", "port=8000", "interval=5", "most_removed=0.2", "match.a=b"],
            {
                "dns": "gpu.example.org", "port": 8000, "interval": 5, "most_removed": 0.2,
                "match": {"a": "b"},
            },
        ),
        (["none"], {"file": None, "http": None, "dns": None, "kubernetes": None}),
        (["drain=10m"], {"drain": "10m"}),
    ],
)  # fmt: skip
def test_a_service_gets_a_source(run, agent, options, values) -> None:
    flags = [word for option in options for word in ("--discover", option)]
    run("service", "set", "chat", *flags)
    assert agent.edits[-1]["values"] == {"discover": values}


def test_a_backend_is_given_back_to_its_source(run, agent) -> None:
    name = agent.services[0]["backends"][0]["name"]
    run("backend", "set", f"chat/{name}", "--as-discovered")
    assert agent.edits[-1]["values"] == {"weight": None, "state": None}


def test_status_and_the_service_say_that_a_source_fails(run, agent) -> None:
    agent.status["agent"]["discovery_problems"] = ["service chat: dns x: there is no such name"]
    assert "PROBLEM     service chat: dns x: there is no such name" in run("status").out
    agent.services[0]["discover"] = "dns x"
    assert "dns x: lbctl discovery show chat" in run("service", "show", "chat").out
