"""Owns the wire format of a flow: one packed record in network byte order, with a version.

A record holds a flow's addresses and ports, so that the receiver can hash it under its own keys.
The ids are the sender's (``agent.flowsync.identity`` maps them). ``slot`` is the sender's handle: a
record replaces everything that the sender has sent about that slot before, so the end of a flow
needs no addresses. Records of one sender have to be taken in the order in which it made them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VERSION = 1
GONE = 0  # state: the flow last sent for this slot is over; the other fields are ignored
MOST_TAGS = 2  # VLAN tags

RECORD = np.dtype(
    [
        ("slot", ">u4"),  # of the sender's flow table
        ("state", "u1"),  # enum flow_state without the awaiting bit, or GONE
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
        ("mac", "u1", (6,)),  # nat, fullnat: source MAC address of the client's packets
        ("vlan", ">u2", (4,)),  # protocol and control information of each tag, outer first
    ]
)

type Records = npt.NDArray[np.void]


def joined(parts: Sequence[Records]) -> Records:
    """Return all records in one array. Plain concatenation would use this machine's byte order."""
    return np.concatenate((np.zeros(0, dtype=RECORD), *parts), dtype=RECORD)


def to_bytes(records: Records) -> bytes:
    """Return the records as they go over the wire."""
    return records.astype(RECORD, copy=False).tobytes()


def from_bytes(data: bytes | memoryview) -> Records:
    """Return read-only records. ValueError if the data is not a whole number of records."""
    if len(data) % RECORD.itemsize:
        raise ValueError(f"{len(data)} bytes are not whole records of {RECORD.itemsize}")
    return np.frombuffer(data, dtype=RECORD)
