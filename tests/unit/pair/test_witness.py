"""What a node says of its virtual routers by flow sync, and whom that vouches for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.failover.model import Authentication, Instance, Method, Mode, Role
from agent.failover.syncstatus import PeerSync
from agent.pair.witness import period_s, vouchers, words
from tests.unit.failover.samples import BACKUP, MASTER, PEER, STATUS

WELL = replace(MASTER, priority=100, configured_priority=100)
WAITING = replace(BACKUP, mode=Mode.NORMAL, priority=100)


def said_by(*routers: Any, leaving: bool = False, at_s: float = 7.0) -> PeerSync:
    told = words(replace(STATUS, routers=routers, leaving=leaving), {"web": Instance("web")})
    return replace(PEER, routers=told, routers_s=at_s)


def test_a_node_says_what_has_to_agree() -> None:
    hmac = Instance("web", authentication=Authentication.HMAC)
    (word,) = words(replace(STATUS, routers=(WELL,)), {"web": hmac})
    assert (word.instance, word.family, word.role, word.priority) == ("web", 6, Role.MASTER, 100)
    assert (word.vrid, word.version, word.interval_s) == (51, 3, 0.1)
    assert (word.authentication, word.well, word.vouched) == ("hmac", True, False)
    other = replace(WELL, vips=("fe80::1", "fd00::10"))
    assert words(replace(STATUS, routers=(other,)), {})[0].vips == word.vips, "link-local ones"
    other = replace(WELL, vips=("fd00::11",))
    assert words(replace(STATUS, routers=(other,)), {})[0].vips != word.vips


@pytest.mark.parametrize(
    ("change", "leaving", "well"),
    [
        ({}, False, True),
        ({"mode": Mode.PROMOTED, "priority": 254}, False, True),
        ({"priority": 50}, False, False),  # something is wrong with it
        ({"mode": Mode.HANDED_OVER, "priority": 1}, False, False),
        ({"role": Role.FAULT}, False, False),
        ({"role": Role.BACKUP}, False, False),
        ({}, True, False),
    ],
)
def test_well_is_a_master_that_says_nothing_against_itself(
    change: dict[str, Any], leaving: bool, well: bool
) -> None:
    peer = said_by(replace(WELL, **change), leaving=leaving)
    assert peer.routers is not None
    assert peer.routers[0].well is well
    backup = replace(WELL, role=Role.BACKUP)
    assert vouchers([backup], [peer]) == ({"web/ipv6": 7.0} if well else {})


def test_the_newest_word_counts_and_only_of_the_same_virtual_router() -> None:
    theirs = replace(WAITING, role=Role.MASTER)
    peers = [said_by(theirs, at_s=3.0), said_by(theirs, at_s=5.0), said_by(WAITING, at_s=9.0), PEER]
    assert vouchers([WAITING], peers) == {"web/ipv4": 5.0}
    for other in (
        replace(theirs, instance="api"),
        replace(theirs, family=6),
        replace(theirs, vips=("10.0.0.10", "10.0.0.11")),
    ):
        assert vouchers([WAITING], [said_by(other)]) == {}


@pytest.mark.parametrize(
    "change", [{"role": Role.MASTER}, {"role": Role.FAULT}, {"method": Method.ANNOUNCE}]
)
def test_nobody_is_vouched_for_where_this_node_is_no_backup(change: dict[str, Any]) -> None:
    own = replace(WAITING, **change)
    assert vouchers([own], [said_by(replace(WAITING, role=Role.MASTER))]) == {}


def test_words_come_in_the_rhythm_of_the_adverts_but_cost_little() -> None:
    def every(*intervals_s: float, most_s: float = 0.5) -> float:
        return period_s((Instance("web", interval_s=each) for each in intervals_s), most_s)

    assert every() == every(1.0) == every(40.0) == 0.5
    assert every(1.0, 0.2) == 0.2
    assert every(0.01) == 0.1
    assert every(*[0.1] * 20) == pytest.approx(0.4)
    assert every(*[0.1] * 60) == 0.5
    assert period_s([Instance("web", Method.ANNOUNCE, interval_s=0.1)], 0.5) == 0.5
