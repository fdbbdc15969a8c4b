"""The simulation of detection finds a strong attack, and blocks nobody else."""

from __future__ import annotations

import pytest

from bench import threats
from bench.threats import Attack, Flows, Traffic, attacked, run

SMALL = Traffic("small", 5, 60, gateways=1)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threats, "ATTACK_AT_S", 620.0)
    monkeypatch.setattr(threats, "ATTACK_S", 40.0)


def test_a_strong_attack_is_found_and_a_weak_one_is_not() -> None:
    assert attacked((SMALL, Attack("holds", held=800))) == "6 s"
    assert attacked((SMALL, Attack("holds", held=20))) == "not found"


def test_a_source_that_is_blocked_has_nothing_anymore() -> None:
    strong = Attack("floods", per_s=300)
    flows = Flows.joined(SMALL.flows(700), strong.flows(100))
    found = run(flows, 700)
    assert {*found.blocked_s} == {100}
    assert found.blocked_s[100] <= found.named_s[100] + threats.LOOK_S


def test_flows_are_in_the_order_in_which_they_begin() -> None:
    flows = Flows.joined(SMALL.flows(30), Attack("holds", held=5).flows(100))
    assert (flows.start_s[1:] >= flows.start_s[:-1]).all()
    assert (flows.source == 100).sum() == 5
