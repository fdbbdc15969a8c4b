"""Sums that the packet path keeps never drift from the flow table, whatever is missed and
whatever happens while the table is read.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.dataplane import survey, trueup
from agent.dataplane.abi import FlowState
from tests.examples import examples
from tests.unit.dataplane.fakes import FakeTables, word

NOW = 5000
BACKENDS = {1: 1, 2: 1, 3: 2}  # service by id
OPEN = [FlowState.EMBRYONIC, FlowState.ACKED, FlowState.ESTABLISHED]


class MovingFlows(np.ndarray):
    """A flow table in which something happens between the reading of two parts."""

    on_read: Callable[[], None] | None = None

    def __getitem__(self, key):
        if isinstance(key, slice) and self.on_read is not None:
            self.on_read()
        return super().__getitem__(key)


class PacketPath:
    """Opens, asks, answers, closes and forgets at random; sometimes it misses to count."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.tables = FakeTables(cpus=2)
        for ident, service in BACKENDS.items():
            self.tables.backends["service"][ident] = service
            self.tables.backends["timeout_ticks"][ident] = 100
        self.slots = self.tables.flows
        self.moving = self.tables.flows = self.tables.flows.view(MovingFlows)
        self.missing = 0.0  # probability that a change is not counted

    def step(self) -> None:
        self.draw.choice([self.open, self.open, self.ask, self.answer, self.close, self.forget])()

    def _some(self, *states: FlowState) -> int | None:
        there = np.flatnonzero(np.isin(survey.state_of(self.slots), states) & (self.slots != 0))
        return int(self.draw.choice(there)) if len(there) else None

    def _count(self, ident: int, opened: int, waiting: int, embryonic: int = 0) -> None:
        """``embryonic``: so many more of the open ones."""
        if self.draw.random() < self.missing:
            return
        load, service = self.tables.backend_load, BACKENDS[ident]
        load["waiting"][ident] += waiting
        load["open"][ident] += opened
        load["embryonic"][ident] += embryonic
        self.tables.service_load["open"][service] += opened
        counters = {
            (1, 1): ("opened",), (1, 0): ("opened", "established"),
            (0, -1): ("established",),
            (-1, 0): ("closed",), (-1, -1): ("closed",),
        }  # fmt: skip
        for counter in counters.get((opened, embryonic), ()):
            self.tables.backend_count[counter][self.draw.randrange(2), ident] += 1

    def _set(self, place: int, state: FlowState) -> None:
        ident = int(survey.backend_of(self.slots[place : place + 1])[0])
        self.slots[place] = word(ident, state, NOW)

    def open(self) -> None:
        ident = self.draw.choice(list(BACKENDS))
        place = self.draw.choice(np.flatnonzero(self.slots == 0))
        state = self.draw.choice(OPEN)
        self.slots[place] = word(ident, state, NOW)
        self._count(ident, 1, 0, int(state == FlowState.EMBRYONIC))

    def ask(self) -> None:
        place = self._some(*OPEN, FlowState.ESTABLISHED_AWAITING)
        if place is not None:
            was_embryonic = self._state(place) == FlowState.EMBRYONIC
            self._set(place, FlowState.ESTABLISHED_AWAITING)
            size = self.draw.randrange(1, 9000)
            self.tables.flows_warm["waiting"][place] += size
            self._count(self._backend(place), 0, size, -int(was_embryonic))

    def _answered(self, place: int) -> int:
        size = int(self.tables.flows_warm["waiting"][place])
        self.tables.flows_warm["waiting"][place] = 0
        return size

    def answer(self) -> None:
        place = self._some(FlowState.ESTABLISHED_AWAITING)
        if place is not None:
            self._set(place, FlowState.ESTABLISHED)
            self._count(self._backend(place), 0, -self._answered(place))

    def close(self) -> None:
        place = self._some(*OPEN, FlowState.ESTABLISHED_AWAITING)
        if place is not None:
            state = self._state(place)
            awaits = state == FlowState.ESTABLISHED_AWAITING
            self._set(place, FlowState.CLOSING_AWAITING if awaits else FlowState.CLOSING)
            self._count(self._backend(place), -1, 0, -int(state == FlowState.EMBRYONIC))

    def forget(self) -> None:
        place = self._some(FlowState.CLOSING, FlowState.CLOSING_AWAITING)
        if place is not None:
            ident = self._backend(place)
            self.slots[place] = 0
            self._count(ident, 0, -self._answered(place))

    def _backend(self, place: int) -> int:
        return int(survey.backend_of(self.slots[place : place + 1])[0])

    def _state(self, place: int) -> int:
        return int(survey.state_of(self.slots[place : place + 1])[0])

    def errors(self) -> dict[str, np.ndarray]:
        """How far the sums are from the table, all at one moment."""
        self.moving.on_read = None
        found = survey.survey(self.tables, NOW)
        services = np.bincount(found.service, weights=found.open, minlength=8).astype(np.int64)
        return {
            "open": found.before.open - found.open,
            "embryonic": found.before.embryonic - (found.open - found.live),
            "waiting": found.before.waiting - found.waiting,
            "counted": found.before.opened - found.before.closed - found.open,
            "service_open": found.before.service_open - services,
        }

    def run(self, keeper: trueup.TrueUp, surveys: int, pace: int) -> None:
        """Surveys, with so many steps between them, and up to as many in each."""
        for _ in range(surveys):
            for _ in range(pace):
                self.step()

            def meanwhile() -> None:
                for _ in range(self.draw.randrange(pace // 8 + 1)):
                    self.step()

            before = self.errors()
            self.moving.on_read = meanwhile
            keeper.take(survey.survey(self.tables, NOW))
            if not self.missing:  # else the survey itself saw some go missing
                self._check_no_worse(before, self.errors())

    @staticmethod
    def _check_no_worse(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
        for name in ("open", "counted", "service_open"):
            assert (np.abs(after[name]) <= np.abs(before[name])).all(), name
            assert (after[name] * before[name] >= 0).all(), f"{name} overshot"


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_CHUNK", 64)  # 16 reads a survey


@given(seed=st.integers(0, 2**32), pace=st.sampled_from([1, 8, 40]))
@settings(max_examples=examples(40), deadline=None)
def test_what_was_missed_is_found_and_nothing_is_made_worse(seed: int, pace: int):
    kernel = PacketPath(seed)
    keeper = trueup.TrueUp(kernel.tables)
    kernel.missing = 0.2
    kernel.run(keeper, 6, pace)
    kernel.missing = 0.0
    kernel.run(keeper, 12, pace)  # the table moves on as it is read: no worse, never too far
    kernel.run(keeper, 2 * trueup.SURVEYS, pace=0)
    for name, error in kernel.errors().items():
        assert not error.any(), name
    busy = kernel.errors()
    kernel.run(keeper, 12, pace)
    for name in ("open", "counted", "service_open"):
        assert (kernel.errors()[name] == busy[name]).all(), "it stays"


@given(seed=st.integers(0, 2**32))
@settings(max_examples=examples(20), deadline=None)
def test_without_a_loss_nothing_of_flows_is_ever_corrected(seed: int):
    kernel = PacketPath(seed)
    keeper = trueup.TrueUp(kernel.tables)
    kernel.run(keeper, 40, pace=20)
    assert not kernel.tables.backend_load["open_fix"].any()
    assert not kernel.tables.service_load["open_fix"].any()
    assert not kernel.tables.backend_count[-1]["opened"].any()
    assert not kernel.tables.backend_count[-1]["closed"].any()


@given(seed=st.integers(0, 2**32), size=st.integers(1, 10**9))
@settings(max_examples=examples(20), deadline=None)
def test_a_swept_request_leaves_the_sum_of_waiting_bytes(seed: int, size: int):
    kernel = PacketPath(seed)
    kernel.run(trueup.TrueUp(kernel.tables), 3, pace=30)
    kernel.open()
    kernel.ask()
    place = kernel._some(FlowState.ESTABLISHED_AWAITING)
    kernel.tables.flows_warm["waiting"][place] += size
    kernel._count(kernel._backend(place), 0, size)
    kernel.moving.on_read = None
    late = survey.survey(kernel.tables, NOW + 101)
    assert survey.sweep(kernel.tables, late) == len(late.expired) > 0
    errors = kernel.errors()
    assert errors["waiting"].sum() >= size
    assert not any(errors[name].any() for name in ("open", "counted", "service_open"))
    keeper = trueup.TrueUp(kernel.tables)
    kernel.run(keeper, trueup.SURVEYS, pace=0)
    assert not kernel.errors()["waiting"].any()
