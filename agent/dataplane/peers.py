"""Owns what the packet path knows of other balancers: from which of them it accepts packets that
were passed on, and to which it passes on packets of flows that it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from agent.dataplane import abi, contents
from agent.dataplane.tables import SharedTables, Table
from agent.model import Address, Forward, NextHop
from agent.state.tables import BackendEntry

_TABLE = "peers"
_KNOWN = np.ones(1, dtype=abi.PEER).tobytes()


@dataclass(frozen=True, slots=True)
class PeerPath:
    """The way to another balancer.

    ``own``: the address by which that balancer knows this one. ``ifindex``: the interface to send
    on; 0: the one that the packet came in by.
    """

    address: Address
    own: Address
    hop: NextHop
    ifindex: int


def accept(tables: SharedTables, ends: Collection[tuple[Address, Address]]) -> None:
    """Accept packets only between these ends: the other balancer's address, and ours."""
    wanted = {_key(*each) for each in ends}
    for key, _ in list(tables.items(_TABLE)):
        if key not in wanted:
            tables.delete(_TABLE, key)
    for key in wanted:
        tables.put(_TABLE, key, _KNOWN)


def pass_on(tables: SharedTables, ways: Sequence[tuple[PeerPath, int]]) -> None:
    """Pass packets on to these balancers, each until its deadline, in jiffies.

    If there are none, the packet path acts as if all other balancers were dead.
    """
    for number in range(abi.PEER_ROWS):
        row = tables.peers[number : number + 1]
        if not ways:
            row["until"] = 0
            continue
        way, until = ways[number % len(ways)]
        _write(row, _row(way), until)


def _key(address: Address, own: Address) -> bytes:
    key = np.zeros(1, dtype=abi.PEER_KEY)
    key["addr"], key["own"] = contents.words(address), contents.words(own)
    return key.tobytes()


def _row(way: PeerPath) -> Table:
    entry = BackendEntry(
        service_id=0,
        address=way.address,
        usable=False,
        alive=True,
        forward=Forward.GUE,
        ifindex=way.ifindex,
        mac=way.hop.mac or "00:00:00:00:00:00",
        source_mac=way.hop.source_mac,
        mtu=min(way.hop.mtu, 0xFFFF),
        timeout_ticks=(0,) * abi.FLOW_STATES,
        source=way.own,
        vlans=way.hop.vlans,
    )
    row = contents.backend_row(entry)
    row["forward"] = abi.ForwardId.PEER
    return row


def _write(row: Table, wanted: Table, until: int) -> None:
    """Write a row so that a packet sees the whole of it, or a balancer that is not alive."""
    wanted["until"] = row["until"]
    if (row.view(np.uint64) != wanted.view(np.uint64)).any():
        wanted["until"] = row["until"] = 0
        row.view(np.uint64)[:] = wanted.view(np.uint64)
    row["until"] = until % 2**32 or 1
