"""New flows are held back until a deadline that the packet path itself checks."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest

from agent.dataplane import abi, libbpf
from agent.dataplane.abi import FlowState
from agent.dataplane.hold import new_flows_held
from agent.model import NoBackend, Protocol, Scheduler
from tests.packet.frames import CLIENT4, tcp, udp
from tests.packet.harness import Rig, Verdict, backend, service

PORTS = itertools.count(20_000)
LIMIT_S = 60.0


def held(rig: Rig, frame: bytes) -> libbpf.TestRun:
    """A frame that comes while new flows are held back, also where this host is busy."""
    while True:
        with new_flows_held(rig.tables.settings):
            until_ns = int(rig.tables.settings["held_until"][0])
            done = rig.send(frame)
            if time.monotonic_ns() < until_ns:
                return done


def test_new_flows_come_in_again_at_the_deadline(rig: Rig):
    rig.serve(service(backend("a")))
    now_ns = time.monotonic_ns()
    rig.tables.settings["held_until"] = now_ns
    assert rig.verdict(tcp(client_port=next(PORTS))) == Verdict.TX, "it is over"
    assert rig.reasons() == {}
    assert held(rig, tcp()).verdict == Verdict.DROP
    assert rig.slot(CLIENT4) is None
    assert rig.service_counts().drops["held"] == 1
    assert rig.verdict(tcp()) == Verdict.TX, "the hold was ended"
    assert rig.state(CLIENT4) is FlowState.EMBRYONIC


@pytest.mark.parametrize("ahead_ns", [60 * 10**9, 2**63])
def test_a_deadline_that_nobody_can_have_meant_holds_nobody(rig: Rig, ahead_ns: int):
    """The agent's monotonic clock is another one in a time namespace."""
    rig.serve(service(backend("a")))
    rig.tables.settings["held_until"] = time.monotonic_ns() + ahead_ns
    assert rig.verdict(tcp()) == Verdict.TX


@pytest.mark.parametrize("scheduler", Scheduler)
def test_nobody_is_told_and_recorded_flows_go_on(rig: Rig, scheduler: Scheduler):
    rig.serve(service(backend("a"), scheduler=scheduler, no_backend=NoBackend.RESET))
    open_port = next(PORTS)
    segment = tcp("PA", client_port=open_port, payload=b"GET /")
    rig.send(tcp(client_port=open_port))
    before = rig.send(segment)
    assert held(rig, segment).data == before.data
    for flags in ("S", "A", "PA", "FA", "R"):
        assert held(rig, tcp(flags, client_port=next(PORTS))).verdict == Verdict.DROP, flags
    assert rig.reasons() == {"held": 5}


def test_a_syn_that_nothing_has_answered_waits_too(rig: Rig):
    """Such a flow has no addresses yet that another balancer could be told."""
    rig.serve(service(backend("a")))
    rig.send(tcp())
    assert held(rig, tcp()).verdict == Verdict.DROP
    assert rig.verdict(tcp()) == Verdict.TX
    assert held(rig, tcp("A")).verdict == Verdict.TX, "its handshake goes on"


def test_datagrams_wait_as_well_those_with_a_server_id_included(rig: Rig):
    ident = bytes.fromhex("0a0b0c0d")
    rig.serve(
        service(
            backend("a", quic_server_id=ident), port=443, protocol=Protocol.UDP, quic_id_bytes=4
        )
    )
    named = b"\x40\x04" + ident + bytes(20)
    assert held(rig, udp(port=443, payload=named)).verdict == Verdict.DROP
    assert rig.verdict(udp(port=443, payload=named)) == Verdict.TX
    assert held(rig, udp(port=443, payload=named)).verdict == Verdict.TX


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_an_agent_that_dies_or_is_stopped_in_it_holds_nobody_for_long(
    rig: Rig, how: signal.Signals
):
    rig.serve(service(backend("a")))
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with new_flows_held(rig.tables.settings):
            os.write(writing, b".")
            signal.pause()
    assert os.read(reading, 1)
    try:
        os.kill(pid, how)
        os.waitpid(pid, os.WUNTRACED)
        until_ns = int(rig.tables.settings["held_until"][0])
        assert until_ns <= time.monotonic_ns() + abi.HOLD_MAX_NS
        end = time.monotonic() + LIMIT_S
        while rig.verdict(tcp(client_port=next(PORTS))) != Verdict.TX:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert time.monotonic_ns() >= until_ns
        assert rig.reasons().keys() <= {"held"}
    finally:
        os.close(reading)
        os.close(writing)
        if how is signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
