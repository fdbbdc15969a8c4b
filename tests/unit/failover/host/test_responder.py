"""Who answers for VIPs that the host does not have, where no kernel is needed."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from agent.failover.host.frames import ETH_P_ARP
from agent.failover.host.responder import Responder


class Flood:
    """A socket to which somebody sends faster than it is read."""

    def __init__(self) -> None:
        self.read = 0

    def recvfrom(self, size: int) -> tuple[bytes, tuple[Any, ...]]:
        self.read += 1
        assert self.read < 10_000, "it reads for ever"
        return bytes(60), ("eth0", ETH_P_ARP, 0)


def test_a_flood_of_questions_does_not_keep_the_adverts_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flood, mac = Flood(), bytes(6)
    made = Responder("eth0", [ip_address("10.0.0.10")], mac)
    made._answer(flood)  # type: ignore[arg-type]
    assert flood.read
