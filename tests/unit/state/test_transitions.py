"""What is said when states of backends and services change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.config.plan import part_of
from agent.logs import LogLevel
from agent.model import AdminState, BackendState, Config, Health, ServiceState
from agent.state.identities import assign
from agent.state.situation import Past, Situation, situation
from agent.state.tables import TableContents
from agent.state.transitions import transitions
from agent.weights.influence import LEARNED, THROTTLED, Influence
from tests.unit.state.world import TABLES, A, B, surroundings, web

C = replace(A, name="c", backup=True)
INFO, WARNING, ERROR = LogLevel.INFO, LogLevel.WARNING, LogLevel.ERROR


def seen(past: Past, *services, health=None, influences=None) -> Situation:
    config = Config("test", "eth0", tables=TABLES, services=services)
    around = surroundings(config, health, influences=influences)
    ids = assign(config, TableContents(), frozenset(), lambda: 7)
    return situation(past, config, ids, {}, around.hops, around.eligibility, 1000.0)


def said(before: Situation | None, after: Situation, past: Past | None = None) -> list[tuple]:
    known = past if past is not None else before.past if before else Past({}, {})
    found = transitions(known, before, after, after.config)
    return [(line.level, line.event, dict(line.fields)) for line in found]


def step(*services, **now) -> list[tuple]:
    """All well, and then as told."""
    before = seen(Past({}, {}), *services)
    return said(before, seen(before.past, *services, **now))


def test_what_goes_down_says_why_and_who_takes_its_share():
    backend, service = step(web(A, replace(B, weight=100)), health={"a": Health.DOWN})
    assert backend == (
        WARNING,
        "backend",
        {
            "backend": "web/a",
            "old": "up",
            "new": "down",
            "why": "it is down",
            "effect": "50 % → 0 % of new connections; 1 of 2 backends get some",
        },
    )
    fields = {"service": "web", "old": "up", "new": "degraded", "why": "1 of 2 backends up"}
    assert service == (WARNING, "service", fields)


def test_a_service_that_nobody_serves_is_an_error_and_its_return_none():
    one = web(A)
    well = seen(Past({}, {}), one)
    down = seen(well.past, one, health={"a": Health.DOWN})
    assert [line[0] for line in said(well, down)] == [WARNING, ERROR]
    assert [line[0] for line in said(down, seen(down.past, one))] == [INFO, INFO]


def test_from_down_to_degraded_is_good_news():
    both = web(A, B)
    down = seen(Past({}, {}), both, health={"a": Health.DOWN, "b": Health.DOWN})
    lines = said(down, seen(down.past, both, health={"a": Health.DOWN}))
    assert [(line[0], line[1]) for line in lines] == [(INFO, "backend"), (INFO, "service")]


@pytest.mark.parametrize(("admin", "state"), [("drain", "drain"), ("maintenance", "maintenance")])
def test_what_the_operator_takes_out_is_no_warning(admin: str, state: str):
    well = seen(Past({}, {}), web(A, B))
    after = seen(well.past, web(replace(A, admin=AdminState(admin)), B))
    (line,) = said(well, after)
    assert (line[0], line[2]["new"], line[2]["effect"][:11]) == (INFO, state, "25 % → 0 % ")


def test_a_backup_that_takes_over_is_said_and_that_it_is_one_again():
    service = web(A, C)
    well = seen(Past({}, {}), service)
    down = seen(well.past, service, health={"a": Health.DOWN})
    lines = {line[2].get("backend", "web"): line for line in said(well, down)}
    assert lines["web/c"][1:] == (
        "weight",
        {
            "backend": "web/c",
            "old": 0,
            "new": 100,
            "why": "configured",
            "effect": "0 % → 100 % of new connections; 1 of 2 backends get some",
        },
    )
    back = {line[2].get("backend"): line for line in said(down, seen(down.past, service))}
    assert (back["web/c"][2]["new"], back["web/c"][2]["why"]) == (0, "backup")


def test_what_makes_a_weight_another_is_said_but_not_what_says_so_itself():
    service = web(A, B)
    ref = next(iter(seen(Past({}, {}), service).backends))
    for reason, told in ((THROTTLED, 1), (LEARNED, 0)):
        lines = step(service, influences={ref: Influence(factors=((reason, 0.5),))})
        assert len(lines) == told, reason
    (line,) = step(service, influences={ref: Influence(factors=((THROTTLED, 0.5), (LEARNED, 2)))})
    assert (line[2]["old"], line[2]["new"], line[2]["why"]) == (100, 100, "throttled, learned")


def test_after_a_restart_only_what_differs_from_before_it_is_said():
    service = web(A, B)
    past = seen(Past({}, {}), service, health={"b": Health.DOWN}).past
    (backend, state) = said(None, seen(past, service), past)
    assert (backend[2]["backend"], backend[2]["old"]) == ("web/b", "down")
    assert backend[2]["effect"] == "75 % of new connections; 2 of 2 backends get some"
    assert (state[2]["old"], state[2]["new"]) == ("degraded", "up")


def test_nothing_is_said_of_what_is_new_or_as_before():
    assert said(None, seen(Past({}, {}), web(A, B))) == []
    assert step(web(A, B)) == []
    well = seen(Past({}, {}), web(A))
    assert said(well, seen(well.past, web(A, B))) == []


def test_only_the_services_of_the_pass_are_looked_at():
    one, two = web(A), web(B, name="two", vip="203.0.113.11")
    well = seen(Past({}, {}), one, two)
    down = seen(well.past, one, two, health={"a": Health.DOWN, "b": Health.DOWN})
    part = part_of(down.config, frozenset({"two"}))
    lines = transitions(well.past, well, down, part)
    assert {line.fields.get("backend", "two/b") for line in lines} == {"two/b"}
    assert down.backends[next(iter(down.backends))].state is BackendState.DOWN
    assert down.services["web"].state is ServiceState.DOWN
