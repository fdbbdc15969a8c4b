"""What balancers that hear each other by flow sync find wrong between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.failover.model import Method, Role
from agent.failover.status import Problem
from agent.failover.syncstatus import PeerSync, RouterReport
from agent.pair.comparing import (
    TWO_MASTERS,
    UNHEARD,
    Place,
    compare,
    follow,
    lasting,
    shown,
)
from tests.unit.failover.samples import BACKUP, MASTER, PEER, STATUS, WORD

THEIRS = replace(WORD, role=Role.BACKUP, priority=100, well=False)


def peer(*routers: RouterReport, at_s: float = 100.0) -> PeerSync:
    return replace(PEER, routers=routers, routers_s=at_s)


def kinds(own: RouterReport, other: RouterReport, now_s: float = 100.0) -> set[str]:
    found = compare([own], [peer(other)], now_s)
    assert all(place.instance == "web" and place.family == own.family for place in found)
    assert all(text.startswith("edge-2 (10.0.0.2)") for text in found.values())
    return {place.kind for place in found}


def test_nothing_is_said_of_two_that_agree() -> None:
    assert kinds(WORD, THEIRS) == kinds(THEIRS, WORD) == set()
    assert compare([WORD], [PEER, peer()], 100.0) == {}, "nothing is known of it"
    assert kinds(WORD, replace(THEIRS, instance="api")) == set()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"vips": "ffff"}, "vips"),
        ({"family": 6}, "vips"),
        ({"vrid": 52}, "vrid"),
        ({"version": 2}, "version"),
        ({"authentication": "hmac"}, "authentication"),
        ({"interval_s": 1.0}, "interval"),
        ({"priority": 150}, "priority"),
        ({"method": Method.ANNOUNCE, "family": 0}, "method"),
        ({"role": Role.MASTER}, TWO_MASTERS),
        ({"vouched": True}, UNHEARD),
    ],
)
def test_both_nodes_name_what_differs(change: dict[str, Any], kind: str) -> None:
    other = replace(THEIRS, **change)
    assert kinds(WORD, other) == kinds(other, WORD) == {kind}


def test_both_serve_where_there_are_no_elections() -> None:
    own = replace(WORD, method=Method.ANNOUNCE, family=0, vrid=1)
    assert kinds(own, own) == set()
    assert kinds(own, replace(own, vips="ffff")) == {"vips"}


def test_an_old_word_says_nothing_of_roles() -> None:
    assert kinds(WORD, replace(WORD, vrid=52), now_s=110.0) == {"vrid"}


def test_a_node_that_may_not_be_master_has_no_priority() -> None:
    assert kinds(WORD, replace(WORD, role=Role.FAULT)) == set()
    lost = replace(WORD, priority=1)
    assert kinds(lost, replace(lost, role=Role.BACKUP)) == set()


def test_it_is_known_since_when_it_is_so() -> None:
    web, api = Place("web", "name"), Place("api", "name")
    first = follow({}, {web: "one"}, 100.0)
    second = follow(first, {web: "two", api: "three"}, 160.0)
    assert second == {
        web: Problem("name", "two", 100.0, 160.0, 1),
        api: Problem("name", "three", 160.0, 160.0, 1),
    }
    assert follow(second, {}, 170.0) == {}


@pytest.mark.parametrize("kind", [TWO_MASTERS, UNHEARD, "priority"])
def test_what_is_ordinary_while_the_vips_move_is_waited_for(kind: str) -> None:
    place, vips = Place("web", kind, 4), Place("web", "vips", 4)
    found = {place: "now", vips: "other"}
    problems = follow({}, found, 100.0)
    assert lasting(problems, 1.0).keys() == {vips}
    problems = follow(problems, found, 105.9)
    assert lasting(problems, 1.0).keys() == {vips}
    problems = follow(problems, found, 106.0)
    assert lasting(problems, 1.0) == problems
    assert lasting(problems, 10.0).keys() == {vips}


def test_a_problem_is_shown_once_where_it_belongs() -> None:
    name = Problem("name", "nobody has it", 1.0, 2.0, 1)
    two = Problem(TWO_MASTERS, "edge-2 is master too", 1.0, 2.0, 1)
    vips = Problem("vips", "the adverts have said that already", 1.0, 2.0, 1)
    both = shown(
        STATUS,
        {
            Place("web", "name"): name,
            Place("gone", "name"): name,
            Place("web", TWO_MASTERS, 6): two,
            Place("web", "vips", 4): vips,
        },
    ).routers
    assert both == (
        replace(BACKUP, problems=(*BACKUP.problems, name)),
        replace(MASTER, problems=(two,)),
    )
