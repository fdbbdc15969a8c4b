"""Owns the form in which a flow travels: one packed record, in network order, of one version.

A record has a flow's addresses and ports, so that whoever gets it can hash it under keys of its
own; ids are the sender's (``agent.flowsync.identity`` maps them). ``slot`` is the sender's
handle: what it says of a slot takes the place of all that it has said of that slot before, so a
flow's end needs no addresses. Records of one sender have to be taken in the order in which it
made them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VERSION = 1
GONE = 0  # state: what the sender last told of this slot is over; no other field counts
MOST_TAGS = 2  # VLAN tags

RECORD = np.dtype(
    [
        ("slot", ">u4"),  # of the sender's flow table
        ("state", "u1"),  # enum flow_state, without the awaiting bit; GONE
        ("family", "u1"),  # 4 or 6
        ("l4_proto", "u1"),
        ("tags", "u1"),  # VLAN tags of the client's packets
        ("client", "u1", (16,)),  # IPv4: the first four bytes
        ("vip", "u1", (16,)),
        ("client_port", ">u2"),
        ("vip_port", ">u2"),
        ("service", ">u2"),
        ("backend", ">u2"),
        ("age_ms", ">u4"),  # since it was established
        ("idle_ms", ">u4"),  # since its last packet
        ("rtt_us", ">u4"),
        ("seq", ">u4"),  # one past the client's highest byte, where requests are counted
        ("nat_port", ">u2"),  # fullnat: the source port; 0: none
        ("nat_source", "u1"),  # the number of the source address
        ("talk", "u1"),  # enum talk
        ("mac", "u1", (6,)),  # nat, fullnat: from whom the client's packets come
        ("vlan", ">u2", (4,)),  # protocol and control information of each tag, outer first
    ]
)

type Records = npt.NDArray[np.void]


def joined(parts: Sequence[Records]) -> Records:
    """All of them in one array; NumPy alone would join them in this machine's byte order."""
    return np.concatenate((np.zeros(0, dtype=RECORD), *parts), dtype=RECORD)


def to_bytes(records: Records) -> bytes:
    """As they go over the wire."""
    return records.astype(RECORD, copy=False).tobytes()


def from_bytes(data: bytes | memoryview) -> Records:
    """Read-only records. ValueError if it is no whole number of them."""
    if len(data) % RECORD.itemsize:
        raise ValueError(f"{len(data)} bytes are no records of {RECORD.itemsize}")
    return np.frombuffer(data, dtype=RECORD)
