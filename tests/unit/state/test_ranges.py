"""Port ranges as blocks of a longest-prefix match."""

import pytest

from agent.state.ranges import MOST_BLOCKS, blocks, covers


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (80, 80, ((80, 16),)),
        (80, 81, ((80, 15),)),
        (81, 82, ((81, 16), (82, 16))),
        (8000, 8010, ((8000, 13), (8008, 15), (8010, 16))),
        (0, 65_535, ((0, 0),)),
        (32_768, 65_535, ((32_768, 1),)),
        (65_535, 65_535, ((65_535, 16),)),
    ],
)
def test_a_range_is_the_fewest_aligned_blocks(first: int, last: int, expected):
    assert blocks(first, last) == expected


def test_no_range_takes_more_blocks_than_the_tables_are_made_for():
    assert len(blocks(1, 65_534)) == MOST_BLOCKS


@pytest.mark.parametrize(
    ("port", "inside"), [(8007, True), (8000, True), (8008, False), (7999, False)]
)
def test_a_block_has_the_ports_that_begin_like_it(port: int, inside: bool):
    assert covers(8000, 13, port) == inside
