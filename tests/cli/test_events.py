"""``lbctl events``: what has happened, as people and as programs read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DOWN = {
    "number": 7,
    "at": "2026-01-02T03:04:05.000Z",
    "level": "warning",
    "event": "backend",
    "service": "chat",
    "backend": "chat/gpu-1",
    "fields": {
        "backend": "chat/gpu-1",
        "old": "up",
        "new": "down",
        "why": "connection refused",
        "effect": "50 % → 0 % of new connections; 1 of 2 backends get some",
    },
}
CHANGED = DOWN | {
    "number": 8,
    "at": "2026-01-02T03:05:05.000Z",
    "level": "info",
    "event": "change",
    "fields": {
        "backend": "chat/gpu-1",
        "change": "change backend chat/gpu-1: weight 100 → 50",
        "by": "alice as root",
        "version": "3",
        "message": "too slow",
    },
}
READY = {
    "number": 9,
    "at": "2026-01-02T03:06:05.000Z",
    "level": "info",
    "event": "ready",
    "service": None,
    "backend": None,
    "fields": {"interface": "eth0", "services": "2"},
}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def test_events_read_as_sentences(agent, run):
    agent.events = [DOWN, CHANGED, READY]
    lines = run("events").out.splitlines()
    assert [line.partition("  ")[2] for line in lines] == [
        f"warning  chat/gpu-1  up → down: connection refused; {DOWN['fields']['effect']}",
        "info     chat/gpu-1  change: weight 100 → 50 (version=3), by alice as root: “too slow”",
        "info     ready (interface=eth0, services=2)",
    ]
    assert agent.queries == [("/v1/events", {"limit": "50", "level": "info"})]


def test_json_is_what_the_agent_says(agent, run):
    agent.events = [DOWN]
    assert run("events", "-o", "json").json == {"events": [DOWN]}


def test_no_events_are_said(agent, run):
    assert run("events").out == "no events\n"


@pytest.mark.parametrize(
    ("words", "query"),
    [
        (["--since", "1h"], {"since_s": "3600", "level": "info"}),
        (["--since", "500ms"], {"since_s": "1", "level": "info"}),
        (["-n", "5", "--level", "error"], {"limit": "5", "level": "error"}),
        (["--service", "chat"], {"limit": "50", "service": "chat", "level": "info"}),
        (["--backend", "chat/a"], {"limit": "50", "backend": "chat/a", "level": "info"}),
    ],
)
def test_what_is_asked_for_reaches_the_agent(agent, run, words, query):
    assert run("events", *words).code == 0
    assert agent.queries == [("/v1/events", query)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--since", "5x"], "'5x' is not a time such as 30s"),
        (["--backend", "gpu-1"], "a backend is named SERVICE/BACKEND"),
        (["--level", "warn"], "'warn' is not one of"),
        (["-n", "0"], "0 is not in the range"),
    ],
)
def test_mistyped_options_are_refused(agent, run, words, said):
    result = run("events", *words)
    assert (result.code, said in result.err) == (2, True)


def test_following_shows_each_event_once_also_when_the_agent_restarts(agent, run):
    agent.events = [DOWN]

    def wait(_seconds: float) -> None:
        rounds.append(agent.socket.exists())
        match len(rounds):
            case 2:
                agent.events.append(CHANGED)
            case 3:
                agent.socket.rename(f"{agent.socket}.away")
            case 5:
                # It was killed before CHANGED was on disk, and the next one counts on from there.
                agent.events = [DOWN, READY | {"number": 8}]
                Path(f"{agent.socket}.away").rename(agent.socket)
            case 7:
                raise KeyboardInterrupt

    rounds: list[bool] = []
    result = run("events", "--follow", "-o", "json", sleep=wait)
    assert [json.loads(line) for line in result.out.splitlines()] == [
        DOWN,
        CHANGED,
        READY | {"number": 8},
    ]
    assert (result.code, result.err) == (0, "")
    asked = [query for _, query in agent.queries]
    assert asked[0] == {"limit": "10", "level": "info"}
    assert asked[1] == {"after": "7", "level": "info"}
    assert int(asked[3]["since_s"]) > 60


def test_an_agent_that_is_not_there_is_not_waited_for(run):
    assert run("events", "--follow").code == 3


def test_bad_news_are_coloured_on_a_terminal(agent, run):
    agent.events = [DOWN, READY]
    first, second = run("events", colour=True, width=200).out.splitlines()
    assert "\x1b[33mwarning" in first
    assert "33m" not in second
