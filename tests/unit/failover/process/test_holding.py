"""The VIPs of a router, where putting them on and taking them off fails at first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest

from agent.failover.host.addresses import Outcome
from agent.failover.process import holding as module
from agent.failover.process.holding import Holding
from agent.model import Address
from tests.unit.failover.process.fakes import ROUTER, VIP

FAILED = Outcome(failed=((VIP, "no memory"),))


class Addresses:
    def __init__(self, interface: str) -> None:
        self.outcomes: list[Outcome] = []
        self.asked: list[str] = []
        self.turn = 0

    def take(self, vips: Iterable[Address]) -> Outcome:
        self.turn += 1
        return self._do("take")

    def drop(self, vips: Iterable[Address]) -> Outcome:
        self.turn += 1
        return self._do("drop")

    def again(self, turn: int, on: bool, vips: Iterable[Address]) -> Outcome:
        assert turn == self.turn
        return self._do("take" if on else "drop")

    def _do(self, what: str) -> Outcome:
        self.asked.append(what)
        return self.outcomes.pop(0) if self.outcomes else Outcome()

    def close(self) -> None:
        pass


class Announcer:
    def __init__(self, *_: object) -> None:
        self.sent = 0
        self.problem = "the network is down"

    def start(self) -> None:
        self.sent += 1

    def burst(self) -> None:
        self.sent += 1

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def at_once(work: Callable[[], Outcome], done: Callable[[Outcome], None]) -> None:
    done(work())


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Holding, Addresses]]:
    monkeypatch.setattr(module, "Announcer", Announcer)
    made = Addresses("eth0")
    monkeypatch.setattr(module, "Addresses", lambda interface: made)
    holding = Holding(ROUTER)
    yield holding, made
    holding.close()


def test_vips_that_did_not_go_are_taken_off_once_more(held: tuple[Holding, Addresses]) -> None:
    holding, addresses = held
    holding.take()
    addresses.outcomes = [FAILED, FAILED, Outcome(changed=(VIP,))]
    assert not holding.drop()
    holding.again(at_once)
    assert "no memory" in holding.problem
    holding.again(at_once)
    holding.again(at_once)
    assert addresses.asked == ["take", "drop", "drop", "drop"]
    assert holding.problem == ""


def test_vips_that_were_not_put_on_are_announced_when_they_are(
    held: tuple[Holding, Addresses],
) -> None:
    holding, addresses = held
    addresses.outcomes = [FAILED, FAILED, Outcome(changed=(VIP,))]
    holding.take()
    announced = holding.announced
    holding.again(at_once)
    assert (holding.announced, "no memory" in holding.problem) == (announced, True)
    holding.again(at_once)
    assert (holding.announced, holding.problem) == (announced + 1, "")
    holding.again(at_once)
    assert addresses.asked == ["take"] * 3


def test_announcements_are_a_problem_of_who_has_the_vips(held: tuple[Holding, Addresses]) -> None:
    holding, _ = held
    quiet = (("addresses", ""), ("announcements", ""))
    assert holding.problems == quiet
    holding.take()
    assert holding.problems == (("addresses", ""), ("announcements", "the network is down"))
    holding.drop()
    assert holding.problems == quiet


def test_a_retry_is_left_to_the_kernel_and_counts_no_more_after_something_else(
    held: tuple[Holding, Addresses],
) -> None:
    """Nothing waits for it; and a node that is backup by then does not announce."""
    holding, addresses = held
    addresses.outcomes = [FAILED]
    holding.take()
    waiting: list[tuple[Callable[[], Outcome], Callable[[Outcome], None]]] = []
    for _ in range(3):
        holding.again(lambda work, done: waiting.append((work, done)))
    ((_, done),) = waiting
    assert addresses.asked == ["take"]
    holding.drop()
    announced = holding.announced
    done(Outcome(changed=(VIP,)))
    assert holding.announced == announced
