"""The network of a comparison: a second run does not touch the first one's."""

from __future__ import annotations

import pytest

from bench.ai import fleet, setups
from bench.peers import wiring
from bench.peers.wiring import Cores, PeersError, Wired
from lbctl.lab import build


def test_a_second_run_is_refused_and_removes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "check_machine", lambda: None)
    monkeypatch.setattr(build, "leftovers", lambda name: [f"{name}-client"])
    monkeypatch.setattr(build, "down", pytest.fail)
    made = Wired(setups.setup(fleet.servers(2), (100, 55), 10.0).lab, Cores(0, frozenset({0})))
    with pytest.raises(PeersError, match="already exists") as refused, wiring.wired(made, print):
        pass
    assert "`lbctl lab --name bench-ai down`" in refused.value.remedy
