"""A flow is told the moment it is established: its slot lies in the ring, once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from agent.dataplane.counters import of_sync
from agent.dataplane.established import ring_of
from agent.dataplane.ringbuf import Ring
from agent.model import Forward
from tests.packet.harness import Rig, Verdict
from tests.packet.nodes import answer, case, serve

ROOM = 16_000  # records of 4 bytes, with 8 of the ring's own each, rounded up, in 256 KiB


@pytest.fixture
def ring(rig: Rig) -> Iterator[Ring]:
    yield from opened(rig)


def opened(rig: Rig) -> Iterator[Ring]:
    found = ring_of(rig.dataplane)
    assert found is not None
    ring = Ring(found[1])
    while ring.take(100_000):
        pass
    rig.tables.sync_count[:] = np.zeros((), dtype=rig.tables.sync_count.dtype)
    yield ring
    ring.close()


def told(ring: Ring) -> list[int]:
    return np.frombuffer(b"".join(ring.take(100_000)), dtype=np.uint32).tolist()


def slots(rig: Rig) -> list[int]:
    return np.flatnonzero(rig.tables.flows).tolist()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("forward", [Forward.DSR, Forward.GUE])
def test_a_flow_is_told_when_the_client_sends_after_its_handshake(
    hooked: Rig, forward: Forward, family: int
):
    it = case(forward, family)
    hooked.serve(it.service)
    for ring in opened(hooked):
        first = it.client(1)
        hooked.send(first.frame())
        hooked.send(replace(first, flags="A", seq=1001).frame())
        assert told(ring) == [], "two packets of which nobody has answered one prove nothing"
        hooked.send(it.goes_on(1).frame())
        assert told(ring) == slots(hooked)
        hooked.send(it.goes_on(1).frame())
        hooked.send(replace(first, flags="FA", seq=1006).frame())
        assert told(ring) == []


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
def test_a_flow_is_told_when_the_backend_sends_first(rig: Rig, other: Rig, ring: Ring, forward):
    it = case(forward, 4)
    serve(rig, other, it)
    first = it.client(1)
    out = it.begin(rig, 1)
    rig.send(replace(first, flags="A", seq=1001, ack=7001).frame())
    assert told(ring) == []
    assert rig.verdict(answer(first, out).frame()) == Verdict.TX
    assert told(ring) == slots(rig)
    rig.send(it.goes_on(1).frame())
    assert told(ring) == []


def test_a_flow_of_datagrams_is_told_with_its_second_one(rig: Rig, ring: Ring):
    it = case(Forward.GUE, 4, "udp")
    rig.serve(it.service)
    rig.send(it.client(1).frame())
    assert told(ring) == []
    rig.send(it.client(1).frame())
    assert told(ring) == slots(rig)


def test_syns_and_first_packets_of_strangers_are_not_told(rig: Rig, ring: Ring):
    it = case(Forward.DSR, 4)
    rig.serve(it.service)
    for number in range(200):
        rig.send(it.client(number).frame())
        rig.send(it.goes_on(1000 + number).frame())
    assert told(ring) == []


def test_what_does_not_fit_into_the_ring_is_counted_and_forwarded(rig: Rig, ring: Ring):
    """Clients that nobody reads of: more than there is room for."""
    it = case(Forward.DSR, 4)
    rig.serve(it.service)
    count = ROOM + 2000
    for number in range(count):
        first = replace(it.client(number % 40_000), flags="A", payload=b"x")
        rig.send(first.frame())
        assert rig.verdict(first.frame()) == Verdict.TX
    untold = of_sync(rig.tables)["untold"]
    assert len(told(ring)) + untold == sum(rig.counts(name).established for name in "abcde")
    assert untold > 1000


def test_the_other_node_needs_no_more_than_the_ring_tells(rig: Rig, other: Rig, ring: Ring):
    """And the look at the whole table finds nothing more to tell."""
    it = case(Forward.FULLNAT, 4)
    a, b = serve(rig, other, it)
    for number in range(24):
        it.begin(rig, number)
        rig.send(it.goes_on(number).frame())
    there = {n: rig.backend_of(it.goes_on(n).frame()) for n in range(24)}
    records = a.named(np.array(told(ring)))
    done = b.take(records)
    assert (done.installed, done.refused) == (24, {})
    assert {n: other.backend_of(it.goes_on(n).frame()) for n in range(24)} == there
    assert len(a.changed()) == 0


def test_named_slots_are_told_as_a_look_would_tell_them(rig: Rig, other: Rig):
    """Established ones, once; one that has gone to another flow, and none that do not exist."""
    it = case(Forward.DSR, 4)
    a, _ = serve(rig, other, it)
    rig.send(it.client(1).frame())
    (embryonic,) = slots(rig)
    rig.send(it.client(2).frame())
    rig.send(it.goes_on(2).frame())
    (new,) = set(slots(rig)) - {embryonic}
    every = np.array([new, embryonic, new, len(rig.tables.flows) + 5])
    assert a.named(every)["slot"].tolist() == [new]
    assert len(a.named(every)) == 0
    rig.tables.flows[new] = 0
    gone = a.named(every)
    assert (gone["slot"].tolist(), gone["state"].tolist()) == ([new], [0])
    assert len(a.changed()) == 0
