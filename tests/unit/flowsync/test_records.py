"""The form in which flows travel: its layout is a promise to nodes of other releases."""

from __future__ import annotations

import numpy as np
import pytest

from agent.flowsync.records import RECORD, VERSION, from_bytes, joined, to_bytes


def test_the_layout_of_version_1_is_this_one():
    assert (VERSION, RECORD.itemsize) == (1, 82)
    row = np.zeros(1, dtype=RECORD)
    row["slot"], row["client_port"], row["vlan"] = 0x01020304, 0x0506, (7, 8, 9, 10)
    data = to_bytes(row)
    assert data[:4] == bytes((1, 2, 3, 4))
    assert data[40:42] == bytes((5, 6))
    assert data[-8:] == bytes((0, 7, 0, 8, 0, 9, 0, 10))


def test_records_stay_in_network_order_when_they_are_joined():
    """NumPy joins arrays in the order of the machine."""
    row = np.zeros(2, dtype=RECORD)
    row["service"] = 1
    there = from_bytes(to_bytes(joined((row, row[:1]))))
    assert there["service"].tolist() == [1, 1, 1]
    assert len(joined(())) == 0


@pytest.mark.parametrize("size", [1, RECORD.itemsize - 1, RECORD.itemsize + 1])
def test_parts_of_records_are_refused(size: int):
    with pytest.raises(ValueError, match="whole records"):
        from_bytes(bytes(size))
