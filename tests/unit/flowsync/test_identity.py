"""A peer's ids are read as ours, by what they stand for."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from agent.flowsync.identity import Identities, from_plain, id_map, to_plain
from agent.state.tables import ServiceSlot

WEB = ServiceSlot(ip_address("203.0.113.10"), 80, 6)
DNS = ServiceSlot(ip_address("2001:db8::10"), 53, 17)
A, B = ip_address("10.1.0.1"), ip_address("fd00::1")
SOURCE, OTHER = ip_address("10.0.0.5"), ip_address("10.0.0.6")
THEIRS = Identities("x", 4096, {1: WEB, 2: DNS}, {1: (1, A, 0), 2: (1, A, 8080), 3: (2, B, 0)},
                    {0: SOURCE, 1: OTHER})  # fmt: skip
OURS = Identities("y", 8192, {7: WEB, 9: DNS}, {30: (9, B, 0), 10: (7, A, 8080)}, {1: SOURCE})


def test_ids_of_the_same_are_found_and_of_nothing_are_none():
    found = id_map(THEIRS, OURS)
    assert found.services[[0, 1, 2, 3]].tolist() == [0, 7, 9, 0]
    assert found.backends[[0, 1, 2, 3, 4]].tolist() == [0, 0, 10, 30, 0]
    assert found.nat_sources[[0, 1, 2]].tolist() == [1, -1, -1]
    assert (found.tables, found.slots) == ("x", 4096)


def test_a_backend_of_a_service_that_is_not_here_is_nobody():
    alone = Identities("y", 8192, {}, {5: (0, A, 0)}, {})
    assert not id_map(THEIRS, alone).backends.any()


def test_identities_survive_the_wire():
    assert from_plain(json.loads(json.dumps(to_plain(THEIRS)))) == THEIRS


@pytest.mark.parametrize(
    "damage",
    [
        {"slots": -1},
        {"slots": 2**40},
        {"slots": "many"},
        {"services": [[1, "no address", 80, 6]]},
        {"services": [[65_536, "203.0.113.10", 80, 6]]},
        {"backends": [[1, 1, "10.0.0.1"]]},
        {"backends": [[1, True, "10.0.0.1", 0]]},
        {"nat_sources": [[256, "10.0.0.1"]]},
        {"nat_sources": None},
    ],
)
def test_what_is_no_identities_is_refused(damage: dict[str, object]):
    with pytest.raises(ValueError, match=r".+"):
        from_plain(to_plain(THEIRS) | damage)


@pytest.mark.parametrize("plain", [None, [], {}, 5])
def test_nor_is_anything_else(plain: object):
    with pytest.raises(ValueError, match=r".+"):
        from_plain(plain)
