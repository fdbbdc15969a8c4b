"""Which backends are ejected, and when they are put back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Backend, BackendRef, Outlier, Protocol, Service
from agent.state import outliers
from agent.state.outliers import Tally, Watch, follow, recovered
from tests.unit.state.world import A, B, web

GOOD = Tally(opened=20, established=20, answers=20)
BAD = Tally(opened=20, established=20, answers=20, errors=20)
CUT = Tally(opened=20, established=20, hangups=20)
HOLE = Tally(opened=20)
IDLE = Tally()


def servers(count: int, outlier: Outlier | None = None) -> Service:
    backends = [Backend(f"s{n}", ip_address(f"10.0.1.{n + 1}")) for n in range(count)]
    return web(*backends, outlier=outlier or Outlier())


@dataclass
class History:
    """A service second by second."""

    service: Service
    now: float = 100.0
    totals: dict[BackendRef, Tally] = field(default_factory=dict)
    watches: dict[BackendRef, Watch] = field(default_factory=dict)
    out: frozenset[str] = frozenset()
    flooded: bool = False

    def __post_init__(self) -> None:
        self.pass_seconds(1, *[IDLE] * len(self.service.backends))

    def pass_seconds(self, seconds: int, *more: Tally) -> set[str]:
        """In each of them so much more at each backend; ejected ones get nothing."""
        for _ in range(seconds):
            for backend, tally in zip(self.service.backends, more, strict=True):
                ref = BackendRef(self.service.name, backend.name)
                gets = IDLE if backend.name in self.ejected | self.out else tally
                self.totals[ref] = self.totals.get(ref, IDLE) + gets
            usable = frozenset(
                ref for ref in self.totals if ref.backend not in self.ejected | self.out
            )
            self.watches = follow(
                self.service, self.watches, self.totals, usable, self.now, flooded=self.flooded
            )
            self.now += 1
        return self.ejected

    @property
    def ejected(self) -> set[str]:
        return {ref.backend for ref, watch in self.watches.items() if watch.ejected}

    def watch(self, name: str) -> Watch:
        return self.watches[BackendRef(self.service.name, name)]


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        (BAD, "20 of 20 requests failed with status 429 or 5xx"),
        (CUT, "20 of 20 requests failed with no answer"),
        (Tally(20, 20, answers=15, errors=10, hangups=5),
         "15 of 20 requests failed: 10 with status 429 or 5xx, 5 with no answer"),
        (HOLE, "none of 20 connections were established"),
        (replace(HOLE, established=1), "3 of 20 connections were established"),
    ],
)  # fmt: skip
def test_who_fails_where_others_do_not_is_ejected_within_seconds(fails: Tally, why: str):
    here = History(servers(4))
    assert not here.pass_seconds(30, GOOD, GOOD, GOOD, GOOD)
    assert here.pass_seconds(4, fails, GOOD, GOOD, GOOD) == {"s0"}
    assert why.split()[-1] in here.watch("s0").why
    assert ("VIP on its lo?" in here.watch("s0").why) is (not fails.answers and not fails.hangups)
    assert here.watch("s0").ejections == 1


def test_requests_that_fail_are_told_at_the_next_reading_and_in_words():
    here = History(servers(4))
    here.pass_seconds(30, GOOD, GOOD, GOOD, GOOD)
    assert here.pass_seconds(1, BAD, GOOD, GOOD, GOOD) == {"s0"}
    assert here.watch("s0").why == "20 of 20 requests failed with status 429 or 5xx"


def test_few_requests_are_added_up():
    here, slow = History(servers(3)), Tally(1, 1, 1)
    assert not here.pass_seconds(9, replace(slow, errors=1), slow, slow)
    assert here.pass_seconds(1, replace(slow, errors=1), slow, slow) == {"s0"}


def test_what_is_older_than_the_window_does_not_count():
    here = History(servers(3, Outlier(window_s=5.0)))
    once = Tally(1, 1, 1, errors=1)
    assert not here.pass_seconds(60, once, GOOD, GOOD)


@pytest.mark.parametrize("fails", [BAD, CUT, HOLE])
def test_what_ails_all_ejects_nobody(fails: Tally):
    here = History(servers(4))
    here.pass_seconds(10, GOOD, GOOD, GOOD, GOOD)
    assert not here.pass_seconds(60, fails, fails, fails, fails)


@pytest.mark.parametrize("late", [IDLE, Tally(opened=3)])
def test_the_end_of_what_ailed_all_ejects_nobody_that_is_reached_a_little_later(late: Tally):
    """Clients could not hear the VIP's answers; two backends are reached a second before the
    third.
    """
    here = History(servers(3))
    assert not here.pass_seconds(20, HOLE, HOLE, HOLE)
    assert not here.pass_seconds(2, GOOD, GOOD, late)
    assert not here.pass_seconds(20, GOOD, GOOD, GOOD)


def test_who_goes_on_failing_when_the_others_are_back_is_ejected_within_seconds():
    here = History(servers(3))
    here.pass_seconds(20, HOLE, HOLE, HOLE)
    assert here.pass_seconds(6, GOOD, GOOD, HOLE) == {"s2"}


def test_one_alone_is_never_ejected_nor_the_last_of_two():
    here = History(servers(2))
    assert here.pass_seconds(3, BAD, GOOD) == {"s0"}
    assert here.pass_seconds(20, BAD, BAD) == {"s0"}
    here = History(servers(3))
    here.out = frozenset({"s1", "s2"})
    assert not here.pass_seconds(20, BAD, GOOD, GOOD)


@pytest.mark.parametrize(
    ("count", "share", "at_most"),
    [(10, 0.3, 3), (10, 0.0, 0), (4, 0.3, 1), (4, 0.5, 2), (2, 0.1, 1)],
)
def test_no_more_than_a_share_is_ejected_the_worst_first(count: int, share: float, at_most: int):
    here = History(servers(count, Outlier(max_ejected=share)))
    worse = [replace(GOOD, errors=20 - n) if n < 5 else GOOD for n in range(count)]
    many = [one if n < count // 2 else GOOD for n, one in enumerate(worse)]
    ejected = here.pass_seconds(20, *many)
    assert ejected == {f"s{n}" for n in range(at_most)}


def test_it_is_put_back_and_longer_ejected_each_time():
    here = History(servers(4, Outlier(eject_s=30.0)))
    lasted = []
    for _ in range(12):
        while not here.ejected:
            here.pass_seconds(1, BAD, GOOD, GOOD, GOOD)
        before = here.now
        while here.ejected:
            here.pass_seconds(1, BAD, GOOD, GOOD, GOOD)
        lasted.append(round(here.now - before, -1))
    assert lasted[:3] == [30, 60, 90]
    assert lasted[-1] == lasted[-2] == 300
    here.pass_seconds(400, GOOD, GOOD, GOOD, GOOD)
    assert not here.ejected
    assert here.watch("s0").times == 0


def test_what_it_did_before_an_ejection_is_not_held_against_it():
    here = History(servers(4))
    assert here.pass_seconds(2, BAD, GOOD, GOOD, GOOD)
    here.pass_seconds(31, IDLE, GOOD, GOOD, GOOD)
    assert not here.pass_seconds(30, GOOD, GOOD, GOOD, GOOD)


def test_connections_of_strangers_do_not_eject_one_that_serves_its_clients():
    """Who knows to which backend he comes begins thousands in vain there: it goes on serving."""
    here = History(servers(4))
    under_attack = replace(GOOD, opened=5000)
    assert not here.pass_seconds(60, under_attack, GOOD, GOOD, GOOD)


def test_a_flood_is_no_reason():
    here = History(servers(4))
    here.flooded = True
    assert not here.pass_seconds(60, HOLE, GOOD, GOOD, GOOD)
    here.flooded = False
    assert here.pass_seconds(5, HOLE, GOOD, GOOD, GOOD) == {"s0"}


def test_handshakes_have_time_to_end():
    """Connections that began this moment, all at once, are none that fail."""
    here = History(servers(3))
    here.pass_seconds(10, IDLE, GOOD, GOOD)
    here.pass_seconds(1, Tally(opened=500), GOOD, GOOD)
    assert not here.pass_seconds(1, Tally(established=500), GOOD, GOOD)
    assert not here.pass_seconds(30, IDLE, GOOD, GOOD)


def test_nobody_knows_where_the_others_have_no_clients():
    here = History(servers(3))
    assert not here.pass_seconds(60, HOLE, IDLE, IDLE)
    assert here.pass_seconds(2, BAD, IDLE, IDLE) == {"s0"}


def test_totals_that_begin_again_are_nothing_new():
    here = History(servers(3))
    here.pass_seconds(10, GOOD, GOOD, GOOD)
    here.totals = {ref: Tally(errors=3) for ref in here.totals}
    assert not here.pass_seconds(5, GOOD, GOOD, GOOD)


def test_only_tcp_with_several_backends_is_judged():
    assert outliers.judges(web(A, B))
    assert not outliers.judges(web(A))
    assert not outliers.judges(web(A, B, outlier=Outlier(eject_s=0)))
    udp = replace(web(A, B), key=replace(web().key, protocol=Protocol.UDP))
    assert not outliers.judges(udp)


TALLIES = st.builds(
    lambda opened, lost, answers, errors, hangups: Tally(
        opened, max(opened - lost, 0), answers, min(errors, answers), hangups
    ),
    *[st.integers(0, 50)] * 5,
)


@given(
    st.integers(2, 6).flatmap(
        lambda n: st.lists(st.lists(TALLIES, min_size=n, max_size=n), min_size=1, max_size=40)
    ),
    st.floats(0, 1),
)
def test_whatever_comes_one_is_left_and_no_more_than_the_share_is_out(seconds, share: float):
    count = len(seconds[0])
    here = History(servers(count, Outlier(eject_s=5.0, max_ejected=share)))
    for second in seconds:
        ejected = here.pass_seconds(1, *second)
        assert len(ejected) <= outliers.most(here.service.outlier, count)
        assert len(ejected) < count


@given(st.lists(TALLIES, min_size=1, max_size=40), st.integers(2, 6))
def test_backends_that_are_alike_are_all_left(seconds, count: int):
    here = History(servers(count))
    for second in seconds:
        assert not here.pass_seconds(1, *[second] * count)


def test_who_was_down_and_is_well_again_is_put_back_at_once():
    here = History(servers(4))
    assert here.pass_seconds(2, BAD, GOOD, GOOD, GOOD) == {"s0"}
    ref = BackendRef(here.service.name, "s0")
    here.watches[ref] = recovered(here.watches[ref])
    assert not here.pass_seconds(10, GOOD, GOOD, GOOD, GOOD)
    # If it fails its clients all the same, it is out again, for longer.
    assert here.pass_seconds(2, BAD, GOOD, GOOD, GOOD) == {"s0"}
    assert here.watch("s0").times == 2


def test_what_clients_met_while_a_server_was_dead_does_not_eject_it_when_it_is_back():
    """It was restarted in seconds: its check noticed, and so did clients before."""
    here = History(servers(3))
    ref = BackendRef(here.service.name, "s0")
    for forgets in (True, False):
        assert not here.pass_seconds(20, GOOD, GOOD, GOOD)
        assert not here.pass_seconds(1, HOLE, GOOD, GOOD)
        here.out = frozenset({"s0"})  # its check fails
        assert not here.pass_seconds(3, IDLE, GOOD, GOOD)
        here.out = frozenset()
        if forgets:
            here.watches[ref] = recovered(here.watches[ref])
        assert (here.pass_seconds(1, IDLE, GOOD, GOOD) == set()) is forgets


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_another_server_of_that_name_begins_anew(gap: int):
    """It had an address of its own, and its totals began at 0 while it was being checked; for two
    seconds it seemed to establish nothing of what the last one had been given.
    """
    here = History(servers(2))
    here.pass_seconds(10, GOOD, GOOD)
    here.totals[BackendRef("web", "s0")] = IDLE
    here.out = frozenset({"s0"})
    here.pass_seconds(gap, IDLE, GOOD)
    here.out = frozenset()
    for _ in range(20):
        assert here.pass_seconds(1, GOOD, GOOD) == set()
    assert here.pass_seconds(10, HOLE, GOOD) == {"s0"}, "it is watched as the others are"
