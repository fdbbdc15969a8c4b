"""What one agent tells another of its table, over restarts and changes of ids on either side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from agent.dataplane import abi
from agent.dataplane.abi import FlowState
from agent.flowsync.exchange import Exchange, Node
from agent.flowsync.export import CHUNK
from agent.flowsync.install import Arrival, Outcome
from agent.flowsync.kept import Kept
from agent.flowsync.records import joined
from tests.property.flowsync.fakes import BACKENDS, JIFFIES, SERVICES, FakeFlow, FakeNode

IDS = list(range(1, 1 + BACKENDS * len(SERVICES)))
SLOTS = 4096


@dataclass
class Side:
    """A node, what its agent knows of its peer, and what was counted."""

    fake: FakeNode
    exchange: Exchange
    kept: Kept
    outcomes: list[Outcome]

    @classmethod
    def of(cls, seed: int, ids: list[int] = IDS, slots: int = SLOTS) -> Side:
        kept = Kept.nowhere(slots)
        side = cls(FakeNode(seed, ids, slots), None, kept, [])  # type: ignore[arg-type]
        side.restart()
        return side

    def restart(self) -> None:
        """Another agent comes to the same tables."""
        node = Node(
            lambda: self.fake.view,
            lambda: JIFFIES,
            lambda: Arrival(1, np.zeros(6, dtype=np.uint8)),
            self.outcomes.append,
        )
        self.exchange = Exchange(node, self.kept)

    def lose(self, seed: int) -> None:
        """The host starts again: other tables, empty."""
        self.fake = FakeNode(seed, IDS, SLOTS)
        self.kept = Kept.nowhere(SLOTS)
        self.restart()

    def hold(self, count: int) -> None:
        """Flows of its own."""
        source = FakeNode(99, IDS)
        flows = [FakeFlow(0, n % BACKENDS, 1000 + n, 2000 + n, 2, 0, 5, 0) for n in range(count)]
        told = joined([flow.record(source, number) for number, flow in enumerate(flows)])
        self.fake.meet(source)
        self.fake.take(told)

    def end(self) -> None:
        self.fake.tables.flows[:] = 0

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.fake.tables.flows))

    def hear(self, data: bytes) -> None:
        self.exchange.install(data).account()


def tell_all(one: Side, two: Side) -> int:
    """Everything; how many flows."""
    two.exchange.meet(one.exchange.begin())
    two.exchange.begin_full()
    flows = 0
    while (part := one.exchange.part()) is not None:
        flows += part.flows
        two.hear(part.records)
    two.exchange.end_full().account()
    return flows


def connect(one: Side, two: Side) -> tuple[int, int]:
    """Both tell everything, then what is left."""
    told = tell_all(one, two), tell_all(two, one)
    tell_changes(one, two)
    tell_changes(two, one)
    return told


def tell_changes(one: Side, two: Side) -> tuple[int, int]:
    look = one.exchange.changed()
    if look.identities is not None:
        two.exchange.meet(look.identities)
    two.hear(look.records)
    return look.flows, look.gone


@pytest.fixture
def one() -> Side:
    return Side.of(1)


@pytest.fixture
def two() -> Side:
    return Side.of(2, IDS[::-1])


def test_everything_is_told_and_nothing_of_it_comes_back(one: Side, two: Side) -> None:
    one.hold(20)
    assert connect(one, two) == (20, 0)
    assert sum(outcome.refreshed for outcome in two.outcomes) == 0, "nothing is told twice"
    assert (one.count, two.count) == (20, 20)
    assert tell_changes(one, two) == tell_changes(two, one) == (0, 0)


def test_what_ends_is_told(one: Side, two: Side) -> None:
    one.hold(20)
    connect(one, two)
    one.end()
    assert tell_changes(one, two) == (0, 20)
    assert two.count == 0
    assert sum(outcome.closed.sum() for outcome in two.outcomes) == 20


def test_an_agent_that_comes_back_does_not_tell_what_has_ended_at_its_peer(
    one: Side, two: Side
) -> None:
    one.hold(20)
    connect(one, two)
    one.end()
    two.restart()
    tell_all(two, one)  # before it has heard anything
    assert one.count == 0
    connect(one, two)
    assert (one.count, two.count) == (0, 0)


def test_a_peer_that_has_lost_its_tables_gets_its_flows_back(one: Side, two: Side) -> None:
    one.hold(20)
    connect(one, two)
    one.lose(7)
    two.restart()  # and nobody remembers
    connect(one, two)
    assert (one.count, two.count) == (20, 20)


def test_flows_of_a_backend_that_is_known_later_are_asked_for(one: Side, two: Side) -> None:
    one.hold(21)
    whole = two.fake.view
    gone = two.fake.backend_ids(0)[0]
    less = {i: place for i, place in whole.ids.backends.items() if i != gone}
    two.fake.view = replace(whole, ids=replace(whole.ids, backends=less))
    connect(one, two)
    assert two.count == 14
    assert not two.exchange.changed().wants_resync
    two.fake.view = whole
    assert two.exchange.changed().wants_resync
    assert not two.exchange.changed().wants_resync, "once is enough"
    connect(one, two)
    assert two.count == 21


def test_flows_of_a_backend_that_takes_them_later_are_asked_for(one: Side, two: Side) -> None:
    """Its id is there from the first pass on; its next hop is found later."""
    one.hold(21)
    away, other = two.fake.backend_ids(0)[:2]
    flags = two.fake.tables.backends["flags"]
    flags[away] ^= abi.BACKEND_F_ALIVE
    connect(one, two)
    assert two.count == 14
    assert not two.exchange.changed().wants_resync
    flags[other] ^= abi.BACKEND_F_ALIVE
    two.exchange.changed()
    flags[other] |= abi.BACKEND_F_ALIVE
    assert not two.exchange.changed().wants_resync, "none of its flows was dropped"
    flags[away] |= abi.BACKEND_F_ALIVE
    assert two.exchange.changed().wants_resync
    assert not two.exchange.changed().wants_resync, "once is enough"
    connect(one, two)
    assert two.count == 21


def test_flows_that_named_a_backend_before_its_name_was_told_are_asked_for(
    one: Side, two: Side
) -> None:
    """A pass has put a backend into the sender's table, and has not ended yet."""
    one.hold(21)
    whole = one.fake.view
    early = one.fake.backend_ids(0)[0]
    told = {i: place for i, place in whole.ids.backends.items() if i != early}
    one.fake.view = replace(whole, ids=replace(whole.ids, backends=told))
    connect(one, two)
    assert two.count == 14
    one.fake.view = whole
    tell_changes(one, two)
    assert two.exchange.changed().wants_resync
    assert not two.exchange.changed().wants_resync, "once is enough"
    connect(one, two)
    assert two.count == 21


def test_a_look_that_finds_much_and_tells_little_is_not_the_whole_table() -> None:
    """A flood of SYNs: none of them has addresses that could be told, and they end the look."""
    one, two = Side.of(1, slots=4 * CHUNK), Side.of(2)
    embryonic = np.uint64(1 << abi.FLOW_TAG_SHIFT | FlowState.EMBRYONIC << abi.FLOW_STATE_SHIFT)
    one.hold(20)
    connect(one, two)
    flows = one.fake.tables.flows
    flows[:] = np.where(flows == 0, embryonic, flows)
    looks = [one.exchange.changed(unfinished=True).complete for _ in range(4)]
    assert not looks[0]
    assert any(looks), "four pieces have been looked at"


def test_ids_that_change_where_nothing_was_lacking_cost_nothing(one: Side, two: Side) -> None:
    one.hold(20)
    connect(one, two)
    ids = two.fake.view.ids
    two.fake.view = replace(two.fake.view, ids=replace(ids, nat_sources={}))
    look = two.exchange.changed()
    assert look.identities is not None
    assert not look.wants_resync


def test_ids_that_are_the_same_are_compared_once_a_pass(one: Side, two: Side) -> None:
    connect(one, two)
    compared: list[object] = []

    class Services(dict):  # type: ignore[type-arg]
        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return super().__eq__(other)

        __hash__ = None  # type: ignore[assignment]

    ids = two.fake.view.ids
    two.fake.view = replace(two.fake.view, ids=replace(ids, services=Services(ids.services)))
    for _ in range(3):
        assert two.exchange.changed().identities is None
    assert len(compared) == 2, "one for what is told, one for what is read"


def test_records_before_ids_and_halves_of_records_are_refused(one: Side, two: Side) -> None:
    one.hold(2)
    one.exchange.begin()
    part = one.exchange.part()
    assert part is not None
    with pytest.raises(ValueError, match="before the ids"):
        two.exchange.install(part.records)
    connect(one, two)
    with pytest.raises(ValueError, match="whole records"):
        two.exchange.install(part.records[:-1])


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b"{}", b'{"tables": 5}', b"\xff"])
def test_ids_that_make_no_sense_are_refused(two: Side, said: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever the text)
        two.exchange.meet(said)
