"""Ten million SYNs, and two CPUs in one bucket: established flows stay where they were."""

from __future__ import annotations

import struct
import threading

import numpy as np

from agent.dataplane import libbpf
from agent.dataplane.abi import FLOW_WAYS, FlowState
from tests.packet import wrapper
from tests.packet.frames import ACK, SYN, Segments, random_clients, tcp
from tests.packet.harness import Rig, Verdict, backend, service

SOURCES = 10_000_000
FIRST_SOURCE = 0x0B000000  # 11.0.0.0
BUCKET = 1234
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


def test_syn_flood_keeps_established_flows(rig: Rig):
    rig.serve(service(*(backend(name) for name in "abcd")))
    flows = establish(rig, 1000)
    slots = {client: rig.slot(str(client[0]), client[1]) for client in flows}
    assert {slot.state for slot in slots.values()} == {FlowState.ESTABLISHED}
    flood = wrapper.in_front_of(
        rig.dataplane.program.fd, wrapper.FLOOD, "flood", LB_FIRST=f"{FIRST_SOURCE:#x}"
    )
    done = libbpf.test_run(flood.fd, tcp("S"), repeat=SOURCES)
    assert done.verdict == Verdict.TX
    assert rig.tables.backend_count["packets"].sum() == SOURCES + 2 * len(flows)
    for slot in slots.values():
        assert int(rig.tables.flows[slot.index]) == slot.word
    after = {c: rig.backend_of(DATA.frame(c[0].packed, c[1], ACK)) for c in flows}
    assert after == flows
    embryonic = rig.survey().state_count(FlowState.EMBRYONIC)
    assert embryonic <= 2 * rig.dataplane.size.flow_buckets
    for name in "abcd":
        counts = rig.counts(name)
        assert counts.opened - counts.closed == rig.open_slots(name)


def replay(rig: Rig, clients: list[tuple], flags: int) -> int:
    """A program that sends from these clients in turn."""
    compiled = wrapper.in_front_of(
        rig.dataplane.program.fd, wrapper.REPLAY, "replay", LB_CLIENTS=str(len(clients))
    )
    table = compiled.handle["clients"].map_fd
    for n, (address, port) in enumerate(clients):
        value = address.packed + struct.pack("!H", port) + struct.pack("=H", flags)
        libbpf.map_update(table, n.to_bytes(4, "little"), value)
    rig.keep = compiled  # the program lives as long as its handle
    return compiled.fd


def test_no_cpu_evicts_what_another_has_just_established(rig: Rig):
    rig.serve(service(backend("a")))
    client, *others = rig.clients_in_bucket(BUCKET, 9)
    fd = replay(rig, others, SYN)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            libbpf.test_run(fd, tcp("S"), repeat=100_000)

    thread = threading.Thread(target=flood)
    thread.start()
    lost = 0
    frames = [
        maker.frame(client[0].packed, client[1], flags)
        for maker, flags in ((SEGMENT, SYN), (DATA, ACK))
    ]
    counts = rig.tables.backend_count["established"][:, rig.backend_id("a")]
    bucket = rig.tables.flows[BUCKET * FLOW_WAYS : (BUCKET + 1) * FLOW_WAYS]
    try:
        for _ in range(20_000):
            before = counts.sum()
            for frame in frames:
                rig.send(frame)
            if counts.sum() == before:
                continue
            found = rig.slot(str(client[0]), client[1])
            if found is None or found.state is not FlowState.ESTABLISHED:
                lost += 1
            else:
                rig.tables.flows[found.index] = 0
    finally:
        stop.set()
        thread.join()
    print("lost", lost, np.count_nonzero(bucket), counts.sum())
    assert lost == 0
