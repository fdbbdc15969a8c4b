"""Ten million SYNs, and two CPUs in one bucket: established flows stay where they were."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace

import numpy as np
import pytest

from agent.dataplane import libbpf, survey
from agent.dataplane.abi import FLOW_EMBRYONIC_WAYS, FLOW_WAYS, FlowState
from agent.dataplane.compile import Compiled
from agent.model import Forward
from tests.packet import nodes, wrapper
from tests.packet.frames import ACK, CLIENT4, SYN, Segments, random_clients, tcp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.wires import Packet

SOURCES = 10_000_000
STRANGERS = 200_000
FIRST_SOURCE = 0x0B000000  # 11.0.0.0
BUCKET = 1234
RACE_S = 2.0
ESTABLISHED = (FlowState.ESTABLISHED, FlowState.ESTABLISHED_AWAITING)
SEGMENT, DATA = Segments(), Segments(payload=b"GET /")


def establish(rig: Rig, count: int) -> dict[tuple, str]:
    """Flows that have carried payload, and their backends."""
    flows = {}
    for address, port in random_clients(11, count):
        if address.packed[0] == FIRST_SOURCE >> 24:
            continue
        rig.send(SEGMENT.frame(address.packed, port, SYN))
        flows[address, port] = rig.backend_of(DATA.frame(address.packed, port, ACK))
    return flows


def flood_of(rig: Rig, each: int = 1) -> Compiled:
    """So many packets of each source, before the balancer."""
    first = f"{FIRST_SOURCE:#x}"
    fd = rig.dataplane.program.fd
    return wrapper.in_front_of(
        fd, wrapper.FLOOD, "flood", LB_FIRST=first, LB_EACH=str(each), LB_PORTS="1"
    )


def test_syn_flood_keeps_established_flows(rig: Rig):
    rig.serve(service(*(backend(name) for name in "abcd")))
    flows = establish(rig, 1000)
    slots = {client: rig.slot(str(client[0]), client[1]) for client in flows}
    assert {slot.state for slot in slots.values()} == {FlowState.ESTABLISHED}
    done = libbpf.test_run(flood_of(rig).fd, tcp("S"), repeat=SOURCES)
    assert done.verdict == Verdict.TX
    assert rig.tables.backend_count["packets"].sum() == SOURCES + 2 * len(flows)
    for slot in slots.values():
        assert int(rig.tables.flows[slot.index]) == slot.word
    after = {c: rig.backend_of(DATA.frame(c[0].packed, c[1], ACK)) for c in flows}
    assert after == flows
    embryonic = rig.survey().state_count(FlowState.EMBRYONIC)
    assert embryonic <= FLOW_EMBRYONIC_WAYS * rig.dataplane.size.flow_buckets
    for name in "abcd":
        counts = rig.counts(name)
        assert counts.opened - counts.closed == rig.open_slots(name)


def asks(rig: Rig, port: int) -> None:
    """An honest client connects and asks; every packet is forwarded."""
    goes_on = nodes.connected(rig, Packet(sport=port))
    for packet in (goes_on, replace(goes_on, flags="PA", payload=b"GET /")):
        assert rig.verdict(packet.frame()) == Verdict.TX
    assert rig.state(CLIENT4, port) is FlowState.ESTABLISHED


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
def test_strangers_who_send_data_take_no_room_of_honest_clients(rig: Rig, forward: Forward):
    """Three packets of each, and more strangers than there are slots: they were established once,
    and had the table for a quarter of an hour.
    """
    rig.serve(service(*(backend(name) for name in "abcd"), forward=forward))
    before = range(1000, 1100)
    for port in before:
        asks(rig, port)
    held = {port: where(rig, port) for port in before}
    flood = flood_of(rig, each=3)
    done = libbpf.test_run(flood.fd, tcp("PA", payload=b"x" * 100), repeat=3 * STRANGERS)
    if (
        forward is Forward.NAT
    ):  # in fullnat, the last one has an RST if the budget allows it just then
        assert done.verdict == Verdict.TX
    for port in range(2000, 2200):
        asks(rig, port)
    reset = {"no-flow": 3 * STRANGERS} if forward is Forward.FULLNAT else {}
    assert rig.reasons() == reset, "a stranger's data has no place of its own in fullnat"
    assert {port: where(rig, port) for port in before} == held


def where(rig: Rig, port: int) -> tuple[int, int, FlowState]:
    slot = rig.slot(CLIENT4, port)
    assert slot is not None
    return slot.index, slot.backend_id, slot.state


def send_for_ever(fd: int, frames: list[bytes]) -> None:
    while True:
        for frame in frames:
            libbpf.test_run(fd, frame)


def test_no_cpu_evicts_what_another_has_just_established(rig: Rig):
    rig.serve(service(backend("a")))
    victim, *others = rig.clients_in_bucket(BUCKET, 9)
    flood = [SEGMENT.frame(address.packed, port, SYN) for address, port in others]
    opening = [
        SEGMENT.frame(victim[0].packed, victim[1], SYN),
        DATA.frame(victim[0].packed, victim[1], ACK),
    ]
    established = rig.tables.backend_count["established"][:, rig.backend_id("a")]
    bucket = rig.tables.flows[BUCKET * FLOW_WAYS : (BUCKET + 1) * FLOW_WAYS]
    other_cpu = multiprocessing.get_context("fork").Process(
        target=send_for_ever, args=(rig.dataplane.program.fd, flood), daemon=True
    )
    other_cpu.start()
    lost = seen = 0
    deadline = time.monotonic() + RACE_S
    try:
        while time.monotonic() < deadline:
            before = int(established.sum())
            for frame in opening:
                rig.send(frame)
            if int(established.sum()) == before:
                continue
            seen += 1
            found = np.isin(survey.state_of(bucket), ESTABLISHED)
            lost += not found.any()
            bucket[found] = 0
    finally:
        other_cpu.kill()
        other_cpu.join()
    assert lost == 0, f"{lost} of {seen} established flows"
