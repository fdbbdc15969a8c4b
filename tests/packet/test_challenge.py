"""SYN protection: who begins a connection shows first that it is at its address."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from agent.dataplane.explain import explain
from agent.model import Forward, Protocol, Scheduler, SynProtection
from agent.state.queries import FiveTuple
from tests.packet.frames import BALANCER_MAC, ROUTER_MAC
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.model.hashes import challenge_hash, siphash
from tests.packet.pauses import undisturbed
from tests.packet.pieces import framed
from tests.packet.places import PLACES, V4, V6, Place
from tests.packet.test_answer import TAGS
from tests.packet.test_answer import reset as segment
from tests.packet.wires import Packet, Tags

ISN = 3_000_000_000
EPOCH_TICKS = 16
MODES = pytest.mark.parametrize("forward", list(Forward), ids=lambda f: f.value)


def serve(rig: Rig, at: Place, forward: Forward = Forward.DSR, **fields: object) -> None:
    fields.setdefault("syn_protection", SynProtection.ALWAYS)
    rig.serve(service(backend("a", at.server), vip=at.vip, forward=forward, **fields))


def asked_by(at: Place, **fields: object) -> Packet:
    fields.setdefault("seq", ISN)
    return Packet(at.client, at.vip, **fields)


def epoch_of(rig: Rig) -> int:
    return (rig.dataplane.now_jiffies() >> rig.clock.shift) // EPOCH_TICKS


def numbers(rig: Rig, asked: Packet, *, ago: int = 0) -> list[int]:
    """What is acknowledged from now on, and if time goes on before the packet comes."""
    keys, ends = rig.dataplane.keys, (asked.src, asked.sport, asked.dport)
    number = rig.service_id("web")
    epoch = epoch_of(rig) - ago
    return [
        challenge_hash(keys.key, keys.mul1, ends, number, each % 2**16) % 2**32
        for each in (epoch, epoch + 1)
    ]


def obeys(rig: Rig, asked: Packet, tags: Tags = ()) -> bytes:
    """The RST of a stack that gets the answer (RFC 9293, section 3.10.7.3)."""
    told = rig.send(framed(asked.ip, tags=tags))
    assert told.verdict == Verdict.TX
    at = 14 + 4 * len(tags) + len(asked.ip) - len(asked.l4)
    ack = int.from_bytes(told.data[at + 8 : at + 12])
    return framed(replace(asked, flags="R", seq=ack, ack=0, payload=b"").ip, tags=tags)


@PLACES
@MODES
def test_a_client_is_challenged_once_and_then_served(rig: Rig, at: Place, forward: Forward):
    serve(rig, at, forward)
    asked = asked_by(at)
    assert rig.verdict(obeys(rig, asked)) == Verdict.DROP
    assert rig.reasons() == {"challenged": 1, "verified": 1}
    assert not rig.tables.flows.any()
    assert rig.verdict(asked.frame()) == Verdict.TX
    assert np.count_nonzero(rig.tables.flows) == 1
    # From now on it is known, whatever its port.
    assert rig.verdict(replace(asked, sport=7, seq=1).frame()) == Verdict.TX
    assert np.count_nonzero(rig.tables.flows) == 2
    assert rig.reasons() == {"challenged": 1, "verified": 1}


@PLACES
@pytest.mark.parametrize("tags", TAGS, ids=len)
@pytest.mark.parametrize("payload", [b"", bytes(300)], ids=["bare", "with-data"])
def test_the_challenge_to_the_byte(rig: Rig, at: Place, tags: Tags, payload: bytes):
    """An ACK, with 0 as its own number, of what nobody has sent; nothing is recorded."""
    serve(rig, at)
    for seq in (ISN, 0, 1, 2**31, 2**32 - 1):
        asked = asked_by(at, seq=seq, payload=payload, options=b"\2\4\5\xb4")
        wanted = [
            framed(segment(asked, 0, number, "A"), ROUTER_MAC, BALANCER_MAC, tags)
            for number in numbers(rig, asked)
        ]
        done = rig.send(framed(asked.ip, tags=tags))
        assert done.verdict == Verdict.TX
        assert done.data in wanted
    assert not rig.tables.flows.any()
    assert rig.service_counts().replied == 5


@PLACES
def test_a_wrong_number_verifies_nobody(rig: Rig, at: Place):
    serve(rig, at)
    asked = asked_by(at)
    right = numbers(rig, asked)
    for bit in range(32):
        for number in right:
            guess = replace(asked, flags="R", seq=number ^ 1 << bit)
            rig.send(guess.frame())
    for other in (replace(asked, sport=asked.sport ^ 1), replace(asked, src=other_of(at))):
        for number in right:
            rig.send(replace(other, flags="R", seq=number).frame())
    assert "verified" not in rig.reasons()
    assert not rig.verified.view("u8").any()
    assert not rig.tables.flows.any()


def other_of(at: Place) -> str:
    return "198.51.100.200" if at is V4 else "2001:db8:c:1::7"


@undisturbed
def test_a_number_is_good_for_a_minute_or_two(rig: Rig):
    serve(rig, V4)
    asked = asked_by(V4)
    epoch = epoch_of(rig)
    for ago, reason in ((3, None), (1, "verified")):
        rig.send(replace(asked, flags="R", seq=numbers(rig, asked, ago=ago)[0]).frame())
        rig.has_paused |= epoch_of(rig) != epoch
        assert ("verified" in rig.reasons()) is (reason is not None)


@PLACES
def test_ten_minutes_later_it_is_challenged_again(rig: Rig, at: Place):
    serve(rig, at)
    asked = asked_by(at)
    rig.send(obeys(rig, asked))
    slots = rig.verified.view("u8")
    held = np.flatnonzero(slots)
    assert len(held) == 1
    now = rig.dataplane.now_jiffies() >> rig.clock.shift
    until, source = divmod(int(slots[held[0]]), 2**32)
    left = (until - now) % 2 ** (32 - rig.clock.shift)  # the agent knows 32 bits of the jiffies
    assert abs(left * rig.clock.tick_s - 600) <= 2 * rig.clock.tick_s
    slots[held[0]] = (until - left - 1) << 32 | source
    rig.send(asked.frame())
    assert rig.reasons()["challenged"] == 2
    rig.send(obeys(rig, asked))
    assert len(np.flatnonzero(slots)) == 1, "it has its place still"


def test_of_ipv6_a_network_of_64_bits_is_one_source(rig: Rig):
    serve(rig, V6)
    rig.send(obeys(rig, asked_by(V6)))
    near, far = "2001:db8:c::ffff", "2001:db8:c:1::7"
    assert V6.client.startswith("2001:db8:c::")
    assert rig.verdict(replace(asked_by(V6), src=near).frame()) == Verdict.TX
    assert rig.reasons()["challenged"] == 1
    rig.send(replace(asked_by(V6), src=far).frame())
    assert rig.reasons()["challenged"] == 2


@MODES
@pytest.mark.parametrize("flags", ["A", "PA", "SA", "FA", "R", "RA"])
def test_what_is_no_syn_opens_nothing_for_a_stranger(rig: Rig, forward: Forward, flags: str):
    """dsr and tunnels: a server answers it, as it would have without a balancer."""
    serve(rig, V4, forward)
    done = rig.verdict(asked_by(V4, flags=flags, ack=5).frame())
    assert not rig.tables.flows.any()
    # nat with maglev tells nobody that a connection is unknown; fullnat does.
    is_dropped = "R" in flags or forward is Forward.NAT
    assert done == (Verdict.DROP if is_dropped else Verdict.TX)


def test_a_flow_that_is_recorded_is_not_looked_at(rig: Rig):
    """Protection begins, and who has a connection goes on."""
    serve(rig, V4, syn_protection=SynProtection.OFF)
    assert rig.verdict(asked_by(V4).frame()) == Verdict.TX
    serve(rig, V4)
    for flags in ("A", "PA", "FA"):
        assert rig.verdict(asked_by(V4, flags=flags).frame()) == Verdict.TX
    assert rig.reasons() == {}


@pytest.mark.parametrize("before", ["S", "S A PA FA"], ids=["embryonic", "closing"])
def test_a_record_of_before_keeps_nobody_from_showing_that_it_is_there(rig: Rig, before: str):
    """And who repeats the SYNs of a flood that were let in is not spared."""
    members = [backend(f"b{n}") for n in range(9)]
    rig.serve(service(*members, scheduler=Scheduler.ROUND_ROBIN))
    asked = asked_by(V4)
    for number, flags in enumerate(before.split()):
        rig.send(replace(asked, flags=flags, seq=ISN + (number > 0)).frame())
    rig.serve(service(*members, scheduler=Scheduler.ROUND_ROBIN,
                      syn_protection=SynProtection.ALWAYS))  # fmt: skip
    assert rig.verdict(obeys(rig, asked)) == Verdict.DROP
    assert rig.reasons() == {"challenged": 1, "verified": 1}
    first = rig.backend_of(asked.frame())
    assert {rig.backend_of(asked.frame()) for _ in range(20)} == {first}


def test_udp_and_services_without_it_are_not_challenged(rig: Rig):
    rig.serve(
        service(backend("a"), syn_protection=SynProtection.ALWAYS),
        service(backend("b"), name="off", port=81),
        service(backend("c"), name="auto", port=82, syn_protection=SynProtection.AUTO),
        service(backend("d"), name="dns", port=53, protocol=Protocol.UDP),
    )
    for packet in (Packet(dport=81), Packet(dport=82), Packet(dport=53, flags=None)):
        assert rig.verdict(packet.frame()) == Verdict.TX
    assert rig.reasons() == {}


def test_explain_says_so(rig: Rig):
    asked = asked_by(V4)
    ends = ip_address(asked.src), asked.sport, ip_address(asked.dst), asked.dport
    for how, said in ((SynProtection.ALWAYS, True), (SynProtection.OFF, False)):
        serve(rig, V4, syn_protection=how)
        found = explain(rig.view(), FiveTuple(Protocol.TCP, *ends))
        assert found.backend == "a"
        assert any("SYN protection" in step for step in found.steps) is said


def test_a_flood_from_thousands_of_addresses_leaves_no_trace(rig: Rig):
    """And honest clients of a real address are served in it."""
    serve(rig, V4, Forward.FULLNAT, scheduler=Scheduler.LEAST_LOAD)
    draw = np.random.default_rng(1)
    rig.send(obeys(rig, asked_by(V4)))
    for word in draw.integers(2**24, 2**24 * 220, 5000):
        src = ".".join(str(b) for b in int(word).to_bytes(4))
        rig.send(replace(asked_by(V4), src=src, sport=int(word) % 60_000 + 1).frame())
    assert not rig.tables.flows.any()
    assert rig.verdict(asked_by(V4).frame()) == Verdict.TX


def test_the_hash_is_the_one_that_python_has():
    """CPython's own SipHash-1-3, with the key that PYTHONHASHSEED=0 stands for."""
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip(f"this Python has {sys.hash_info.algorithm}")
    texts = [b"1", b"12345678", bytes(range(24)), bytes(31)]
    program = f"print(*(hash(t) for t in {texts!r}))"
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": "0"},
                          capture_output=True, text=True, check=True)  # fmt: skip
    wanted = [int(word) % 2**64 for word in done.stdout.split()]
    assert [siphash(0, 0, text) for text in texts] == wanted
