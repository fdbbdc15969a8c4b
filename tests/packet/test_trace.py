"""What the program tells those who follow it: exactly what it did, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Raw

from agent.dataplane import abi, libbpf
from agent.dataplane.events import Lexicon
from agent.dataplane.ringbuf import Ring
from agent.dataplane.trace import Tracer, rings_of
from agent.model import Forward, NoBackend
from agent.state.events import Event, EventKind, Fate, TraceQuery
from tests.packet.frames import (
    CLIENT4,
    CLIENT6,
    VIP4,
    VIP6,
    ether,
    network_layer,
    tcp,
)
from tests.packet.harness import Rig, Verdict, backend, service

DECISIONS = frozenset(kind for kind in EventKind if not kind.is_sampled)
ROOM = 3640  # events in the ring
SYN = Event(
    at=0.0,
    kind=EventKind.PICK,
    protocol=6,
    client=ip_address(CLIENT4),
    client_port=40_000,
    vip=ip_address(VIP4),
    port=80,
    length=40,
    service="web",
    backend="a",
    backend_address=ip_address("10.1.0.1"),
    scheduler="maglev",
    tcp_flags="S",
)


@pytest.fixture(autouse=True)
def empty_ring(rig: Rig) -> None:
    """What other tests left there goes."""
    (fd,) = rings_of(rig.dataplane.program).values()
    ring = Ring(fd)
    ring.take(2 * ROOM)
    ring.close()


def segment(flags: str, seq: int, ack: int, payload: bytes = b"", **ends: object) -> bytes:
    """A segment of a connection whose numbers matter."""
    src, dst = str(ends.get("src", CLIENT4)), str(ends.get("dst", VIP4))
    sport, dport = ends.get("sport", 40_000), ends.get("dport", 80)
    ip = network_layer(src, dst)
    header = TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack)
    return bytes(ether() / ip / header / Raw(payload))


def words(rig: Rig) -> Lexicon:
    services = {rig.service_id(each.name): each for each in rig.config.services}
    backends = {
        rig.backend_id(member.name, each.name): member
        for each in rig.config.services
        for member in each.backends
    }
    return Lexicon(services, backends)


def told(
    rig: Rig,
    frames: Sequence[bytes],
    count: int,
    kinds: frozenset[EventKind] = DECISIONS,
    **query: object,
) -> list[Event]:
    """The events that these frames make for a follower; there must be exactly so many."""

    async def story() -> list[Event]:
        tracer = Tracer(
            rig.tables.trace, lambda: rings_of(rig.dataplane.program), lambda: words(rig)
        )
        events: list[Event] = []
        with tracer.follow(TraceQuery(kinds, **query)) as follower:
            for frame in frames:
                rig.send(frame)
            while len(events) < count:
                more = await follower.next(5, 10_000)
                assert more, f"{len(events)} of {count} events came"
                events += more
            assert await follower.next(0.02, 1) == ()
        return events

    return asyncio.run(asyncio.wait_for(story(), 60))


def test_a_pick_is_told(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")))
    before = time.time()
    (event,) = told(rig, [tcp("S")], 1)
    assert before - 1 < event.at < time.time() + 1
    assert replace(event, at=0.0) == SYN


def test_a_pick_over_ipv6_is_told(rig: Rig) -> None:
    rig.serve(service(backend("a", "fd00:1::1"), vip=VIP6))
    (event,) = told(rig, [tcp("S", vip=VIP6)], 1)
    assert replace(event, at=0.0) == replace(
        SYN,
        client=ip_address(CLIENT6),
        vip=ip_address(VIP6),
        length=60,
        backend_address=ip_address("fd00:1::1"),
    )


def test_a_drop_is_told_with_its_reason(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")), down={"a"})
    (event,) = told(rig, [tcp("S")], 1)
    assert replace(event, at=0.0) == replace(
        SYN,
        kind=EventKind.DROP,
        reason="no-backend",
        fate=Fate.DROPPED,
        backend=None,
        backend_address=None,
        scheduler=None,
    )


def test_a_refusal_is_told_as_one(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1"), no_backend=NoBackend.RESET), down={"a"})
    (event,) = told(rig, [tcp("S")], 1)
    assert (event.reason, event.fate) == ("no-backend", Fate.REFUSED)


def test_a_malformed_packet_is_told(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")))
    (event,) = told(rig, [tcp("SF")], 1)
    assert (event.kind, event.reason, event.fate, event.tcp_flags) == (
        EventKind.DROP,
        "malformed",
        Fate.DROPPED,
        "FS",
    )


def test_what_is_for_no_service_is_not_told(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")))
    told(rig, [tcp("S", vip="203.0.113.99"), tcp("S", port=81)], 0, frozenset(EventKind), sample=1)


CONVERSATION = (
    segment("S", 1000, 0),
    segment("A", 1001, 5001),
    segment("PA", 1001, 5001, b"x" * 321),
    segment("A", 1322, 7001),
    segment("FA", 1322, 7001),
)


def test_a_request_and_its_answer_are_told(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")))
    pick, answer, close = told(rig, CONVERSATION, 3)
    assert [each.kind for each in (pick, answer, close)] == [
        EventKind.PICK,
        EventKind.ANSWER,
        EventKind.CLOSE,
    ]
    assert replace(answer, at=0.0, waited_us=None) == replace(
        SYN,
        kind=EventKind.ANSWER,
        tcp_flags=".",
        state="established",
        scheduler=None,
        waited_bytes=321,
    )
    assert answer.waited_us is not None
    assert 0 <= answer.waited_us <= (answer.at - pick.at) * 1e6 + 1
    assert (close.tcp_flags, close.state, close.backend) == ("F.", "established", "a")


def test_packets_are_told_with_the_state_that_they_met(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")))
    packets = told(rig, CONVERSATION, 2, frozenset({EventKind.PACKET}), sample=1)
    assert [(each.state, each.length) for each in packets] == [("embryonic", 40), ("acked", 361)]


def test_the_answer_of_a_backend_is_told_in_nat(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1", port=8080), forward=Forward.NAT))
    back = {"src": "10.1.0.1", "dst": CLIENT4, "sport": 8080, "dport": 40_000}
    frames = (
        segment("S", 1000, 0),
        segment("SA", 5000, 1001, **back),
        segment("PA", 1001, 5001, b"x" * 321),
        segment("A", 5001, 1322, **back),
        segment("PA", 5001, 1322, b"y" * 999, **back),
        segment("FA", 6000, 1322, **back),
    )
    kinds = frozenset(EventKind) - {EventKind.PACKET}
    events = told(rig, frames, 5, kinds, sample=1)
    assert [(each.kind.value, each.tcp_flags, each.waited_bytes) for each in events] == [
        ("pick", "S", None),
        ("reply", "S.", None),
        ("reply", ".", None),
        ("answer", "P.", 321),
        ("close", "F.", None),
    ]
    assert {(str(e.client), e.client_port, str(e.vip), e.port, e.backend) for e in events} == {
        (CLIENT4, 40_000, VIP4, 80, "a")
    }


def test_only_what_is_asked_for_is_told(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")), service(backend("b"), name="chat", port=81))
    frames = [tcp("S"), tcp("S", port=81), tcp("SF"), tcp("SF", port=81)]
    assert len(told(rig, frames, 2, frozenset({EventKind.DROP}))) == 2
    (event,) = told(rig, frames, 1, frozenset({EventKind.DROP}), service="chat")
    assert event.port == 81
    assert rig.tables.trace["kinds"][0] == 0


def ask(rig: Rig, kind: abi.EventKind, sample: int = 1) -> None:
    """As an agent does, but nobody reads."""
    rig.tables.trace["sample"] = sample - 1
    rig.tables.trace["kinds"] = 1 << kind


def lost(rig: Rig) -> int:
    return int(rig.tables.trace["lost"][0])


def test_without_a_reader_the_ring_fills_and_what_is_lost_is_counted(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")), down={"a"})
    ask(rig, abi.EventKind.DROP)
    assert libbpf.test_run(rig.dataplane.program.fd, tcp("S"), repeat=ROOM).verdict == Verdict.DROP
    rest = lost(rig)
    assert rest <= 1
    libbpf.test_run(rig.dataplane.program.fd, tcp("S"), repeat=100)
    assert lost(rig) == rest + 100
    assert rig.reasons() == {"no-backend": ROOM + 100}


def test_packets_are_sampled(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")))
    rig.send(tcp("S"))
    ask(rig, abi.EventKind.DROP)
    libbpf.test_run(rig.dataplane.program.fd, tcp("SF"), repeat=ROOM + 1)
    before = lost(rig)  # from now on, whatever is told is lost
    ask(rig, abi.EventKind.PACKET, sample=8)
    libbpf.test_run(rig.dataplane.program.fd, tcp("A"), repeat=40_000)
    assert 4_500 < lost(rig) - before < 5_500


def test_while_nobody_follows_nothing_is_told(rig: Rig) -> None:
    rig.serve(service(backend("a", "10.1.0.1")))
    for frame in (*CONVERSATION, tcp("SF")):
        rig.send(frame)
    (fd,) = rings_of(rig.dataplane.program).values()
    ring = Ring(fd)
    assert ring.take(1) == []
    ring.close()
