"""Which sources are blocked: what can be meant, how long it holds, and what is kept of it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from agent.errors import RequestError
from agent.state import blocks
from agent.state.blocks import (
    Block,
    active,
    blocked,
    from_json,
    holding,
    left,
    merged,
    shown,
    to_json,
    unblocked,
)

NOW = 1_000_000.0
HOST, NET = ip_network("198.51.100.7/32"), ip_network("198.51.100.0/24")
SIX = ip_network("2001:db8:7::/64")


def block(prefix=HOST, for_s: float = 600.0, why: str = "scans") -> Block:
    return Block(prefix, why, NOW, NOW + for_s)


def test_a_block_that_comes_again_has_its_new_time():
    found = blocked(blocked({}, [block()]), [block(for_s=60.0, why="still")])
    assert list(found) == [HOST]
    assert (found[HOST].until, found[HOST].why) == (NOW + 60.0, "still")


def test_a_block_ends_by_itself():
    found = blocked({}, [block(for_s=1.0), block(NET)])
    assert left(found, NOW) == found
    assert list(left(found, NOW + 1.0)) == [NET]
    assert left(found, NOW + 600.0) == {}


@pytest.mark.parametrize("prefix", ["0.0.0.0/0", "10.0.0.0/7", "::/0", "2000::/18"])
def test_what_is_more_likely_a_slip_has_to_be_confirmed(prefix: str):
    wide = block(ip_network(prefix))
    with pytest.raises(RequestError, match="very large"):
        blocked({}, [wide])
    assert blocked({}, [wide], confirmed=True) == {wide.prefix: wide}


@pytest.mark.parametrize(
    "for_s", [0.0, 0.5, -1.0, blocks.LONGEST_S + 1, float("inf"), float("nan")]
)
def test_no_block_is_for_no_time_or_for_ever(for_s: float):
    with pytest.raises(RequestError, match="not a valid duration"):
        blocked({}, [block(for_s=for_s)])


def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "MOST", 2)
    full = blocked({}, [block(), block(NET)])
    with pytest.raises(RequestError, match="no room"):
        blocked(full, [block(SIX)])
    assert blocked(full, [block(NET, for_s=5.0)])[NET].until == NOW + 5.0


def test_unblocking_names_the_block_that_holds_an_address():
    found = blocked({}, [block(NET), block(SIX)])
    assert list(active(unblocked(found, [SIX], NOW))) == [NET]
    with pytest.raises(RequestError) as refused:
        unblocked(found, [HOST], NOW)
    assert "198.51.100.0/24" in refused.value.remedy
    with pytest.raises(RequestError) as refused:
        unblocked(found, [ip_network("192.0.2.1/32")], NOW)
    assert refused.value.remedy == "lbctl guard list"


def test_the_narrowest_block_holds_an_address():
    found = blocked({}, [block(NET), block()])
    assert holding(found, HOST) == block()
    assert holding(found, ip_network("198.51.100.8/32")) == block(NET)
    assert holding(found, SIX) is None


def test_blocks_are_kept_as_json():
    found = blocked({}, [block(), block(SIX, why="ü")])
    assert from_json(to_json(found)) == found  # type: ignore[arg-type]
    assert [row["prefix"] for row in to_json(found)] == ["198.51.100.7", "2001:db8:7::/64"]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prefix": "x", "why": "", "since": 0, "until": 1},
        {"prefix": "10.0.0.0/8", "why": "", "since": "0", "until": 1},
    ],
)
def test_what_is_no_block_is_refused(row):
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json([row])


def test_a_host_is_shown_as_an_address():
    assert (shown(HOST), shown(NET), shown(SIX)) == (
        "198.51.100.7", "198.51.100.0/24", "2001:db8:7::/64",
    )  # fmt: skip


def test_what_is_undone_is_remembered_until_its_time_would_have_been_over():
    undone = unblocked(blocked({}, [block()]), [HOST], NOW + 10)
    assert active(undone) == {}
    assert left(undone, NOW + 599) == undone
    assert left(undone, NOW + 600) == {}
    assert from_json(to_json(undone)) == undone  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="not blocked"):
        unblocked(undone, [HOST], NOW + 20)
    again = blocked(undone, [Block(HOST, "again", NOW + 30, NOW + 40)])
    assert active(again) == again
    assert holding(undone, HOST) is None


def test_of_two_balancers_the_newest_word_counts_whatever_their_clocks_say():
    here = blocked({}, [block()])
    assert merged({}, here) == here
    assert merged(here, {}) == here
    # Undone at the other one, whose clock is an hour behind.
    there = unblocked(merged({}, here), [HOST], NOW - 3600)
    assert merged(here, there) == there
    assert merged(there, here) == there
    # And blocked here again before that was heard.
    again = blocked(here, [Block(HOST, "again", NOW + 1, NOW + 601)])
    assert active(merged(there, again)) == active(merged(again, there)) == again


def test_what_is_told_fills_no_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "MOST", 2)
    full = blocked({}, [block(), block(NET)])
    told = {SIX: block(SIX), NET: Block(NET, "newer", NOW + 1, NOW + 2)}
    found = merged(full, told)
    assert list(found) == [HOST, NET]
    assert found[NET].why == "newer"
