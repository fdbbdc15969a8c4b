"""Holds new flows back for a moment: their first packets are dropped, and clients send them again.

For a planned handover: what is recorded goes on, and nothing comes in that the other balancer
would not know. It is in the shared tables alone, so whatever happens to the agent meanwhile, its
next pass puts it right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from agent.dataplane import abi
from agent.dataplane.tables import SharedTables

_SERVICES = ("services4", "services6")


@contextlib.contextmanager
def new_flows_held(tables: SharedTables) -> Iterator[None]:
    """No backend takes new flows, and nobody is told so. The caller keeps passes away."""
    silenced = _answer_nobody(tables)
    flags = tables.backends["flags"]
    before = flags.copy()
    try:
        flags &= np.uint32(~abi.BACKEND_F_USABLE & 0xFFFFFFFF)
        yield
    finally:
        flags[:] = before
        for table, key, value in silenced:
            tables.put(table, key, value)


def _answer_nobody(tables: SharedTables) -> list[tuple[str, bytes, bytes]]:
    """Take the services' resets away; what they were."""
    silenced = []
    for table in _SERVICES:
        for key, value in list(tables.items(table)):
            quiet = bytearray(value)
            flags = np.frombuffer(quiet, dtype=abi.SERVICE)["flags"]
            if flags[0] & abi.SERVICE_F_RESET:
                flags &= np.uint8(~abi.SERVICE_F_RESET & 0xFF)
                tables.put(table, key, bytes(quiet))
                silenced.append((table, key, value))
    return silenced
