"""Owns the SYNs that wait for the first usable backend of their service, in the program's table
(bpf/hold.h), and sends them on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agent.dataplane import abi, libbpf
from agent.dataplane.flowhash import flow_hash
from agent.dataplane.flows import address_of, tagged
from agent.dataplane.program import Dataplane
from agent.dataplane.rerun import Frame, Rerun
from agent.dataplane.tables import Table
from agent.model import Address, Protocol
from agent.state.segment import checksum
from agent.state.tables import ServiceEntry

HELD_SYNS = 4096  # in the whole table (bpf/maps.h); newer ones push out the oldest
# A client that has sent nothing for longer has given up: it doubles its timer until the connection
# attempt is over, and at Linux's default of six retries its last wait is 64 s.
HELD_S = 64.0

_VLAN = (0x8100, 0x88A8)
_IP = {0x0800: 4, 0x86DD: 6}


@dataclass(frozen=True, slots=True)
class HeldSyn:
    """A SYN that waits: which client's, to which VIP, and the frame as it came in."""

    key: bytes
    client: Address
    client_port: int
    vip: Address
    port: int
    ifindex: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Waiting:
    """The SYNs that wait, as rows of the table: ``keys`` (HELD_KEY) and ``rows`` (HELD_SYN).

    They are parsed only to be sent on: anybody can fill the table, and it is read each second.
    """

    keys: Table
    rows: Table

    def by_service(self) -> dict[int, int]:
        """Return how many wait, by service id."""
        ids, counts = np.unique(self.rows["service"], return_counts=True)
        return {int(ident): int(count) for ident, count in zip(ids, counts, strict=True)}

    def of(self, service_id: int) -> Waiting:
        """Return those of a service."""
        keep = self.rows["service"] == service_id
        return Waiting(self.keys[keep], self.rows[keep])

    def syns(self) -> Iterator[HeldSyn]:
        """Yield them, those that have waited longest for an answer first."""
        for i in np.argsort(self.rows["ns"], kind="stable"):
            syn = _syn(self.keys[i], self.rows[i])
            if syn is not None:
                yield syn


class HeldSyns:
    """The SYNs that wait in the table of the program that runs now."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._rerun = Rerun(lambda: (dataplane.program.fd, dataplane.program.kind))

    def read(self, now_ns: int) -> Waiting:
        """Return those whose clients may still be waiting, and forget the others.

        ``now_ns``: by the monotonic clock. OSError if the table cannot be read.
        """
        keys, values = b"", b""
        if self._dataplane.features.hold:
            sizes = abi.HELD_KEY.itemsize, abi.HELD_SYN.itemsize
            keys, values = libbpf.map_batch(self._table, *sizes, HELD_SYNS)
        found = Waiting(
            np.frombuffer(keys, dtype=abi.HELD_KEY),
            np.frombuffer(values, dtype=abi.HELD_SYN),
        )
        given_up = now_ns - found.rows["ns"].astype(np.int64) > HELD_S * 1e9
        self.forget(found.keys[given_up])
        return Waiting(found.keys[~given_up], found.rows[~given_up])

    @property
    def _table(self) -> int:
        return self._dataplane.program.tables["held_syns"]

    def forget(self, keys: Table) -> None:
        """Take the SYNs with these keys out of the table."""
        for key in keys:
            libbpf.map_delete(self._table, key.tobytes())

    def send(self, syn: HeldSyn, service: ServiceEntry) -> Frame | None:
        """Run a SYN through the program, and take it out of the table.

        Returns the frame for its backend. None: the program does not send it on, or has no room to
        record the flow; the client's timer remains.
        """
        tables = self._dataplane.tables
        libbpf.map_delete(self._table, syn.key)
        sent = self._rerun.send(syn.ifindex, syn.frame)
        if sent is None:
            return None
        below_prefix = syn.vip if service.vip_bits is not None else None
        value = flow_hash(
            self._dataplane.keys, service.salt, syn.client, syn.client_port, syn.port, below_prefix
        )
        for _, word in tagged(tables, value):
            backend = tables.backends[(word >> abi.FLOW_BACKEND_SHIFT) & 0xFFFF]
            return sent.to(backend)
        return None


def _syn(ends: Table, held: Table) -> HeldSyn | None:
    """Parse an element of the table; None: its frame is none that we know."""
    frame = held["frame"][: int(held["len"])].tobytes()
    if held["tag"]:
        frame = frame[:12] + held["tag"].tobytes() + frame[12:]
    family = _family(frame)
    if family is None:
        return None
    return HeldSyn(
        key=ends.tobytes(),
        client=address_of(ends["saddr"], family),
        client_port=int(ends["sport"]),
        vip=address_of(ends["daddr"], family),
        port=int(ends["dport"]),
        ifindex=int(held["ifindex"]),
        frame=finished(frame),
    )


def _types(frame: bytes) -> Iterator[tuple[int, int]]:
    """Yield the EtherTypes of a frame, outermost first, and where what they announce begins."""
    at = 12
    while at + 2 <= len(frame):
        (found,) = struct.unpack_from("!H", frame, at)
        yield found, at + 2
        if found not in _VLAN:
            return
        at += 4


def _family(frame: bytes) -> int | None:
    return next((_IP[kind] for kind, _ in _types(frame) if kind in _IP), None)


def finished(frame: bytes) -> bytes:
    """Return a frame with a TCP segment with its checksum, if its sender has left that to a card.

    Where no card is on the way, between two network namespaces, a packet has the sum of the
    pseudo-header in that place, not even complemented. All other frames stay as they are.
    """
    at, version = next(((at, _IP[kind]) for kind, at in _types(frame) if kind in _IP), (0, 0))
    start = at + (40 if version == 6 else 4 * (frame[at] & 0xF))
    if not version or len(frame) < start + 20:
        return frame
    if frame[at + (6 if version == 6 else 9)] != Protocol.TCP.number:
        return frame  # extension headers
    ends = frame[at + 8 : at + 40] if version == 6 else frame[at + 12 : at + 20]
    total = struct.unpack_from("!H", frame, at + (4 if version == 6 else 2))[0]
    end = at + total + (40 if version == 6 else 0)
    segment = frame[start:end]
    pseudo = ends + struct.pack("!II", len(segment), Protocol.TCP.number)
    (found,) = struct.unpack_from("!H", frame, start + 16)
    if found != ~checksum(pseudo) & 0xFFFF:
        return frame
    bare = segment[:16] + b"\0\0" + segment[18:]
    check = checksum(pseudo + bare + bytes(len(bare) % 2))
    return frame[: start + 16] + struct.pack("!H", check) + frame[start + 18 :]
