"""Which backends and services a page of a list shows."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Backend, BackendRef, BackendState, ServiceState
from agent.state import ranking
from agent.state.queries import ListQuery, SortBy
from agent.state.ranking import BACKEND_STATES, SERVICE_STATES, Figures
from tests.unit.state.world import all_up, web

SERVICES = tuple(
    web(
        *(Backend(f"gpu-{n}", ip_address(f"10.0.{number}.{n}")) for n in range(1, 6)),
        name=name,
        vip=f"203.0.113.{number}",
    )
    for number, name in enumerate(("chat", "embed", "audio"), 1)
)
COUNT = sum(len(service.backends) for service in SERVICES)


NOW = all_up(*SERVICES)


def figures(*values: int) -> Figures:
    """The same of every kind."""
    given_ = np.array([*values, *[0] * (COUNT - len(values))], np.int64)
    return Figures(given_, given_, given_, given_)


numbers = st.lists(st.integers(-1, 4), min_size=COUNT, max_size=COUNT)


@given(numbers, st.sampled_from(SortBy), st.integers(1, 7))
def test_pages_one_after_another_are_the_whole_list_in_order(
    values: list[int], sort: SortBy, limit: int
):
    told = figures(*values)
    whole, matched = ranking.backends(NOW, told, ListQuery(sort, limit=COUNT))
    assert (sorted(whole, key=str), matched) == (sorted(NOW.roster.refs, key=str), COUNT)
    pages = [
        ranking.backends(NOW, told, ListQuery(sort, limit, first))[0]
        for first in range(0, COUNT, limit)
    ]
    assert [ref for page in pages for ref in page] == whole
    if told.of(sort) is not None:
        sorted_by = [values[NOW.roster.place[ref]] for ref in whole]
        assert sorted_by == sorted(values, reverse=True)


def test_equal_ones_go_by_their_names_and_so_stay_where_they_are():
    found, _ = ranking.backends(NOW, figures(), ListQuery(SortBy.NEW))
    assert [str(ref) for ref in found[:2]] == ["audio/gpu-1", "audio/gpu-2"]


def test_the_worst_states_come_first():
    ref, other = BackendRef("chat", "gpu-4"), BackendRef("embed", "gpu-2")
    verdicts = dict(NOW.verdicts)
    verdicts[ref] = replace(verdicts[ref], state=BackendState.DOWN)
    verdicts[other] = replace(verdicts[other], state=BackendState.DRAIN)
    now = replace(NOW, verdicts=verdicts)
    found, _ = ranking.backends(now, figures(), ListQuery(SortBy.STATE, limit=2))
    assert found == [ref, other]
    down, matched = ranking.backends(now, figures(), ListQuery(states=frozenset({"down"})))
    assert (down, matched) == ([ref], 1)
    assert set(BACKEND_STATES) == set(BackendState)
    assert set(SERVICE_STATES) == set(ServiceState)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (ListQuery(service="chat"), 5),
        (ListQuery(service="chat", backend="gpu-3"), 1),
        (ListQuery(match="GPU-3"), 3),
        (ListQuery(match="bed/gpu"), 5),
        (ListQuery(match="10.0.3."), 5),
        (ListQuery(service="nobody"), 0),
    ],
)
def test_backends_are_found_by_parts_of_names_and_addresses(query: ListQuery, wanted: int):
    assert ranking.backends(NOW, figures(), query)[1] == wanted


def test_services_go_by_the_sums_of_their_backends():
    told = figures(1, 1, 1, 1, 1, 3, 0, 0, 0, 0, 4)
    flows, matched = ranking.services(NOW, told, ListQuery(SortBy.FLOWS))
    assert (flows, matched) == (["chat", "audio", "embed"], 3)
    slowest, _ = ranking.services(NOW, told, ListQuery(SortBy.FIRST_BYTE))
    assert slowest == ["audio", "embed", "chat"]
    assert ranking.services(NOW, told, ListQuery(match="113.2"))[0] == ["embed"]
    assert ranking.services(NOW, told, ListQuery(limit=1, offset=1))[0] == ["chat"]
