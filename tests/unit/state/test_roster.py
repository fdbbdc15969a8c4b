"""All backends in one order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.model import BackendRef, Config
from agent.state.identities import assign
from agent.state.roster import roster, same_backends
from agent.state.tables import TableContents
from tests.unit.state.world import TABLES, A, B, web

TWO = (
    web(A, B, name="one"),
    web(name="none", vip="203.0.113.11"),
    web(B, name="two", vip="203.0.113.12"),
)
CONFIG = Config("test", "eth0", tables=TABLES, services=TWO)


def test_backends_of_a_service_stand_side_by_side_and_sums_are_by_service():
    ids = assign(CONFIG, TableContents(), frozenset(), lambda: 7)
    known = roster(CONFIG.services, ids)
    assert known.refs == (BackendRef("one", "a"), BackendRef("one", "b"), BackendRef("two", "b"))
    assert known.ids.tolist() == [1, 2, 3]
    assert known.service_ids.tolist() == [1, 2, 3]
    assert known.by_service(np.array([5, 6, 7])).tolist() == [11, 0, 7]
    flags = known.ids > 1
    assert known.those(flags) == [BackendRef("one", "b"), BackendRef("two", "b")]
    assert known.services_of(flags) == {"one", "two"}
    assert known.services_of(known.ids > 9) == frozenset()


def test_another_weight_makes_no_other_backends_and_another_name_or_order_does():
    def changed(*backends) -> Config:
        return replace(CONFIG, services=(web(*backends, name="one"), *TWO[1:]))

    assert same_backends(CONFIG, CONFIG)
    assert same_backends(CONFIG, changed(replace(A, weight=1), B))
    assert not same_backends(CONFIG, changed(replace(A, name="x"), B))
    assert not same_backends(CONFIG, changed(B, A))
    assert not same_backends(CONFIG, changed(A))
    assert not same_backends(CONFIG, replace(CONFIG, services=TWO[:2]))
