"""Who gets the next flows, and what the tables say of it: for the tests of schedulers."""

from __future__ import annotations

from fractions import Fraction
from math import log

import numpy as np
from hypothesis import strategies as st

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


load_rows = st.fixed_dictionaries(
    {
        "open": st.integers(-3, 5000),
        "open_fix": st.integers(-50, 50),
        "embryonic": st.integers(-3, 6000),
        "embryonic_fix": st.integers(-50, 50),
        "waiting": st.integers(-100, 2**32),
        "waiting_fix": st.integers(-1000, 1000),
        "report_open": st.integers(0, 5000),
        "report_embryonic": st.integers(0, 5000),
        "queue": st.integers(0, 2**20),
        "is_hot": st.integers(0, 1),
        # From now, in jiffies: no test takes so long that it matters.
        "left": st.integers(10_000, 2**30) | st.integers(-(2**30), 0),
        "kappa": st.sampled_from([0, 128, 256, 1024, 201 * 256]),
        "per_byte": st.sampled_from([0, 1, 167, 16_777, 2**24]),
        "weight": st.integers(1, 1000),
    }
)


def embryonic_and_others(load: dict[str, int]) -> tuple[int, int]:
    embryonic = max(0, load["embryonic"] + load["embryonic_fix"])
    return embryonic, load["open"] + load["open_fix"] - embryonic


def share(load: dict[str, int]) -> int:
    """In 2^32ths: so that a backend's embryonic flows count as 16 and an eighth of its others."""
    embryonic, others = embryonic_and_others(load)
    most = 16 + max(0, others) // 8
    return 2**32 if embryonic <= most else most * 2**32 // (embryonic | 1)


def load_score(load: dict[str, int], of_first: int) -> tuple[int, Fraction]:
    """Whether it is hot, and by the words of abi.h: (queue + kappa * max(0, counted - report_open)
    + waiting / beta) / weight. What was reported counts until it is old; then each connection
    that counts does as one, and embryonic ones by the share that they have at the first drawn.
    """
    told = load["left"] > 0
    embryonic, others = embryonic_and_others(load)
    then = told * load["report_embryonic"]
    others -= told * load["report_open"] - then
    grown = max(0, others + ((embryonic - then) * of_first >> 32))
    waiting = max(0, load["waiting"] + load["waiting_fix"])
    work = (
        Fraction(told * load["queue"], 256)
        + Fraction(load["kappa"] if told else 256, 256) * grown
        + Fraction(waiting * load["per_byte"], 2**24)
    )
    return told * load["is_hot"], work / load["weight"]


def put_loads(rig: Rig, rows: dict[int, dict[str, int]]) -> None:
    """Loads of backends by their id."""
    now = rig.dataplane.now_jiffies()
    for ident, load in rows.items():
        for field, value in load.items():
            if field != "left":
                rig.tables.backend_load[field][ident] = value
        rig.tables.backend_load["report_until"][ident] = (now + load["left"]) & 0xFFFFFFFF
        rig.tables.backend_load["inverse_weight"][ident] = round(2**20 / load["weight"])


def picks_from(pick: int, count: int) -> list[int]:
    """The hashes of so many draws."""
    found = [pick]
    while len(found) < count:
        found.append(flowhash.pick_again(found[-1]))
    return found


def chance(pick: int) -> float:
    """What the words of score.h say: -ln of a number between 0 and 1, here to the digit."""
    return -log(((pick & 0xFFFF) + 0.5) / 65_536)
