"""Who knows what."""

from __future__ import annotations

import numpy as np

from agent.flowsync.ledger import Ledger


def filled() -> Ledger:
    ledger = Ledger(8)
    ledger.meet("a", 4)
    for known in (ledger.sent, ledger.received, ledger.holder, ledger.place):
        known[1] = 5
    return ledger


def test_a_peer_that_comes_back_with_its_tables_is_known():
    ledger = filled()
    ledger.meet("a", 4)
    assert [int(known[1]) for known in (ledger.sent, ledger.received, ledger.place)] == [5, 5, 5]


def test_one_with_new_tables_knows_nothing_and_owns_nothing_here():
    for tables, slots in (("b", 4), ("b", 8)):
        ledger = filled()
        ledger.meet(tables, slots)
        assert len(ledger.place) == slots
        for known in (ledger.sent, ledger.received, ledger.holder, ledger.place):
            assert not known.any()


def test_a_flow_is_untouched_while_its_word_is_as_it_was_told():
    words = np.array([0, 5, 6], dtype=np.uint64)
    slots = np.array([0, 1, 1])
    assert filled().is_untouched(words, slots).tolist() == [False, True, False]
