"""Which problems with other nodes are shown, and which are logged."""

from __future__ import annotations

from ipaddress import ip_address

from agent.failover.process.ledger import MAX_PROBLEMS, Ledger
from agent.failover.vrrp.compare import Mismatch


def mismatch(text: str = "other VIPs", kind: str = "vips", source: str = "10.0.0.2") -> Mismatch:
    return Mismatch(kind, text, ip_address(source))


def test_a_problem_is_logged_once_while_it_comes_with_every_advert() -> None:
    ledger = Ledger(interval_s=1.0)
    assert ledger.note([mismatch()], 100.0) == [mismatch()]
    assert ledger.note([mismatch()], 101.0) == []
    (shown,) = ledger.current(101.5)
    assert (shown.kind, shown.since, shown.last, shown.count) == ("vips", 100.0, 101.0, 2)


def test_a_changed_text_is_logged_again_but_not_with_every_change() -> None:
    ledger = Ledger(interval_s=1.0)
    ledger.note([mismatch("a")], 100.0)
    assert ledger.note([mismatch("b")], 101.0) == []
    assert ledger.note([mismatch("b")], 111.0) == [mismatch("b")]
    assert ledger.note([mismatch("b")], 112.0) == []
    assert ledger.current(112.0)[0].text == "b"


def test_a_problem_that_does_not_come_again_is_forgotten_after_some_intervals() -> None:
    ledger = Ledger(interval_s=1.0)
    ledger.note([mismatch()], 100.0)
    assert ledger.current(110.0)
    assert ledger.current(110.1) == ()
    assert ledger.note([mismatch()], 120.0) == [mismatch()]


def test_one_of_short_intervals_stays_long_enough_to_be_seen() -> None:
    ledger = Ledger(interval_s=0.01)
    ledger.note([mismatch()], 100.0)
    assert ledger.current(104.0)


def test_a_clock_that_is_set_back_leaves_no_problem_for_ever() -> None:
    ledger = Ledger(interval_s=1.0)
    ledger.note([mismatch()], 1_000_000.0)
    assert ledger.current(100.0) == ()


def test_forged_sources_are_bounded_in_memory_and_in_lines() -> None:
    ledger = Ledger(interval_s=1.0)
    lines = [ledger.note([mismatch(source=f"10.0.1.{n}")], 100.0) for n in range(200)]
    assert sum(map(len, lines)) == 4
    assert len(ledger.current(100.0)) == MAX_PROBLEMS
    (news,) = ledger.note([mismatch()], 200.0)  # the forged ones are forgotten
    assert news.text == "other VIPs (12 such lines were left out before this one)"
    assert ledger.current(200.0)[0].text == "other VIPs"


def test_sources_that_are_forged_for_an_hour_make_a_few_lines_a_minute() -> None:
    ledger = Ledger(interval_s=1.0)
    lines = 0
    for second in range(3600):
        for n in range(20):
            forged = mismatch(source=f"10.{second % 250}.{n}.1")
            lines += len(ledger.note([forged], 100.0 + second))
    assert lines <= 4 * 61
    assert ledger.note([mismatch(kind="ttl")], 3720.0) == [mismatch(kind="ttl")]
