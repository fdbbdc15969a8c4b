"""The sums that the packet path keeps are what the flow table says, and stay so."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest

from agent.dataplane import survey
from agent.dataplane.trueup import SURVEYS, TrueUp
from agent.model import Forward, Scheduler
from tests.packet import nodes
from tests.packet.frames import ACK, FIN, PSH, RST, SYN, VIP4, VIP6, Segments, random_clients
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.pauses import undisturbed
from tests.packet.talks import ANSWER, HEAD, MODES, POST, opened
from tests.packet.wires import Packet

ASK = PSH | ACK
MAYBE_ALL = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 0\r\n\r\n"


def errors(rig: Rig) -> dict[str, int]:
    """How far each sum is from the table, of the backend where it is furthest."""
    found = rig.survey()
    services = np.bincount(found.service, weights=found.open, minlength=rig.dataplane.size.services)
    return {
        name: int(np.abs(difference).max())
        for name, difference in (
            ("open", found.before.open - found.open),
            ("embryonic", found.before.embryonic - (found.open - found.live)),
            ("waiting", found.before.waiting - found.waiting),
            ("counted", found.before.opened - found.before.closed - found.open),
            ("service_open", found.before.service_open - services.astype(np.int64)),
        )
    }


NONE = {"open": 0, "embryonic": 0, "waiting": 0, "counted": 0, "service_open": 0}


class Traffic:
    """Clients that connect, ask, ask again, close and reset, at random; where answers pass, a SYN
    is answered.
    """

    def __init__(self, rig: Rig, seed: int, vip: str = VIP4, clients: int = 400) -> None:
        self.answered = rig.config.services[0].forward.is_nat
        ack = 7001 if self.answered else 0
        self.rig = rig
        self.draw = random.Random(seed)
        self.clients = list(random_clients(seed, clients, ipv6=vip == VIP6))
        self.bare = Segments(vip, ack=ack)
        self.asking = Segments(vip, payload=b"x" * self.draw.randrange(100, 900), ack=ack)
        self.sent = 0

    def run(self, packets: int) -> None:
        for _ in range(packets):
            address, port = self.draw.choice(self.clients)
            flags = self.draw.choice([SYN, SYN, ACK, ASK, ASK, ASK, FIN | ACK, RST])
            segments = self.asking if flags == ASK else self.bare
            done = self.rig.send(segments.frame(address.packed, port, flags))
            self.sent += 1
            if self.answered and flags == SYN and done.verdict == Verdict.TX:
                told = nodes.answer(Packet(), done.data, flags="SA", payload=b"", seq=7000)
                self.rig.send(told.frame())


@pytest.mark.parametrize("vip", [VIP4, VIP6])
@pytest.mark.parametrize("forward", [Forward.DSR, Forward.NAT, Forward.FULLNAT])
def test_the_packet_path_keeps_its_sums_true_by_itself(rig: Rig, forward: Forward, vip: str):
    rig.serve(
        service(
            *(backend(f"b{n}", f"fd00:1::{n + 1}" if vip == VIP6 else "") for n in range(5)),
            vip=vip, forward=forward,
            scheduler=Scheduler.LEAST_LOAD,
        )
    )  # fmt: skip
    traffic = Traffic(rig, 21, vip)
    for _ in range(10):
        traffic.run(400)
        assert errors(rig) == NONE
    found = rig.survey()
    assert found.open.sum() > 50
    assert found.waiting.sum() > 5000


def test_a_bounded_source_has_its_services_sum_too(rig: Rig):
    rig.serve(
        service(*(backend(f"b{n}") for n in range(4)), scheduler=Scheduler.SOURCE),
        service(backend("c"), name="two", vip="203.0.113.11", scheduler=Scheduler.SOURCE),
    )
    Traffic(rig, 22).run(1500)
    Traffic(rig, 23, "203.0.113.11").run(1500)
    assert errors(rig) == NONE
    assert rig.tables.service_load["open"][rig.service_id()] > 50
    assert rig.tables.service_load["open"][rig.service_id("two")] > 50


@pytest.mark.parametrize("surveys", [50, pytest.param(500, marks=pytest.mark.soak)])
def test_nothing_is_corrected_while_packets_come_and_go(rig: Rig, surveys: int):
    """Surveys of a table that moves all the time: what is certain is never wrong."""
    rig.serve(service(*(backend(f"b{n}") for n in range(3)), scheduler=Scheduler.LEAST_CONN))
    keeper, done = TrueUp(rig.tables), threading.Event()
    traffic = [Traffic(rig, seed) for seed in (31, 32)]

    def send(one: Traffic) -> None:
        while not done.is_set():
            one.run(50)

    threads = [threading.Thread(target=send, args=(one,)) for one in traffic]
    for thread in threads:
        thread.start()
    try:
        taken = 0
        while taken < surveys or min(one.sent for one in traffic) < 1000:  # these may stand still
            keeper.take(rig.survey())
            taken += 1
    finally:
        done.set()
        for thread in threads:
            thread.join()
    load = rig.tables.backend_load
    assert not load["open_fix"].any()
    assert not rig.tables.backend_count[-1]["opened"].any()
    assert load["open"].sum() > 50
    found = errors(rig)
    assert (found["open"], found["counted"]) == (0, 0)
    for _ in range(2 * SURVEYS):  # what was corrected of the bytes, if anything, is taken back
        keeper.take(rig.survey())
    assert errors(rig) == NONE


def test_a_scheduler_that_begins_to_count_in_mid_life_is_told_what_there_is(rig: Rig):
    members = [backend(f"b{n}") for n in range(3)]
    rig.serve(service(*members, scheduler=Scheduler.MAGLEV, count_waiting=False))
    Traffic(rig, 24).run(1500)
    rig.serve(service(*members, scheduler=Scheduler.LEAST_CONN))
    assert not rig.tables.backend_load["open"].any()
    keeper = TrueUp(rig.tables)
    Traffic(rig, 25).run(500)
    for _ in range(SURVEYS):
        keeper.take(rig.survey())
    assert errors(rig) == NONE
    Traffic(rig, 24).run(1500)  # the first ones close and come again
    assert errors(rig) == NONE


def test_what_the_agent_sweeps_leaves_the_sums(rig: Rig):
    rig.serve(service(backend("a"), backend("b"), scheduler=Scheduler.LEAST_LOAD))
    Traffic(rig, 26).run(1500)
    before = rig.survey()
    assert before.waiting.sum() > 5000
    late = rig.survey(later_ticks=3000)
    assert survey.sweep(rig.tables, late) == len(late.expired) > 100
    found = errors(rig)
    assert (found["open"], found["counted"], found["service_open"]) == (0, 0, 0)
    assert found["waiting"] > 0, "their bytes are left to the true-up"
    keeper = TrueUp(rig.tables)
    for _ in range(SURVEYS):
        keeper.take(rig.survey())
    assert errors(rig) == NONE
    Traffic(rig, 26).run(1500)
    assert errors(rig) == NONE


def test_closing_flows_wait_on_and_are_no_open_connections(rig: Rig):
    rig.serve(service(backend("a"), scheduler=Scheduler.LEAST_LOAD))
    segments, asking = Segments(), Segments(payload=b"x" * 500)
    (client,) = random_clients(27, 1)
    for flags, frames in ((SYN, segments), (ACK, segments), (ASK, asking), (FIN | ACK, segments)):
        rig.send(frames.frame(client[0].packed, client[1], flags))
    found = rig.survey()
    ident = rig.backend_id("a")
    assert (found.open[ident], found.awaiting[ident]) == (0, 1)
    assert found.waiting[ident] > 400
    assert errors(rig) == NONE


@MODES
@undisturbed
def test_bytes_behind_a_head_alone_leave_the_sum_after_30_seconds(hooked: Rig, forward: Forward):
    """What was all of an answer had the size of a head; nothing follows it. If something does,
    after all, it is the answer, and takes nothing out of the sum once more: a server whose answers
    all came so late looked idle (-101,120 bytes, with a real engine).
    """
    wire = opened(hooked, forward).ask(POST)
    wire.after(1).gets(MAYBE_ALL)
    assert wire.waiting == len(POST)
    keeper, ident = TrueUp(hooked.tables), hooked.backend_id("a")

    def surveyed() -> int:
        for _ in range(SURVEYS):
            seen = hooked.survey()
            keeper.take(seen)
            survey.forget(hooked.tables, seen)
        return summed()

    def summed() -> int:
        row = hooked.tables.backend_load[ident]
        return int(row["waiting"] + row["waiting_fix"])

    wire.after(29_000)
    found = surveyed()
    # After a pause of a second the bytes are gone, and do not come back.
    hooked.has_paused |= time.monotonic_ns() - wire.at_ns > 500_000_000
    assert found == wire.waiting == len(POST)
    wire.after(30_001)
    assert surveyed() == 0
    wire.gets(ANSWER)
    assert (summed(), wire.answers) == (0, 1)
    assert hooked.slot(wire.ends[0], wire.sport).awaits is False
    wire.ask(POST)
    assert (summed(), surveyed()) == (len(POST), len(POST))
    wire.after(30_000).gets(ANSWER)
    assert (summed(), surveyed(), wire.answers) == (0, 0, 2)


@undisturbed
def test_behind_what_is_surely_a_head_a_request_waits_on(hooked: Rig):
    """A prompt that is computed for more than 30 s weighs as long as it is."""
    wire = opened(hooked, Forward.NAT).ask(POST)
    wire.after(1).gets(HEAD)
    for minutes, over_long in ((1, 0), (14, 0), (16, 1)):
        wire.after(minutes * 60_000)
        assert len(hooked.survey().over_long) == over_long


@MODES
@undisturbed
def test_who_asks_again_after_a_request_that_was_given_up_waits_for_that_alone(
    hooked: Rig, forward: Forward
):
    wire = opened(hooked, forward).ask(POST)
    wire.after(16 * 60_000)
    survey.forget(hooked.tables, hooked.survey())
    row = hooked.tables.backend_load[hooked.backend_id("a")]
    assert (row["waiting"] + row["waiting_fix"], wire.answers) == (0, 0)
    wire.ask(POST[:400])
    assert row["waiting"] + row["waiting_fix"] == 400
    wire.after(1).gets(ANSWER)
    assert (row["waiting"] + row["waiting_fix"], wire.answers) == (0, 1)
    assert hooked.latency("a")["first_byte_us"] < 10_000_000
