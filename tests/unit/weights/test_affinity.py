"""What a home is worth shows in the answers, and is never more or less than it may be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.weights import affinity
from agent.weights.affinity import (
    GRANTED,
    KEPT,
    LEAST,
    LEAST_BYTES,
    LEAST_KNOWN,
    MOST,
    MOST_BYTES,
    Answers,
    Client,
    Memory,
    Worth,
    worth,
)
from agent.weights.learn import Samples

NEW, KNOWN, BACK = Client.NEW, Client.KNOWN, Client.BACK
USUAL, PER_CONNECTION = 10_000.0, 250.0
AHEAD_S = 4e-6  # a byte


def keys(*sources: int) -> np.ndarray:
    return np.array(sources, dtype=np.uint32)


def test_who_was_answered_there_before_is_known_there() -> None:
    memory = Memory()
    assert memory.clients(1, keys(7, 8, 7)).tolist() == [NEW, NEW, KNOWN]
    assert memory.clients(2, keys(7)).tolist() == [NEW], "another backend knows nothing of it"
    assert memory.clients(1, keys(8, 9, 7, 7)).tolist() == [KNOWN, NEW, BACK, KNOWN]


def test_who_was_not_seen_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "REMEMBERED", 3)
    memory = Memory()
    memory.clients(1, keys(1, 2, 3))
    memory.clients(1, keys(1))
    memory.clients(1, keys(4))
    assert memory.clients(1, keys(1)).tolist() == [KNOWN]
    assert memory.clients(1, keys(2)).tolist() == [NEW]


def answers(
    new_s: float, known_s: float, known_share: float = 0.7, count: int = 1500, seed: int = 1
) -> Answers:
    """Of a service where a byte of a request costs so much at a server that is new to its client,
    and at one that knows it; with what scatter there is in reality.
    """
    rng = np.random.default_rng(seed)
    own = rng.lognormal(np.log(USUAL) - 0.08, 0.4, count)
    ahead, is_open = rng.exponential(2 * USUAL, count), rng.integers(1, 9, count).astype(float)
    known = rng.random(count) < known_share
    seconds = 0.03 + AHEAD_S * (ahead + PER_CONNECTION * (is_open - 1))
    seconds += own * np.where(known, known_s, new_s)
    seconds *= rng.lognormal(0, 0.2, count)
    return Answers().then(Samples(ahead, own, is_open, seconds), known)


@pytest.mark.parametrize(
    ("new_s", "known_s", "requests"),
    [(10e-6, 2e-6, 4.0), (15e-6, 2e-6, 6.5), (8e-6, 3e-6, 2.5), (40e-6, 1e-6, MOST),
     (6e-6, 3.5e-6, LEAST_KNOWN), (5e-6, 5e-6, LEAST), (2e-6, 9e-6, LEAST)],
)  # fmt: skip
def test_it_is_worth_twice_what_it_saves_in_bytes_that_wait(new_s, known_s, requests) -> None:
    found = worth(answers(new_s, known_s), USUAL, PER_CONNECTION)
    assert found.requests == pytest.approx(requests, rel=0.15)
    assert found.bytes == pytest.approx(USUAL * requests, rel=0.15)
    assert found.new_s == pytest.approx(USUAL * new_s, rel=0.15, abs=0.01)
    assert found.known_s == pytest.approx(USUAL * known_s, rel=0.2, abs=0.01)
    assert found.known_share == pytest.approx(0.7, abs=0.05)


def test_where_half_of_what_was_kept_is_gone_it_is_worth_half() -> None:
    """Answers to clients that are known are of two kinds then: the mean counts."""
    hits, misses = answers(13e-6, 1e-6, 0.5, 1000), answers(13e-6, 13e-6, 0.5, 1000, seed=2)
    both = Answers(np.random.default_rng(3).permutation(np.concatenate((hits.rows, misses.rows))))
    assert worth(both, USUAL, PER_CONNECTION).requests == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_nobody_is_new_or_known_nothing_is_learned(share: float) -> None:
    """As behind a gateway, or where each client asks once."""
    found = worth(answers(30e-6, 1e-6, share), USUAL, PER_CONNECTION)
    assert (found.requests, found.new_s, found.known_s) == (GRANTED, None, None)
    assert found.known_share == pytest.approx(share)
    assert found.bytes == USUAL


def test_where_places_have_run_out_bytes_ahead_do_not_make_homes_worthless() -> None:
    """A waiting byte seems to take three times as long as one of a new client."""
    found = answers(1.3e-6, 0.1e-6)
    assert worth(found, USUAL, PER_CONNECTION).requests == pytest.approx(LEAST_KNOWN, rel=0.05)


def test_who_has_been_elsewhere_since_is_not_asked() -> None:
    found = answers(10e-6, 2e-6)
    back = np.array(found.rows[:500])
    back[:, 3], back[:, 4] = BACK, 99.0
    both = Answers(np.concatenate((back, found.rows)))
    told = worth(both, USUAL, PER_CONNECTION)
    assert told.requests == pytest.approx(4.0, rel=0.15)
    assert told.known_share == pytest.approx(0.72, abs=0.05), "but it is known"
    assert worth(Answers(back), USUAL, PER_CONNECTION).requests == GRANTED


def test_a_few_are_hardly_believed() -> None:
    few = worth(answers(15e-6, 1e-6, count=12), USUAL, PER_CONNECTION)
    assert GRANTED < few.requests < 0.5 * (GRANTED + 7)
    assert few.new_s is None
    assert worth(Answers(), USUAL, PER_CONNECTION) == Worth(usual_bytes=USUAL)


def test_what_is_kept_is_bounded_and_the_newest() -> None:
    found = answers(1e-6, 1e-6, count=KEPT)
    more = answers(9e-6, 9e-6, count=5)
    samples = Samples(*(more.rows[:, n] for n in (0, 2, 1, 4)))
    rows = found.then(samples, np.ones(5, dtype=bool)).rows
    assert len(rows) == KEPT
    assert rows[-5:, 4].tolist() == more.rows[:, 4].tolist()


numbers = st.floats(0, 1e9)


@given(
    st.lists(
        st.tuples(numbers, st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1e-6, 600),
                  st.sampled_from(Client)),
        min_size=1, max_size=60,
    ),
    st.floats(1, 1e8),
    st.floats(1, 1e6),
)  # fmt: skip
def test_whatever_comes_it_is_a_number_within_its_bounds(rows, usual, per_connection) -> None:
    ahead, own, is_open, seconds, known = (np.array(column) for column in zip(*rows, strict=True))
    samples = Samples(ahead, own, is_open, seconds)
    found = worth(Answers().then(samples, known), usual, per_connection)
    assert LEAST <= found.requests <= MOST
    assert LEAST_BYTES <= found.bytes <= MOST_BYTES
    for told in (found.new_s, found.known_s):
        assert told is None or 0 <= told < 1e6
