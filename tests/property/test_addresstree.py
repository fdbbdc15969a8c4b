"""Trees of prefixes: what is found is what a plain search finds, of any prefixes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Address
from agent.state.addresstree import Prefix, build, lists_of, nodes_of, prefix_of

WIDTH = {4: 32, 6: 128}


def cut(value: int, bits: int) -> int:
    """Without its last bits."""
    return value >> bits << bits


def prefixes(version: int) -> st.SearchStrategy[list[Prefix]]:
    """Many in the same few networks, so that they lie in each other."""
    width = WIDTH[version]
    starts = st.sampled_from([0x0A01 << width - 16, 0xC633 << width - 16, 0])
    lengths = st.one_of(st.integers(15, width), st.sampled_from([0, 8, 16, 20, 24, width]))
    low = st.integers(0, 2 ** (width - 16) - 1) | st.integers(0, 2**10)
    return st.lists(
        st.builds(
            lambda start, rest, length: (cut(start | rest, width - length), length),
            starts, low, lengths,
        ),
        max_size=12,
    )  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
@given(data=st.data())
def test_an_address_is_on_the_lists_that_hold_it(version: int, data: st.DataObject):
    width = WIDTH[version]
    lists = [(1 << bit, data.draw(prefixes(version))) for bit in (0, 1, 29)]
    tree = build(lists, version)
    if not any(held for _, held in lists):
        assert not nodes_of(tree)
        return
    known = [value for _, held in lists for value, _ in held]
    for _ in range(8):
        value = data.draw(st.sampled_from(known)) ^ (1 << data.draw(st.integers(0, width - 1)))
        address: Address = IPv4Address(value) if version == 4 else IPv6Address(value)
        wanted = sum(
            bit
            for bit, held in lists
            if any(value >> width - length == start >> width - length for start, length in held)
        )
        assert lists_of(tree, 0, address) == wanted


def test_what_a_list_has_already_takes_no_room():
    wide, narrow = prefix_of(ip_network("10.0.0.0/8")), prefix_of(ip_network("10.1.2.3/32"))
    assert build([(1, [wide, narrow])], 4) == build([(1, [wide])], 4)
    assert nodes_of(build([(1, [wide]), (2, [narrow])], 4)) == nodes_of(build([(2, [narrow])], 4))


def test_prefixes_are_numbers():
    assert prefix_of(ip_network("192.0.2.0/24")) == (0xC0000200, 24)
