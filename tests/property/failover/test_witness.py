"""Flow sync as the second witness: what a master said, against what is not heard of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.failover.model import LEAVING, Mode, Role
from agent.failover.times import VOUCH_S
from agent.failover.vrrp import machine
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.states import Claim, Due, Heard, Operator, Settings, Start, State, Vouched
from tests.examples import examples

OWN, MASTER = IPv4Address("10.73.0.5"), IPv4Address("10.73.0.6")
INTERVALS_S = st.sampled_from([0.01, 0.1, 1.0, 5.0])
LAWS = settings(max_examples=examples(150), deadline=None, derandomize=True)


class Backup:
    """A backup that has heard its master every interval until ``heard_s``."""

    def __init__(self, interval_s: float, heard_s: float = 1000.0) -> None:
        self.settings = Settings(OWN, priority=100, interval_s=interval_s)
        self.state: State = machine.initial(self.settings, Mode.NORMAL, heard_s - 60)
        self.tell(Start(), heard_s - 60)
        self.advert = Advert(3, 51, 200, interval_s, (), MASTER)
        self.tell(Heard(self.advert), heard_s)

    def tell(self, event: machine.Event, now_s: float) -> None:
        self.state, _ = machine.step(self.settings, self.state, event, now_s)

    def run(self, until_s: float) -> float | None:
        """Let time pass; when it became master, if it did."""
        while self.state.role is Role.BACKUP:
            due_s = self.state.due_s
            assert due_s is not None, "nothing is waited for any more"
            if due_s > until_s:
                return None
            self.tell(Due(), due_s)
        return self.state.since


def alone_s(interval_s: float) -> float:
    """When it takes over from a master that no one has vouched for."""
    taken_s = Backup(interval_s).run(1000 + 10 * interval_s)
    assert taken_s is not None
    return taken_s


@LAWS
@given(INTERVALS_S, st.floats(0, 1), st.lists(st.floats(0, 30), max_size=8), st.floats(0, 3))
def test_who_has_died_is_succeeded_as_soon_as_without_a_witness(
    interval_s: float, died: float, ages_s: list[float], late_s: float
) -> None:
    """Whatever it said until its death, and however late that is heard."""
    died_s = 1000 + died * interval_s  # before its next advert
    node = Backup(interval_s)
    for age_s in ages_s:
        node.tell(Vouched(died_s - age_s), max(1000.0, died_s - age_s + late_s * interval_s))
    assert node.run(1e6) == alone_s(interval_s)


@LAWS
@given(INTERVALS_S, st.floats(0.05, 1.2), st.integers(1, 60))
def test_who_is_vouched_for_keeps_the_vips_until_the_word_is_old(
    interval_s: float, pause_s: float, count: int
) -> None:
    first_s = alone_s(interval_s) - interval_s / 2  # after the adverts were lost, before the end
    node = Backup(interval_s)
    last_s = first_s + pause_s * (count - 1)
    for turn in range(count):
        assert node.run(first_s + pause_s * turn) is None
        node.tell(Vouched(first_s + pause_s * turn), first_s + pause_s * turn)
    taken_s = node.run(last_s + 1000)
    assert taken_s is not None
    assert taken_s == pytest.approx(max(last_s + VOUCH_S, alone_s(interval_s)))


@LAWS
@given(INTERVALS_S, st.floats(0, 1), st.sampled_from(["left", "claimed", "promoted", "lower"]))
def test_a_word_counts_against_silence_alone(interval_s: float, phase: float, what: str) -> None:
    node = Backup(interval_s)
    now_s = 1000 + phase * interval_s
    match what:
        case "left":
            node.tell(Heard(replace(node.advert, priority=LEAVING)), now_s)
        case "claimed":
            node.tell(Claim(), now_s)
        case "promoted":
            node.tell(Operator(Mode.PROMOTED), now_s)
        case "lower":
            # It lives, and this node is to preempt it.
            for turn in range(8):
                assume(node.state.role is Role.BACKUP)
                at_s = now_s + turn * interval_s
                node.run(at_s)
                if node.state.role is Role.BACKUP:
                    node.tell(Heard(replace(node.advert, priority=50)), at_s)
                    node.tell(Vouched(at_s), at_s)
    while node.state.role is Role.BACKUP:
        due_s = node.state.due_s
        assert due_s is not None
        assert due_s <= now_s + 8 * interval_s
        node.tell(Vouched(due_s), due_s)
        node.tell(Due(), due_s)


def test_a_word_of_the_future_vouches_for_nobody() -> None:
    """Clocks that are no one clock."""
    node = Backup(1.0)
    node.tell(Vouched(1e9), 1001.0)
    assert node.run(1e6) == alone_s(1.0)


def test_a_node_that_starts_while_nothing_is_heard_leaves_a_master_that_is_well_alone() -> None:
    node = Backup(1.0)
    node.state = machine.initial(node.settings, Mode.NORMAL, 2000.0)
    node.tell(Start(), 2000.0)
    node.tell(Vouched(2003.0), 2003.0)
    assert node.run(2004.0) is None
    assert node.state.vouched
    node.tell(Heard(node.advert), 2004.0)
    assert not node.state.vouched
