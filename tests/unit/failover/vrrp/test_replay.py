"""Recordings of adverts are told from adverts, also by a node that has just started."""

from __future__ import annotations

from ipaddress import ip_address

from agent.failover.times import OLDEST_COUNTER_S
from agent.failover.vrrp.replay import Guard
from agent.model import Address

PEER, OTHER = ip_address("10.0.0.2"), ip_address("10.0.0.3")
NOW_NS = 1_800_000_000 * 10**9
HOUR_NS = round(OLDEST_COUNTER_S * 10**9)


def guard(before: dict[Address, int] | None = None) -> Guard:
    return Guard(before or {}, clock_ns=lambda: NOW_NS)


def test_a_counter_only_grows() -> None:
    of = guard()
    of.accept(PEER, NOW_NS)
    assert of.refuses(PEER, NOW_NS, in_ns=True)
    assert of.refuses(PEER, NOW_NS - 1, in_ns=True)
    assert not of.refuses(PEER, NOW_NS + 1, in_ns=True)
    assert not of.refuses(OTHER, NOW_NS, in_ns=True), "each sender has its own"


def test_who_has_heard_nobody_yet_refuses_what_is_of_long_ago() -> None:
    of = guard()
    assert of.refuses(PEER, NOW_NS - HOUR_NS - 1, in_ns=True)
    assert not of.refuses(PEER, NOW_NS - HOUR_NS, in_ns=True)
    assert not of.refuses(PEER, NOW_NS + 24 * HOUR_NS, in_ns=True), "a clock may be ahead"
    assert not of.refuses(PEER, 1), "the counter of AH is no time"


def test_what_an_earlier_process_heard_is_refused() -> None:
    of = guard({PEER: NOW_NS - 5})
    assert of.refuses(PEER, NOW_NS - 5, in_ns=True)
    assert not of.refuses(PEER, NOW_NS - 4, in_ns=True)


def test_a_recording_of_while_this_node_was_away_is_refused_after_an_hour() -> None:
    of = guard({PEER: NOW_NS - 3 * HOUR_NS})
    assert of.refuses(PEER, NOW_NS - 2 * HOUR_NS, in_ns=True)


def test_a_peer_that_was_heard_may_be_behind_the_time() -> None:
    of = guard()
    of.accept(PEER, NOW_NS - HOUR_NS)
    of.clock_ns = lambda: NOW_NS + 10 * HOUR_NS
    assert not of.refuses(PEER, NOW_NS - HOUR_NS + 1, in_ns=True)


def test_what_is_saved_is_the_last_of_all_senders() -> None:
    of = Guard({PEER: 7, OTHER: 9})
    of.accept(PEER, 8)
    of.accept(OTHER, 5)
    assert of.to_save() == {PEER: 8, OTHER: 9}
