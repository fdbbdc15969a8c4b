"""Which backends are done with their clients suspiciously fast, and when no longer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Backend, BackendRef, Scheduler
from agent.state import haste
from agent.state.haste import Looks, Pace, Reading
from tests.unit.state.world import web

SERVICE = web(
    *[Backend(f"s{n}", ip_address(f"10.0.1.{n + 1}")) for n in range(4)],
    scheduler=Scheduler.LEAST_LOAD,
)
REFS = [BackendRef("web", backend.name) for backend in SERVICE.backends]

type Second = tuple[int, int]  # connections that end in it, and that are open throughout


@dataclass
class History:
    """The service second by second."""

    now: float = 100.0
    usable: frozenset[BackendRef] = frozenset(REFS)
    ended: dict[BackendRef, int] = field(default_factory=lambda: dict.fromkeys(REFS, 0))
    looks: dict[BackendRef, Looks] = field(default_factory=lambda: dict.fromkeys(REFS, Looks()))
    paces: dict[BackendRef, Pace] = field(default_factory=dict)

    def pass_seconds(self, count: int, *seconds: Second) -> set[str]:
        for _ in range(count):
            readings = {}
            for ref, (ended, still_open) in zip(REFS, seconds, strict=True):
                looks = self.looks[ref]
                self.ended[ref] += ended
                self.looks[ref] = Looks(looks.times + 5, looks.seen + 5 * still_open)
                readings[ref] = Reading(self.now, self.looks[ref], self.ended[ref])
            self.paces = haste.follow(SERVICE, self.paces, readings, self.usable)
            self.now += 1
        return self.hasty

    @property
    def hasty(self) -> set[str]:
        return {ref.backend for ref, pace in self.paces.items() if pace.hasty}


WORKS: Second = (10, 5)  # half a second each
FAILS: Second = (70, 0)
BUSIER: Second = (11, 6)


def settled() -> History:
    here = History()
    assert not here.pass_seconds(30, WORKS, WORKS, WORKS, WORKS)
    return here


def test_a_backend_that_is_done_with_everybody_at_once_is_hasty_in_seconds_until_it_works_again():
    here = settled()
    assert here.pass_seconds(4, FAILS, WORKS, WORKS, WORKS) == {"s0"}
    pace = here.paces[REFS[0]]
    assert pace.usual_s is not None
    assert 0.2 < pace.usual_s <= 0.5
    assert pace.last_s < 0.1
    assert here.pass_seconds(60, (6, 0), BUSIER, BUSIER, BUSIER) == {"s0"}
    assert not here.pass_seconds(8, (2, 1), BUSIER, BUSIER, BUSIER)


def test_a_hasty_backend_that_gets_nothing_stays_so():
    here = settled()
    here.pass_seconds(4, FAILS, WORKS, WORKS, WORKS)
    assert here.pass_seconds(60, (0, 0), WORKS, WORKS, WORKS) == {"s0"}


def test_a_hasty_backend_is_so_no_longer_once_connections_are_as_short_everywhere():
    here = settled()
    here.pass_seconds(4, FAILS, WORKS, WORKS, WORKS)
    short: Second = (100, 2)
    assert not here.pass_seconds(30, (50, 1), short, short, short)


def test_one_that_gets_no_new_flows_is_not_judged():
    here = settled()
    here.usable = frozenset(REFS[1:])
    assert not here.pass_seconds(10, FAILS, WORKS, WORKS, WORKS)


def test_one_that_was_always_faster_is_not_hasty():
    here = History()
    assert not here.pass_seconds(120, FAILS, WORKS, WORKS, WORKS)


def test_what_is_shorter_everywhere_is_another_kind_of_request():
    here = settled()
    assert not here.pass_seconds(60, FAILS, FAILS, FAILS, FAILS)


def test_short_connections_of_strangers_do_not_hide_those_that_stay_open():
    here = settled()
    assert not here.pass_seconds(60, (5000, 5), WORKS, WORKS, WORKS)


def test_where_little_is_open_nothing_is_told():
    here = History()
    here.pass_seconds(60, *[(10, 0)] * 4)
    here.pass_seconds(30, *[(10, 1)] * 4)
    assert not here.pass_seconds(30, (70, 0), (1, 0), (1, 1), (1, 0))


def test_totals_that_begin_again_are_no_news():
    here = settled()
    here.ended = dict.fromkeys(REFS, 0)
    here.looks = dict.fromkeys(REFS, Looks())
    assert not here.pass_seconds(5, WORKS, WORKS, WORKS, WORKS)


def test_only_where_idle_looks_attractive_and_others_are_there():
    assert haste.judges(SERVICE)
    assert not haste.judges(replace(SERVICE, scheduler=Scheduler.MAGLEV))
    assert not haste.judges(replace(SERVICE, backends=SERVICE.backends[:1]))


@pytest.mark.parametrize(("ends", "lasts_s"), [(10, 0.1), (40, 0.05), (5, 0.5), (3, 3.0)])
def test_chance_alone_makes_nobody_hasty(ends: int, lasts_s: float):
    """Where one connection is open in the mean, at times none is, and now and then for seconds."""
    draw = np.random.default_rng(7)
    here = History()
    for _ in range(3000):
        readings = {}
        for ref in REFS:
            here.ended[ref] += int(draw.poisson(ends))
            # One that lasts longer than the time between two looks is there at both.
            kept = max(1, round(lasts_s / 0.2))
            seen = sum(int(draw.poisson(ends * lasts_s)) * min(kept, 5 - n)
                       for n in range(0, 5, kept))  # fmt: skip
            looks = here.looks[ref]
            here.looks[ref] = Looks(looks.times + 5, looks.seen + seen)
            readings[ref] = Reading(here.now, here.looks[ref], here.ended[ref])
        here.paces = haste.follow(SERVICE, here.paces, readings, frozenset(REFS))
        assert not here.hasty
        here.now += 1


SECONDS = st.tuples(st.integers(0, 100), st.integers(0, 50))


@given(st.lists(SECONDS, min_size=1, max_size=60))
def test_backends_that_are_alike_are_never_hasty(seconds: list[Second]):
    here = History()
    for second in seconds:
        assert not here.pass_seconds(1, *[second] * 4)


@given(st.lists(st.lists(SECONDS, min_size=4, max_size=4), min_size=1, max_size=60))
def test_not_all_are_hasty_whatever_comes(seconds: list[list[Second]]):
    here = settled()
    for second in seconds:
        before = here.hasty
        hasty = here.pass_seconds(1, *second)
        # In a second only backends with far fewer open connections than the others become so.
        assert len(hasty - before) < len(REFS)
