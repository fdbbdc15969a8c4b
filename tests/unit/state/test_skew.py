"""How unevenly busy connections lie, and whether it lasts."""

import pytest

from agent.state.skew import LASTING_S, Lasting, Skew, Standing, Turn, follow, skew


def standings(**busy: int) -> list[Standing]:
    """Backends of one weight."""
    return [Standing(name, 100, count) for name, count in busy.items()]


def test_even_connections_have_a_skew_of_one():
    found = skew(standings(a=50, b=50))
    assert found is not None
    assert found.value == 1.0


def test_the_backend_with_most_by_its_weight_is_named():
    found = skew([Standing("big", 300, 90), Standing("small", 100, 70)])
    assert found == Skew(1.75, "small", 70, 40.0)


def test_what_a_backend_without_weight_has_does_not_count():
    found = skew([*standings(a=40, b=40), Standing("draining", 0, 500)])
    assert found is not None
    assert (found.value, found.fair) == (1.0, 40.0)


@pytest.mark.parametrize(
    ("busy", "told"),
    [
        ({"a": 5, "b": 0}, False),  # one time in 16
        ({"a": 8, "b": 0}, False),
        ({"a": 9, "b": 0}, True),  # three standard deviations
        ({"a": 17, "b": 18}, False),  # 35: 1.5 would not stand out
        ({"a": 18, "b": 18}, True),
        ({"a": 11, "b": 5, "c": 5, "d": 5}, False),
        ({"a": 20, "b": 0, "c": 0, "d": 0}, True),
        ({"a": 0, "b": 0}, False),
        ({"a": 1000}, False),  # alone
    ],
)
def test_a_skew_is_told_only_where_chance_is_no_explanation(busy: dict[str, int], told: bool):
    assert (skew(standings(**busy)) is not None) is told


def test_backends_of_other_levels_do_not_count():
    """Another priority or zone: connections do not go there by weight."""
    east = [Standing("e1", 100, 60, level="0 east"), Standing("e2", 100, 40, level="0 east")]
    spare = [Standing("spare", 100, 0, level="1 None")]
    found = skew([*east, *spare])
    assert found is not None
    assert (found.value, found.backend) == (1.2, "e1")
    west = [Standing("w1", 100, 30, level="0 west"), Standing("w2", 100, 2, level="0 west")]
    assert skew([*east, *west, *spare]).backend == "w1"


def test_nobody_takes_connections():
    assert skew([Standing("a", 0, 40), Standing("b", 0, 1)]) is None


def readings(*values: tuple[float, float | None], past: dict[str, Lasting] | None = None):
    """All turns after readings of (time, skew) of one service; and its last state."""
    states, turns = past or {}, []
    for now, value in values:
        found = None if value is None else Skew(value, f"at{now:.0f}", 10, 5.0)
        states, new = follow(states, {"web": found}, {"web": 1.5}, now)
        turns += new
    return states["web"], turns


def test_a_skew_that_lasts_is_told_once():
    values = [(1000 + 10.0 * i, 2.0) for i in range(20)]
    state, turns = readings(*values)
    assert turns == [Turn("web", True, "at1060", Skew(2.0, "at1060", 10, 5.0), LASTING_S)]
    assert state.skewed
    assert state.since == 1000


def test_one_even_reading_starts_the_wait_again():
    _, turns = readings((0, 2.0), (50, 2.0), (59, 1.4), (61, 2.0), (120, 2.0))
    assert turns == []
    _, turns = readings((0, 2.0), (59, 1.4), (61, 2.0), (121, 2.0))
    assert len(turns) == 1


@pytest.mark.parametrize("even", [1.0, None])
def test_its_end_is_told_when_it_has_lasted_too(even: float | None):
    skewed = {"web": Lasting(True, 1000.0, None, "gpu-1")}
    state, turns = readings((2000, even), (2030, 1.5), (2040, even), (2099, even), past=skewed)
    assert turns == []
    assert state.backend == "gpu-1"
    state, turns = readings((2000, even), (2060, even), past=skewed)
    assert [(t.skewed, t.backend, t.lasted_s) for t in turns] == [(False, "gpu-1", 1000.0)]
    assert not state.skewed


def test_a_service_that_is_gone_is_forgotten():
    states, turns = follow({"web": Lasting(True, 0.0, None, "a")}, {}, {}, 100.0)
    assert (states, turns) == ({}, ())
