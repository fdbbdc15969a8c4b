"""The wanted number of backends, for any load, targets and bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.model import Scale, Signal
from agent.state.scaling import Seen, decide
from tests.property.configurations import scales

loads = st.none() | st.integers(0, 10**7)
views = st.builds(
    Seen,
    usable=st.integers(0, 50),
    load=st.dictionaries(st.sampled_from(Signal), loads),
    misses_objective=st.none() | st.booleans(),
    held=st.none() | st.integers(0, 4096),
)


@given(scales(waiting=True, reports=True), views)
def test_the_number_is_within_its_bounds_or_not_known(asked: Scale, seen: Seen):
    scaling = decide(asked, seen)
    known = [signal for signal in asked.targets if seen.load.get(signal) is not None]
    is_awaited = bool(asked.targets and seen.held)
    assert (scaling.wanted is None) == (scaling.cause is None) == (not known and not is_awaited)
    if scaling.wanted is not None:
        assert scaling.wanted >= asked.min
        assert asked.max is None or scaling.wanted <= asked.max


@given(scales(waiting=True, reports=True), views)
def test_it_is_enough_for_every_target_or_as_many_as_there_may_be(asked: Scale, seen: Seen):
    wanted = decide(asked, seen).wanted
    if wanted is None or wanted == asked.max:
        return
    for signal, target in asked.targets.items():
        assert (seen.load.get(signal) or 0) <= wanted * target
    assert wanted > seen.usable or not seen.misses_objective


@given(scales(waiting=True, reports=True), views, st.sampled_from(Signal), st.integers(0, 10**7))
def test_more_load_never_lowers_it(asked: Scale, seen: Seen, signal: Signal, more: int):
    load = seen.load.get(signal)
    if load is None:
        return
    grown = Seen(
        seen.usable,
        load=dict(seen.load) | {signal: load + more},
        misses_objective=seen.misses_objective,
        held=seen.held,
    )
    before, after = decide(asked, seen).wanted, decide(asked, grown).wanted
    assert (before is None) is (after is None)
    assert before is None or after is None or after >= before
