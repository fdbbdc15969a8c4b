"""Flow sync over any two nodes: what one records comes back as it was, and nothing that a peer
may say harms what lives here.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.flowsync.plan import OLDER_TICKS, Refusal
from agent.flowsync.records import RECORD, Records, from_bytes, joined, to_bytes
from tests.examples import examples
from tests.property.flowsync.fakes import (
    BACKENDS,
    JIFFIES,
    LIMITS,
    SERVICES,
    TICK_MS,
    FakeFlow,
    FakeNode,
)

IDS = range(1, 1 + BACKENDS * len(SERVICES))
orders = st.permutations(IDS)
flows = st.builds(
    FakeFlow,
    service=st.integers(0, len(SERVICES) - 1),
    backend=st.integers(0, BACKENDS - 1),
    client=st.integers(1, 2**32 - 1),
    client_port=st.integers(1, 65_535),
    state=st.sampled_from((2, 3)),
    idle_ticks=st.integers(0, 1),
    age_s=st.integers(0, 1000),
    nat=st.integers(0, 127),
)
several = st.lists(flows, max_size=30, unique_by=lambda flow: flow.tuple5)


def node_of(seed: int, order: list[int], size: int, other: FakeNode | None = None) -> FakeNode:
    made = FakeNode(seed, order, size)
    made.meet(other or made)
    return made


def holding(node: FakeNode, those: list[FakeFlow]) -> None:
    """The node's own flows, as if packets had made them."""
    source = FakeNode(0, list(IDS))
    told = [flow.record(source, number) for number, flow in enumerate(those)]
    node.meet(source)
    node.take(joined(told))
    node.ledger.meet("nobody", 0)


def by_tuple(node: FakeNode, told: Records) -> dict[tuple[bytes, ...], tuple[object, ...]]:
    """What records say, in words that do not depend on ids."""
    found = {}
    for row in told:
        owner, address, port = node.ids.backends[int(row["backend"])]
        source = node.ids.nat_sources.get(int(row["nat_source"])) if row["nat_port"] else None
        key = (row["client"].tobytes(), row["vip"].tobytes(), row["client_port"].tobytes(),
               row["vip_port"].tobytes(), row["l4_proto"].tobytes())  # fmt: skip
        assert node.ids.services[owner] == node.ids.services[int(row["service"])]
        numbers = (int(row[name]) for name in ("state", "age_ms", "idle_ms", "nat_port"))
        found[key] = (node.ids.services[owner], address, port, *numbers, source)
    return found


@settings(max_examples=examples(60), deadline=None)
@given(several, orders, orders, st.sampled_from((1024, 4096, 32_768)))
def test_what_a_node_tells_comes_back_from_the_other_as_it_was(
    those: list[FakeFlow], order_a: list[int], order_b: list[int], size: int
):
    a = FakeNode(1, order_a, 2048)
    holding(a, those)
    b = FakeNode(2, order_b, size)
    a.meet(b)
    b.meet(a)
    told = from_bytes(to_bytes(a.changed()))
    done = b.take(told)
    assert done.installed + sum(done.refused.values()) == len(told)
    assert set(done.refused) <= {Refusal.NO_ROOM}
    b.ledger.meet("nobody any more", 0)
    back = by_tuple(b, b.everything())
    for key, was in by_tuple(a, told).items():
        if key in back:
            service, address, port, state, age, idle, source, nat_port = was
            same = (
                service,
                address,
                port,
                state,
                age,
                idle + OLDER_TICKS * TICK_MS,
                source,
                nat_port,
            )
            assert back[key] == same
    assert len(back) == done.installed


@settings(max_examples=examples(60), deadline=None)
@given(several, st.lists(st.integers(0, 7), max_size=12), orders)
def test_after_any_changes_the_peer_knows_what_is_there_and_no_more(
    those: list[FakeFlow], changes: list[int], order: list[int]
):
    a, b = FakeNode(1, list(IDS), 1024), FakeNode(2, order, 4096)
    holding(a, those)
    a.meet(b)
    b.meet(a)
    b.take(a.changed())
    draw = np.random.default_rng(len(changes))
    for change in changes:
        used = np.flatnonzero(a.tables.flows)
        if not len(used):
            break
        at = int(draw.choice(used))
        if change < 3:
            a.tables.flows[at] = 0
        elif change < 6:
            a.tables.flows[at] |= np.uint64(1 << 13)  # closing
        else:
            a.tables.flows[at] += np.uint64(1)
        if change % 2:
            b.take(a.changed())
    b.take(a.changed())
    assert len(a.changed()) == 0
    told, held = by_tuple(a, a.everything()), by_tuple(b, _all_of(b))
    refused = set(told) - set(held)
    assert set(held) <= set(told)
    assert len(refused) <= len(those) // 8, "full buckets alone"
    for key, (*what, _, _, _, _) in held.items():
        assert tuple(what) == told[key][:4]


def _all_of(node: FakeNode) -> Records:
    node.ledger.meet("nobody any more", 0)
    return node.everything()


@settings(max_examples=examples(150), deadline=None)
@given(several, st.binary(max_size=RECORD.itemsize * 6), st.integers(0, 2**31))
def test_nothing_that_a_peer_may_say_harms_what_lives_here(
    those: list[FakeFlow], data: bytes, seed: int
):
    b = FakeNode(2, list(IDS), 1024)
    holding(b, those)
    living = b.tables.flows.copy()
    cold = b.tables.flows_cold[np.flatnonzero(living)].copy()
    peer = FakeNode(1, list(IDS)[::-1], 2048)
    b.meet(peer)
    told = np.frombuffer(data.ljust(RECORD.itemsize * 6, b"\1"), dtype=RECORD).copy()
    draw = np.random.default_rng(seed)
    for name, values in (("family", (4, 6)), ("l4_proto", (6, 17)), ("state", (0, 1, 2, 3, 5)),
                         ("service", IDS), ("backend", IDS), ("slot", range(2048)),
                         ("tags", (0, 2)), ("idle_ms", (0, 5000))):  # fmt: skip
        told[name] = np.where(draw.random(6) < 0.9, draw.choice(list(values), 6), told[name])
    short = told["family"] == 4
    told["client"][short, 4:] = 0
    told["vip"][short, 4:] = 0
    for _ in range(2):
        b.take(told)
    used = np.flatnonzero(living)
    over = np.array([_is_over(int(word)) for word in living[used]], dtype=bool)
    assert (b.tables.flows[used][~over] == living[used][~over]).all()
    assert (b.tables.flows_cold[used][~over] == cold[~over]).all()


def _is_over(word: int) -> bool:
    idle, state = ((JIFFIES >> 12) - word) & 0x1FFF, word >> 13 & 7
    return idle > LIMITS[state] or (state == 3 and idle >= 2)
