"""Compare-and-exchange on tables: one of many gets a word, and nothing is written beside it."""

from __future__ import annotations

import threading
from unittest import mock

import numpy as np
import pytest

from agent.dataplane import atomics
from agent.dataplane.atomics import exchange

ROW = np.dtype([("owner", "u8"), ("port", "u2"), ("pad", "u1", (6,))])


def words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@pytest.fixture(params=["libatomic", "without"])
def _library(request: pytest.FixtureRequest):
    if request.param == "without":
        with mock.patch.object(atomics, "_compare_exchange", return_value=None):
            yield
    else:
        assert atomics._compare_exchange() is not None, "setup.sh installs it"
        yield


@pytest.mark.usefixtures("_library")
def test_what_is_as_expected_is_written_and_the_rest_is_left():
    table = words(1, 2, 3, 2**64 - 1)
    done = exchange(table, np.array([3, 0, 1]), words(2**64 - 1, 7, 2), words(5, 6, 2**63))
    assert done.tolist() == [True, False, True]
    assert table.tolist() == [1, 2**63, 3, 5]


@pytest.mark.usefixtures("_library")
def test_one_value_may_be_for_all_and_there_may_be_none():
    table = words(4, 4, 5)
    assert exchange(table, np.array([0, 1, 2]), 4, 0).tolist() == [True, True, False]
    assert table.tolist() == [0, 0, 5]
    assert exchange(table, np.array([], dtype=np.int64), words(), words()).tolist() == []


@pytest.mark.usefixtures("_library")
def test_a_field_of_a_table_is_written_and_nothing_beside_it():
    table = np.zeros(4, dtype=ROW)
    table["port"] = 0xFFFF
    done = exchange(table["owner"], np.array([2, 1]), words(0, 9), words(77, 78))
    assert done.tolist() == [True, False]
    assert table["owner"].tolist() == [0, 0, 77, 0]
    assert (table["port"] == 0xFFFF).all()


@pytest.mark.parametrize("place", [-1, 3])
def test_a_place_outside_of_the_table_is_refused(place: int):
    with pytest.raises(IndexError):
        exchange(words(1, 2, 3), np.array([place]), 1, 2)


def test_of_many_that_want_a_word_one_gets_it():
    table = np.zeros(2000, dtype=np.uint64)
    start, got = threading.Barrier(4), {}

    def want(me: int) -> None:
        start.wait()
        got[me] = [bool(exchange(table, np.array([n]), 0, me)[0]) for n in range(len(table))]

    threads = [threading.Thread(target=want, args=(me,)) for me in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sum(got[me][n] for me in got) == 1 for n in range(len(table)))
    assert all(got[int(owner)][n] for n, owner in enumerate(table))


def test_without_the_library_it_is_said_once_with_the_remedy():
    atomics._compare_exchange.cache_clear()
    try:
        with (
            mock.patch.object(atomics, "LIBRARY", "libnowhere.so.1"),
            mock.patch.object(atomics.log, "warning") as said,
        ):
            for _ in range(2):
                assert exchange(words(1), np.array([0]), 1, 2).tolist() == [True]
        said.assert_called_once()
        assert said.call_args.kwargs["remedy"] == "apt-get install libatomic1"
    finally:
        atomics._compare_exchange.cache_clear()
