"""The VIPs of a router, where putting them on and taking them off fails at first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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

    def take(self, vips: Iterable[Address]) -> Outcome:
        return self._do("take")

    def drop(self, vips: Iterable[Address]) -> Outcome:
        return self._do("drop")

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
    holding.again()
    assert "no memory" in holding.problem
    holding.again()
    holding.again()
    assert addresses.asked == ["take", "drop", "drop", "drop"]
    assert holding.problem == ""


def test_vips_that_were_not_put_on_are_announced_when_they_are(
    held: tuple[Holding, Addresses],
) -> None:
    holding, addresses = held
    addresses.outcomes = [FAILED, FAILED, Outcome(changed=(VIP,))]
    holding.take()
    announced = holding.announced
    holding.again()
    assert (holding.announced, "no memory" in holding.problem) == (announced, True)
    holding.again()
    assert (holding.announced, holding.problem) == (announced + 1, "")
    holding.again()
    assert addresses.asked == ["take"] * 3


def test_announcements_are_a_problem_of_who_has_the_vips(held: tuple[Holding, Addresses]) -> None:
    holding, _ = held
    quiet = (("addresses", ""), ("announcements", ""))
    assert holding.problems == quiet
    holding.take()
    assert holding.problems == (("addresses", ""), ("announcements", "the network is down"))
    holding.drop()
    assert holding.problems == quiet
