"""What outlives the agent of a ledger, in the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from agent.dataplane import pins
from agent.dataplane.pins import Pins
from agent.flowsync.kept import Kept, forget_all_but
from tests.packet import harness

PEERS = (ip_address("10.0.0.2"), ip_address("fd00::2"))


@pytest.fixture
def mine() -> Iterator[Pins]:
    harness.require_root()
    pins.ensure_bpffs()
    made = pins.pins_of(f"st-kept-{os.getpid()}")
    made.folder.mkdir(parents=True)
    yield made
    pins.remove(made)


def test_the_next_agent_finds_what_the_last_one_knew_of_each_peer(mine: Pins) -> None:
    for number, peer in enumerate(PEERS, start=1):
        kept = Kept.of(mine, peer, 4096)
        assert (kept.tables, kept.received.any(), kept.holder.any()) == ("", False, False)
        kept.meet(f"tables {number}")
        kept.received[[0, 4095]] = 2**63 + number
        kept.holder[[0, 4095]] = 2**31 + number
    for number, peer in enumerate(PEERS, start=1):
        again = Kept.of(mine, peer, 4096)
        assert again.tables == f"tables {number}"
        assert list(again.received[[0, 1, 4095]]) == [2**63 + number, 0, 2**63 + number]
        assert list(again.holder[[0, 1, 4095]]) == [2**31 + number, 0, 2**31 + number]


def test_other_tables_of_the_peer_take_the_place_of_what_was_known(mine: Pins) -> None:
    kept = Kept.of(mine, PEERS[0], 4096)
    kept.meet("a much longer name of tables")
    kept.received[7] = kept.holder[7] = 7
    kept.meet("others")
    assert (kept.tables, kept.received.any(), kept.holder.any()) == ("others", False, False)


def test_it_goes_with_the_tables(mine: Pins) -> None:
    Kept.of(mine, PEERS[0], 4096)
    pins.remove(mine)
    assert not mine.folder.exists()


def test_what_is_kept_of_who_is_no_peer_any_more_goes(mine: Pins) -> None:
    for peer in PEERS:
        Kept.of(mine, peer, 4096).meet("tables")
    (mine.folder / "flows").mkdir()  # not a peer's
    forget_all_but(mine, PEERS)
    assert len(list(mine.folder.iterdir())) == 2 * len(PEERS) + 1
    forget_all_but(mine, PEERS[1:])
    (mine.folder / "flows").rmdir()
    assert len(list(mine.folder.iterdir())) == 2
    assert Kept.of(mine, PEERS[1], 4096).tables == "tables"
    assert Kept.of(mine, PEERS[0], 4096).tables == "", "it would be met anew"
    forget_all_but(mine, ())
    assert list(mine.folder.iterdir()) == []
