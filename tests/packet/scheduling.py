"""Who gets the next flows, and what the tables say of it: for the tests of schedulers."""

from __future__ import annotations

import numpy as np

from agent.dataplane import contents, flowhash
from agent.model import Backend
from tests.packet.frames import ACK, SYN, VIP4, VIP6, Segments, random_clients
from tests.packet.harness import Rig, Verdict, backend
from tests.packet.wires import Packet

SEGMENTS = Segments()


def opened(rig: Rig, count: int, seed: int = 1, vip: str = VIP4) -> list[str]:
    """Backends of so many new connections, in their order; the clients go on after the SYN."""
    segments = Segments(vip)
    found = []
    for address, port in random_clients(seed, count, ipv6=vip == VIP6):
        done = rig.send(segments.frame(address.packed, port, SYN))
        found.append(rig.name_of_mac(done.data[:6]))
        rig.send(segments.frame(address.packed, port, ACK))
    return found


def loads(rig: Rig, *names: str) -> list[int]:
    """Open flows by the counters that schedulers compare."""
    return [int(row["open"] + row["open_fix"]) for row in map(rig.load_of, names)]


def row(rig: Rig) -> np.void:
    """The service's row."""
    return next(row for slot, row in contents.service_rows(rig.tables) if not slot.is_mark)


def ring(rig: Rig) -> list[int]:
    """Backend ids of the service's ring, in order."""
    entry = row(rig)
    first, slots = int(entry["ring_line"]), int(entry["ring_slots"])
    return [int(i) for i in rig.tables.rings[first:].reshape(-1)[:slots]]


def draws(rig: Rig, pick: int, count: int) -> list[int]:
    """The backend ids that so many draws name."""
    slots, found = ring(rig), []
    for _ in range(count):
        found.append(slots[flowhash.ring_slot(pick, len(slots))])
        pick = flowhash.pick_again(pick)
    return found


def chosen(rig: Rig, packet: Packet) -> int:
    """The id of the backend that a new flow gets."""
    done = rig.send(packet.frame())
    assert done.verdict == Verdict.TX
    return rig.backend_id(rig.name_of_mac(done.data[:6]))


def named(count: int, weights: list[int]) -> list[Backend]:
    """So many backends; the weights come again and again."""
    return [
        backend(f"b{n:03}", f"10.{n >> 8}.{n & 255}.1", weights[n % len(weights)])
        for n in range(count)
    ]
