"""What a tier takes over, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.tier.run import MOST_WAITS, WRITTEN_S, Written, is_being_written
from tests.unit.tier.test_haproxy import tier_of

NOW_S = 1_000_000.0
OLD = (7, int((NOW_S - 3600) * 1e9), 0)  # inode, times


@pytest.fixture
def before() -> Written:
    return Written(tier_of("/certificates"), (), (OLD, None), 0, "")


@pytest.mark.parametrize(
    ("inode", "age_s", "waits"),
    [
        (7, 0.0, True),
        (7, WRITTEN_S / 2, True),
        (7, WRITTEN_S, False),
        (7, -5.0, False),  # of a host whose clock was ahead: nothing is known of its age
        (8, 0.0, False),  # it was put in its place
    ],
)
def test_a_file_that_is_written_in_its_place_may_be_half_of_one(
    before: Written, inode: int, age_s: float, waits: bool
):
    """`cp` and many editors empty a file first. A look between that and the rest took a file of
    keys for an empty one, and each client was refused for two seconds.
    """
    stamp = (inode, int((NOW_S - age_s) * 1e9), 0)
    assert is_being_written(before, replace(before, files=(stamp, None)), NOW_S) is waits
    assert MOST_WAITS > 1


def test_a_file_that_comes_or_goes_is_not_waited_for(before: Written):
    fresh = (9, int(NOW_S * 1e9), 0)
    assert not is_being_written(before, replace(before, files=(OLD, fresh)), NOW_S)
    assert not is_being_written(before, replace(before, files=(None, None)), NOW_S)


def test_other_settings_are_not_waited_with(before: Written):
    """They may name another number of files."""
    other = replace(before, tier=tier_of("/others"), files=())
    assert not is_being_written(before, other, NOW_S)
