"""What comes back when a change for a limited time ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.edit import Edit, EditOp, apply_edits
from agent.config.layers import compose, written
from agent.config.load import parse
from agent.config.reverts import Revert, from_json, planned, to_json, undo
from agent.model import Config, Target
from agent.state.sources import Placed

BASE = parse(
    """\
interface: eth0
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    discover: {file: /etc/gpu.yaml}
    backends: [{name: mine, address: 10.0.0.21, weight: 70}]
""",
    "agent.yaml",
)
FOUND = {"chat": (Placed(Target(ip_address("10.0.0.40"), 80, weight=30)),)}
NAMES = ("mine", "10.0.0.40-80")


def edit(backend: str, **values: object) -> Edit:
    return Edit(EditOp.BACKEND_SET, "chat", backend, values)


class World:
    """What operators wrote, what runs, and what is to come back."""

    def __init__(self) -> None:
        self.base, self.found = BASE, FOUND
        self.pending: tuple[Revert, ...] = ()
        self.now = 0.0

    @property
    def running(self) -> Config:
        return compose(self.base, self.found).config

    def order(self, *edits: Edit, for_s: float | None = None) -> None:
        before = self.running
        self.base = apply_edits(self.base, list(written(before, edits, self.found)))
        self.pending = planned(self.pending, before, edits, for_s, self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for each in self.pending:
            if each.at <= self.now:
                self.pending = tuple(other for other in self.pending if other is not each)
                if (back := undo(self.running, each)) is not None:
                    edits = list(written(self.running, [back], self.found))
                    self.base = apply_edits(self.base, edits)

    def of(self, backend: str) -> tuple[int, str]:
        (chat,) = self.running.services
        found = next(b for b in chat.backends if b.name == backend)
        return found.weight, found.admin.value


@pytest.mark.parametrize("name", NAMES)
def test_weight_and_state_go_back(name: str) -> None:
    world = World()
    before = world.of(name)
    world.order(edit(name, weight=5), for_s=60)
    world.order(edit(name, state="drain"), for_s=120)
    world.wait(59)
    assert world.of(name) == (5, "drain")
    world.wait(1)
    assert world.of(name) == (before[0], "drain")
    world.wait(60)
    assert world.of(name) == before
    assert world.base == BASE, "no override is left"


@pytest.mark.parametrize("name", NAMES)
def test_a_second_time_goes_back_to_what_was_before_the_first(name: str) -> None:
    world = World()
    before = world.of(name)
    world.order(edit(name, weight=5), for_s=60)
    world.order(edit(name, weight=6), for_s=120)
    world.wait(60)
    assert world.of(name)[0] == 6
    world.wait(60)
    assert world.of(name) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [5, 9])
def test_a_later_change_without_a_time_lasts(name: str, weight: int) -> None:
    world = World()
    world.order(edit(name, weight=5), for_s=60)
    world.order(edit(name, weight=weight))
    assert world.pending == ()
    world.wait(60)
    assert world.of(name)[0] == weight


def test_what_the_file_has_changed_meanwhile_stays() -> None:
    world = World()
    world.order(edit("mine", weight=5), for_s=60)
    world.base = apply_edits(world.base, [edit("mine", weight=8)])
    world.wait(60)
    assert world.of("mine")[0] == 8


def test_a_backend_or_a_service_that_is_gone_is_left_alone() -> None:
    world = World()
    world.order(edit("mine", weight=5), for_s=60)
    (revert,) = world.pending
    gone = apply_edits(world.base, [Edit(EditOp.BACKEND_REMOVE, "chat", "mine")])
    assert undo(gone, revert) is None
    assert undo(apply_edits(gone, [Edit(EditOp.SERVICE_REMOVE, "chat")]), revert) is None


def test_a_target_that_its_source_does_not_name_at_the_time_comes_back_as_it_was() -> None:
    world = World()
    world.order(edit("10.0.0.40-80", state="drain"), for_s=60)
    world.found = {}
    world.wait(60)
    world.found = FOUND
    assert world.of("10.0.0.40-80") == (30, "active")
    assert world.base == BASE


STEPS = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from([{"weight": 1}, {"weight": 2}, {"state": "drain"}, {"state": "maintenance"}]),
    st.integers(1, 50),
    st.integers(0, 30),
)


@given(st.lists(STEPS, max_size=8))
def test_after_any_changes_for_a_time_all_is_as_before(
    steps: list[tuple[str, Mapping[str, object], int, int]],
) -> None:
    world = World()
    for name, values, for_s, pause_s in steps:
        world.order(edit(name, **values), for_s=for_s)
        assert from_json(json.loads(json.dumps(to_json(world.pending)))) == world.pending
        world.wait(pause_s)
    world.wait(100)
    assert (world.base, world.pending) == (BASE, ())
