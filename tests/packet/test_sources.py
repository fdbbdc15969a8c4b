"""Whom the operator does not want: blocks before the flow is looked up, lists where one begins."""

from __future__ import annotations

import random
from array import array
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from agent.dataplane import abi, contents
from agent.dataplane.abi import GuardTree
from agent.dataplane.explain import explain
from agent.dataplane.sourcetrees import BLOCKS, LISTS, Extent, SourceTrees, gap
from agent.errors import DataplaneError
from agent.model import Forward, GuardMode, Protocol, SynProtection
from agent.state.addresstree import build, prefix_of
from agent.state.queries import FiveTuple
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pieces import framed
from tests.packet.places import PLACES, V4, V6, Place
from tests.packet.wires import Packet

MODES = pytest.mark.parametrize("forward", list(Forward), ids=lambda f: f.value)
NOBODY = "203.0.113.99/32"


def serve(rig: Rig, at: Place, **fields: object) -> None:
    rig.serve(service(backend("a", at.server), vip=at.vip, **fields))


def sent(rig: Rig, at: Place, flags: str | None = "S", **fields: object) -> Verdict:
    return rig.verdict(framed(Packet(at.client, at.vip, flags=flags, **fields).ip))


def said(rig: Rig, at: Place) -> tuple[str, str]:
    """What `lbctl explain` says of a new connection."""
    found = explain(
        rig.view(), FiveTuple(Protocol.TCP, ip_address(at.client), 7, ip_address(at.vip), 80)
    )
    return found.verdict, found.reason


def around(at: Place, bits: int) -> str:
    return str(ip_network(f"{at.client}/{bits}", strict=False))


@MODES
@PLACES
def test_a_blocked_source_gets_nothing_through_not_even_on_with_its_flow(
    rig: Rig, at: Place, forward: Forward
):
    serve(rig, at, forward=forward)
    assert sent(rig, at) == Verdict.TX
    rig.guard([around(at, 24 if at is V4 else 48)])
    assert sent(rig, at) == sent(rig, at, "A") == sent(rig, at, "R") == Verdict.DROP
    assert sent(rig, at, sport=5) == Verdict.DROP
    assert rig.reasons() == {"blocked": 4}
    assert said(rig, at) == ("drop", "blocked")
    assert np.count_nonzero(rig.tables.flows) == 1
    rig.guard()
    assert sent(rig, at, "A") == Verdict.TX


@PLACES
def test_others_do_not_notice(rig: Rig, at: Place):
    serve(rig, at)
    rig.guard([NOBODY, "2001:db8:99::/64", "192.0.2.0/25"])
    assert sent(rig, at) == sent(rig, at, "A") == Verdict.TX
    assert said(rig, at)[0] == "forward"
    assert rig.reasons() == {}


@pytest.mark.parametrize(("at", "bits"), [(V4, n) for n in range(1, 33)] + [
    (V6, n) for n in (1, 15, 16, 17, 20, 63, 64, 65, 68, 96, 127, 128)])  # fmt: skip
def test_every_length_of_a_prefix_ends_where_it_should(rig: Rig, at: Place, bits: int):
    serve(rig, at)
    rig.guard([around(at, bits)])
    assert sent(rig, at) == Verdict.DROP
    width = 32 if at is V4 else 128
    other = ip_address(at.client)
    other = type(other)(int(other) ^ 1 << (width - bits))
    beside = framed(Packet(str(other), at.vip, flags="S").ip)
    assert rig.reasons() == {"blocked": 1}
    rig.verdict(beside)  # whoever that is, it is not blocked
    assert rig.reasons().get("blocked") == 1


@PLACES
def test_of_a_list_only_what_begins_a_flow_is_asked(rig: Rig, at: Place):
    serve(rig, at, deny=("bad",))
    rig.guard(lists={"bad": []})
    assert sent(rig, at) == Verdict.TX
    rig.guard(lists={"bad": [around(at, 32)]})
    assert sent(rig, at, "A") == sent(rig, at, "PA", payload=b"x") == Verdict.TX
    assert sent(rig, at, sport=5) == sent(rig, at, "A", sport=6) == Verdict.DROP
    assert rig.reasons() == {"denied": 2}
    assert said(rig, at) == ("drop", "denied")
    dropped, would_drop = SourceTrees(rig.tables).counts()
    assert (dropped[0], sum(dropped), sum(would_drop)) == (2, 2, 0)


@PLACES
def test_with_an_allowed_list_all_others_are_refused_and_denied_wins(rig: Rig, at: Place):
    serve(rig, at, allow=("good", "better"), deny=("bad",))
    lists = {"bad": [NOBODY], "good": [NOBODY], "better": [NOBODY]}
    rig.guard(lists=lists)
    assert sent(rig, at) == Verdict.DROP
    assert said(rig, at) == ("drop", "not-allowed")
    rig.guard(lists=lists | {"better": [around(at, 20)]})
    assert sent(rig, at) == Verdict.TX
    assert said(rig, at)[0] == "forward"
    rig.guard(lists=lists | {"better": [around(at, 20)], "bad": [around(at, 28)]})
    assert sent(rig, at, sport=5) == Verdict.DROP
    assert rig.reasons() == {"not-allowed": 1, "denied": 1}
    dropped, _ = SourceTrees(rig.tables).counts()
    assert (dropped[0], dropped[abi.GUARD_COUNT_NOT_ALLOWED]) == (1, 1)


def test_a_service_without_lists_asks_none(rig: Rig):
    rig.serve(
        service(backend("a", V4.server), deny=("bad",)),
        service(backend("b", V4.server), name="free", port=81),
    )
    rig.guard(lists={"bad": [around(V4, 32)]})
    assert sent(rig, V4) == Verdict.DROP
    assert sent(rig, V4, dport=81) == Verdict.TX


def test_udp_is_asked_at_its_first_packet(rig: Rig):
    serve(rig, V4, protocol=Protocol.UDP, deny=("bad",))
    assert sent(rig, V4, None) == Verdict.TX
    rig.guard(lists={"bad": [around(V4, 32)]})
    assert sent(rig, V4, None) == Verdict.TX
    assert sent(rig, V4, None, sport=5) == Verdict.DROP


@PLACES
def test_a_dry_run_counts_and_serves(rig: Rig, at: Place):
    serve(rig, at, allow=("good",), deny=("bad",), guard=GuardMode.DRY_RUN)
    everyone = {"bad": [around(at, 16)], "good": [NOBODY]}
    rig.guard([around(at, 32)], everyone)
    assert sent(rig, at) == Verdict.TX
    rig.guard([], everyone | {"bad": [NOBODY]})
    assert sent(rig, at, sport=5) == Verdict.TX
    dropped, would_drop = SourceTrees(rig.tables).counts()
    assert sum(dropped) == 0
    assert would_drop[abi.GUARD_COUNT_BLOCKED] == would_drop[0] == 1
    assert would_drop[abi.GUARD_COUNT_NOT_ALLOWED] == 1
    assert rig.reasons() == {}
    assert said(rig, at)[0] == "forward"


@PLACES
def test_off_is_off(rig: Rig, at: Place):
    serve(rig, at, deny=("bad",), guard=GuardMode.OFF)
    rig.guard([around(at, 32)], {"bad": [around(at, 32)]})
    assert sent(rig, at) == Verdict.TX
    assert not any(map(sum, SourceTrees(rig.tables).counts()))


def test_who_is_on_a_list_is_not_challenged_and_shows_nothing(rig: Rig):
    serve(rig, V4, deny=("bad",), syn_protection=SynProtection.ALWAYS)
    rig.guard(lists={"bad": [around(V4, 32)]})
    assert sent(rig, V4) == sent(rig, V4, "R") == Verdict.DROP
    assert rig.reasons() == {"denied": 2}
    rig.guard(lists={"bad": []})
    assert sent(rig, V4) == Verdict.TX, "it is asked to show that it is there"


@PLACES
def test_a_tree_that_never_ends_holds_nobody(rig: Rig, at: Place):
    """What somebody wrote over it must not take packets away, or hold up the CPU."""
    serve(rig, at)
    rig.guard([around(at, 32)])
    nodes = rig.tables.guard_nodes
    assert sent(rig, at) == Verdict.DROP
    for entry in (abi.GUARD_BRANCH | 1, abi.GUARD_BRANCH | len(nodes), 0xFFFFFFFF):
        nodes[:] = entry
        assert sent(rig, at) == Verdict.TX
    nodes[:] = 0


def test_trees_are_swapped_whole_and_room_is_used_again(rig: Rig):
    serve(rig, V4, deny=("bad",))
    trees, size = SourceTrees(rig.tables), len(rig.tables.guard_nodes)
    one = build([(1, [prefix_of(ip_network(around(V4, 32)))])], 4)
    for _ in range(3 * size // (len(one) // 16)):
        trees.place({GuardTree.LISTS4: one, GuardTree.LISTS6: array("I")})
    assert trees.lists(LISTS, ip_address(V4.client)) == 1
    assert trees.nodes() == len(one) // 16
    large = array("I", bytes(64 * (size - len(one) // 16)))
    with pytest.raises(DataplaneError, match="do not fit beside"):
        trees.place({GuardTree.LISTS4: large})
    assert trees.lists(LISTS, ip_address(V4.client)) == 1
    trees.place({GuardTree.LISTS4: array("I")})
    assert trees.nodes() == 0


def test_a_restart_with_the_same_lists_needs_no_room_for_them_twice(rig: Rig):
    """Trees of more than half of the nodes could never be placed again."""
    size, width = len(rig.tables.guard_nodes), abi.GUARD_NODE_ENTRIES
    single = [prefix_of(ip_network(f"10.{n // 256}.{n % 256}.7/32")) for n in range(256 * 200)]
    few = len(build([(1, single[:1])], 4)) // width
    each = len(build([(1, single[:1001])], 4)) // width - few
    many = 1 + 1000 * (size // 2 - few) // each + 200
    large = build([(1, single[:many])], 4)
    assert size > len(large) // width > size // 2
    SourceTrees(rig.tables).place({GuardTree.LISTS4: large})
    SourceTrees(rig.tables).place({GuardTree.LISTS4: large})
    assert SourceTrees(rig.tables).nodes() == len(large) // width
    assert SourceTrees(rig.tables).lists(LISTS, ip_address("10.0.7.7")) == 1
    with pytest.raises(DataplaneError, match="do not fit beside"):
        SourceTrees(rig.tables).place({GuardTree.LISTS4: build([(2, single[:many])], 4)})
    SourceTrees(rig.tables).place({GuardTree.LISTS4: array("I")})


@PLACES
def test_of_many_sources_the_same_is_found_as_of_each(rig: Rig, at: Place):
    draw = random.Random(1)
    width = 32 if at is V4 else 128
    near = [int(ip_address(at.client)) ^ draw.getrandbits(draw.randrange(1, width - 8))
            for _ in range(400)]  # fmt: skip
    kind = type(ip_address(at.client))
    rig.guard([
        str(ip_network((value, draw.randrange(12, width + 1)), strict=False))
        for value in map(kind, near[::4])
    ])  # fmt: skip
    trees, tree = SourceTrees(rig.tables), BLOCKS[at is V6]
    addresses = [*map(kind, near)]
    words = np.concatenate([contents.words(each) for each in addresses]).reshape(-1, 4)
    found = trees.lists_of_all(tree, words)
    assert found.tolist() == [trees.lists(BLOCKS, each) for each in addresses]
    assert 100 <= np.count_nonzero(found) < 400
    rig.tables.guard_nodes[:] = 0xFFFFFFFF  # as if somebody wrote another tree meanwhile
    trees.lists_of_all(tree, words)
    rig.tables.guard_nodes[:] = 0


@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        ([], 1),
        ([Extent(1, 10)], 11),
        ([Extent(11, 5)], 1),
        ([Extent(9, 5)], 14),
        ([Extent(30, 70), Extent(1, 10)], 11),
        ([Extent(1, 10), Extent(15, 80)], 0),
        ([Extent(5, 30), Extent(10, 2)], 35),
    ],
)
def test_room_is_the_first_that_is_large_enough(taken: list[Extent], wanted: int):
    assert gap(taken, 10, 100) == wanted
