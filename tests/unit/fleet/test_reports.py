"""What the balancers of a fleet report, and how two of them differ."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StoreError
from agent.fleet.reports import (
    Difference,
    Part,
    Report,
    Work,
    differences,
    drifted,
    read_parts,
    read_report,
    write_parts,
    write_report,
)

COUNTS = st.integers(0, 1000)
WORKS = st.builds(
    Work, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.lists(COUNTS, max_size=5).map(tuple)
)


def report(node: str = "lb1", version: int = 1, services: str = "aa") -> Report:
    return Report(node, "id", "0.1.0", 100.0, "master", version, 50.0, services=services)


@given(
    refused=st.none() | st.tuples(COUNTS, st.text(max_size=5)),
    frozen=st.none() | st.text(max_size=5),
    work=WORKS,
    before=WORKS,
)
def test_a_report_is_read_as_it_was_written(
    refused: tuple[int, str] | None, frozen: str | None, work: Work, before: Work
) -> None:
    one = Report(
        "lb1", "id", "0.1.0", 1.5, "alone", 3, 0.5, refused, "wrong", frozen, "a", "b", ("chat",),
        work, before,
    )  # fmt: skip
    assert read_report("lb1", write_report(one)) == one


@pytest.mark.parametrize("value", [b"", b"x", b"[]", b"{}", b'{"ident": 7}', b"[" * 99_999])
def test_what_is_no_report_is_refused_with_the_balancers_name(value: bytes) -> None:
    with pytest.raises(StoreError, match="balancer lb7"):
        read_report("lb7", value)


def test_a_report_of_a_newer_release_may_hold_more_and_of_an_older_one_less() -> None:
    document = json.loads(write_report(report()))
    document["news"] = 7
    del document["work"], document["before"], document["refused"], document["frozen"]
    assert read_report("lb1", json.dumps(document).encode()) == report()


@given(before=WORKS, more=WORKS)
def test_what_was_added_is_the_difference(before: Work, more: Work) -> None:
    since = (before + more).since(before)
    assert (since.opened, since.failed) == (more.opened, more.failed)
    assert sum(since.first_byte) == sum(more.first_byte)


def test_a_total_that_went_back_counts_from_nothing() -> None:
    """Its backend was removed, or the tables are new."""
    assert Work(opened=3, first_byte=(1,)).since(Work(opened=10, first_byte=(4,))) == Work(
        opened=3, first_byte=(1,)
    )


def test_parts_say_in_what_two_balancers_differ() -> None:
    one = {
        "same": Part("s", "d", "r"),
        "edited": Part("s1", "d", "r"),
        "found": Part("s", "d1", "r"),
        "up": Part("s", "d", "r1"),
        "mine": Part("s", "d", "r"),
    }
    other = {
        "same": Part("s", "d", "r"),
        "edited": Part("s2", "d", "r"),
        "found": Part("s", "d2", "r"),
        "up": Part("s", "d", "r2"),
        "yours": Part("s", "d", "r"),
    }
    assert read_parts("lb1", write_parts(one)) == one
    found = differences(("lb1", one), ("lb2", other))
    assert found == (
        Difference("edited", "other settings or backends"),
        Difference("found", "their sources have named other backends"),
        Difference("up", "other rings: they differ in which backends are up, or in weights"),
        Difference("mine", "only lb1 has it"),
        Difference("yours", "only lb2 has it"),
    )
    assert differences(("lb1", one), ("lb3", one)) == ()


@pytest.mark.parametrize("value", [b"7", b'{"chat": 3}', b'{"chat": ["a", "b"]}'])
def test_parts_that_cannot_be_read_are_refused(value: bytes) -> None:
    with pytest.raises(StoreError, match="balancer lb1"):
        read_parts("lb1", value)


def test_who_runs_something_else_than_its_version_has_drifted() -> None:
    reports = [report("lb1"), report("lb2", services="bb"), report("lb3", 2), report("lb4", 9)]
    assert drifted(reports, {1: "aa", 2: "aa"}) == {"lb2"}
