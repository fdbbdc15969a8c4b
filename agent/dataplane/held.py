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
    """A SYN that waits: which client's, to which service id, and the frame as it came in."""

    key: bytes
    service_id: int
    client: Address
    client_port: int
    vip: Address
    port: int
    age_s: float
    ifindex: int
    frame: bytes


class HeldSyns:
    """The SYNs that wait in the table of the program that runs now."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._rerun = Rerun(lambda: (dataplane.program.fd, dataplane.program.kind))

    def read(self, now_ns: int) -> tuple[HeldSyn, ...]:
        """Return those whose clients may still be waiting, the oldest first, and forget the others.

        ``now_ns``: by the monotonic clock. OSError if the table cannot be read.
        """
        if not self._dataplane.features.hold:
            return ()
        fd = self._dataplane.program.tables["held_syns"]
        sizes = abi.HELD_KEY.itemsize, abi.HELD_SYN.itemsize
        found = []
        for key, value in libbpf.map_batch(fd, *sizes, HELD_SYNS):
            syn = _syn(key, value, now_ns)
            if syn is None or syn.age_s > HELD_S:
                libbpf.map_delete(fd, key)
            else:
                found.append(syn)
        return tuple(sorted(found, key=lambda syn: -syn.age_s))

    def forget(self, syn: HeldSyn) -> None:
        """Take a SYN out of the table."""
        libbpf.map_delete(self._dataplane.program.tables["held_syns"], syn.key)

    def send(self, syn: HeldSyn, service: ServiceEntry) -> Frame | None:
        """Run a SYN through the program, and forget it.

        Returns the frame for its backend. None: the program does not send it on, or has no room to
        record the flow; the client's timer remains.
        """
        tables = self._dataplane.tables
        self.forget(syn)
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


def _syn(key: bytes, value: bytes, now_ns: int) -> HeldSyn | None:
    """Parse an element of the table; None: its frame is none that we know."""
    ends = np.frombuffer(key, dtype=abi.HELD_KEY)[0]
    held = np.frombuffer(value, dtype=abi.HELD_SYN)[0]
    frame = held["frame"][: int(held["len"])].tobytes()
    if held["tag"]:
        frame = frame[:12] + held["tag"].tobytes() + frame[12:]
    family = _family(frame)
    if family is None:
        return None
    return HeldSyn(
        key=key,
        service_id=int(held["service"]),
        client=address_of(ends["saddr"], family),
        client_port=int(ends["sport"]),
        vip=address_of(ends["daddr"], family),
        port=int(ends["dport"]),
        age_s=(now_ns - int(held["ns"])) / 1e9,
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
