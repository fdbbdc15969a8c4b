"""Any port range: its blocks are the range, each port once, and they are few and aligned."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agent.state.ranges import MOST_BLOCKS, PORT_BITS, blocks, covers

ports = st.integers(0, 65_535)


@given(ports, ports)
def test_the_blocks_cover_exactly_the_range(one: int, other: int):
    first, last = sorted((one, other))
    found = blocks(first, last)
    ends = [(port, port + (1 << PORT_BITS - bits)) for port, bits in found]
    assert ends[0][0] == first
    assert ends[-1][1] == last + 1
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ends))


@given(ports, ports)
def test_every_block_is_aligned_and_they_are_few(one: int, other: int):
    found = blocks(*sorted((one, other)))
    assert all(port % (1 << PORT_BITS - bits) == 0 for port, bits in found)
    assert len(found) <= MOST_BLOCKS


@given(ports, ports, ports)
def test_a_port_is_in_one_block_or_in_none(one: int, other: int, port: int):
    first, last = sorted((one, other))
    having = [block for block in blocks(first, last) if covers(*block, port)]
    assert len(having) == (first <= port <= last)
