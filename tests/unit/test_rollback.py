"""What going back to a former release costs is said before it is done."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from agent.dataplane import contents
from agent.errors import DataplaneError
from agent.model import Forward, Protocol, Scheduler
from agent.rollback import Release, cost, count, release_at
from agent.state.tables import BackendEntry, ServiceEntry, ServiceSlot
from tests.unit.dataplane.fakes import FakeTables

OLD, OWN, LATER = (Release(2, carries=False), Release(4, carries=True), Release(3, carries=True))
FLOWS = Counter(
    {
        (Forward.FULLNAT, Scheduler.LEAST_LOAD): 40,
        (Forward.NAT, Scheduler.MAGLEV): 2,
        (Forward.DSR, Scheduler.LEAST_CONN): 10,
        (Forward.IPIP, Scheduler.MAGLEV): 5,
    }
)


def checkout(folder: Path, abi: str, *, carries: bool) -> Path:
    code = folder / "agent" / "dataplane"
    code.mkdir(parents=True)
    (code / "abi.py").write_text(f'"""x"""\n{abi}\n')
    if carries:
        (code / "old.py").touch()
    return folder


def test_a_release_is_known_by_its_files(tmp_path: Path) -> None:
    one = checkout(tmp_path / "one", "ABI_VERSION = 2", carries=False)
    assert release_at(one) == OLD
    two = checkout(tmp_path / "two", "ABI_VERSION = 3", carries=True)
    assert release_at(two) == LATER
    here = release_at(Path(__file__).resolve().parents[2])
    assert here.carries


@pytest.mark.parametrize("text", ["", "ABI_VERSION = x"])
def test_what_is_no_release_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataplaneError, match="no release"):
        release_at(checkout(tmp_path / "x", text, carries=True))
    with pytest.raises(DataplaneError, match="no release"):
        release_at(tmp_path / "nothing")


def test_without_the_tables_nat_is_reset_and_what_was_drawn_may_be() -> None:
    found = cost(OLD, FLOWS, running=4)
    assert (found.reset, found.moved, found.is_free) == (42, 10, False)
    assert len(found.lines) == len(FLOWS)
    assert any(line.startswith("40 of fullnat with least-load are reset") for line in found.lines)
    assert any(line.startswith("5 of ipip with maglev stay") for line in found.lines)


@pytest.mark.parametrize("release", [OWN, LATER, replace(OLD, abi=4)])
def test_the_same_tables_and_those_that_are_carried_over_cost_nothing(release: Release) -> None:
    found = cost(release, FLOWS, running=4)
    assert found.is_free
    assert "57 open connections go on" in found.lines[0]


def test_without_connections_every_way_is_free() -> None:
    assert cost(OLD, {}, running=4).is_free


def test_open_flows_are_counted_by_how_they_are_forwarded_and_scheduled() -> None:
    tables = FakeTables()
    for ident, forward, scheduler in (
        (1, Forward.NAT, Scheduler.MAGLEV),
        (2, Forward.DSR, Scheduler.LEAST_CONN),
    ):
        slot = ServiceSlot(ip_address(f"10.0.0.{ident}"), 80, Protocol.TCP.number)
        entry = ServiceEntry(ident, 1, forward, scheduler, pick_seed=0, ring=b"")
        tables.put_service(slot, contents.service_row(entry, 0))
        for backend in (2 * ident, 2 * ident + 1):
            address, mac = ip_address("10.1.0.1"), "02:00:00:00:00:01"
            limits = (1,) * 8
            entry = BackendEntry(ident, address, True, True, forward, 0, mac, mac, 0, limits, None)
            tables.backends[backend] = contents.backend_row(entry)[0]
    live = np.zeros(len(tables.backends), dtype=np.int64)
    live[[2, 3, 4, 9]] = 5, 6, 7, 100
    assert count(tables, live) == {
        (Forward.NAT, Scheduler.MAGLEV): 11,
        (Forward.DSR, Scheduler.LEAST_CONN): 7,
    }
