"""What is wrong between two nodes, in words that name it, the node and the remedy."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.failover.model import OWNER, PROMOTED
from agent.failover.vrrp.advert import Advert, Reason, Refusal
from agent.failover.vrrp.compare import Mismatch, problems
from tests.unit.failover.vrrp import frames

ROUTER = frames.own(frames.V3).router
HERE, THERE = frames.HERE[4], frames.THERE[4]
GOOD = Advert(3, 51, 150, 1.0, frames.ONE, THERE)


def found(heard: Advert | Refusal, priority: int = 100) -> Mismatch:
    (only,) = problems(ROUTER, HERE, priority, heard)
    return only


def test_two_nodes_that_agree_have_no_problem() -> None:
    assert problems(ROUTER, HERE, 100, GOOD) == ()
    assert problems(ROUTER, HERE, 100, replace(GOOD, priority=0)) == ()


@pytest.mark.parametrize("reason", Reason)
def test_every_refusal_is_a_problem_with_a_remedy(reason: Reason) -> None:
    problem = found(Refusal(reason, f"{THERE} sends something", THERE))
    assert problem.kind == reason.value
    assert problem.text.startswith(f"{THERE} sends something: ")
    assert problem.source == THERE
    assert len(problem.text) > len(f"{THERE} sends something: its adverts are not listened to; ")


def test_vips_of_one_side_alone_are_named() -> None:
    more = (*frames.ONE, ip_address("10.73.0.101"))
    problem = found(replace(GOOD, vips=more))
    assert problem.kind == "vips"
    assert "only 10.73.0.1: 10.73.0.101" in problem.text
    assert "only this node" not in problem.text
    problem = found(replace(GOOD, vips=(ip_address("10.73.0.101"),)))
    assert "only 10.73.0.1: 10.73.0.101; only this node: 10.73.0.100" in problem.text


def test_the_order_of_vips_and_link_local_ones_do_not_matter() -> None:
    router = frames.own(frames.V3, vips=(ip_address("fe80::1"), *frames.SIX[1:])).router
    heard = replace(GOOD, vips=frames.SIX, source=frames.THERE[6])
    assert problems(router, frames.HERE[6], 100, heard) == ()
    two = frames.own(frames.V3, vips=frames.TWO).router
    assert problems(two, HERE, 100, replace(GOOD, vips=frames.TWO[::-1])) == ()


def test_many_vips_do_not_make_a_long_text() -> None:
    many = tuple(ip_address(f"10.73.1.{last}") for last in range(200))
    problem = found(replace(GOOD, vips=(*frames.ONE, *many)))
    assert "10.73.1.4 and 195 more" in problem.text


def test_different_intervals_are_named() -> None:
    problem = found(replace(GOOD, interval_s=0.1))
    assert problem.kind == "interval"
    assert "every 0.1 s, this node every 1 s" in problem.text


def test_equal_priorities_are_named_and_who_wins() -> None:
    problem = found(GOOD, 150)
    assert problem.kind == "priority"
    assert f"{HERE} wins" in problem.text
    ours = ip_address("9.0.0.1")
    (problem,) = problems(ROUTER, ours, 150, GOOD)
    assert f"{THERE} wins" in problem.text


def test_two_owners_and_two_promoted_nodes_are_named() -> None:
    assert "owner" in found(replace(GOOD, priority=OWNER), OWNER).text
    assert "release" in found(replace(GOOD, priority=PROMOTED), PROMOTED).text


def test_two_nodes_that_handed_over_are_no_problem() -> None:
    assert problems(ROUTER, HERE, 1, replace(GOOD, priority=1)) == ()


def test_all_that_is_wrong_is_told_at_once() -> None:
    heard = replace(GOOD, vips=frames.TWO, interval_s=0.1, priority=100)
    kinds = [problem.kind for problem in problems(ROUTER, HERE, 100, heard)]
    assert kinds == ["vips", "interval", "priority"]
