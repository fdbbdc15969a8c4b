"""What is summed over flows never drifts, whatever packets come in whatever order: open flows and
waiting bytes, of backends and of services, in a table that is always full.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.dataplane import libbpf, pins, survey
from agent.dataplane.abi import (
    FLOW_EMBRYONIC_WAYS,
    FLOW_WAYS,
    WAITING_FORGOTTEN_SHIFT,
    FlowState,
)
from agent.dataplane.trueup import TrueUp
from agent.model import AdminState, Config, Forward, Scheduler, Tables
from tests.examples import examples
from tests.packet import harness
from tests.packet.frames import CLIENT4, SYN, Segments, random_clients
from tests.packet.harness import Rig, backend, service
from tests.packet.pauses import undisturbed
from tests.packet.talks import ANSWER, HEAD, Wire, serve
from tests.packet.test_waiting_talks import CALL, FIRST_FLIGHT
from tests.packet.tls import FINISHED_13, HELLO, REQUEST, TICKETS
from tests.packet.wires import Packet

TINY = Tables(FLOW_WAYS, 4, 8, 251)  # one bucket
SERVERS = {"a": "10.1.2.1", "b": "10.1.2.2", "c": "10.1.2.3"}
CLIENTS = range(1, 14)
BATCHES = 133
PAYLOADS = (b"", b"x", b"GET / HTTP/1.1\r\n\r\n", HELLO, FINISHED_13, REQUEST, FIRST_FLIGHT, CALL)
ANSWERS = (b"", b"x", HEAD, ANSWER, TICKETS)
FLAGS = ("S", "S", "A", "A", "PA", "PA", "FA", "R", "SA", "RA")
random_tests = settings(
    deadline=None,
    max_examples=examples(80),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def one_bucket() -> Iterator[harness.Dataplane]:
    """All flows meet in it."""
    harness.require_root()
    config = Config(harness.instance_name("tiny"), "lo", tables=TINY)
    dataplane = harness.load(config, harness.all_features(), keys=harness.KEYS)
    yield dataplane
    dataplane.tables.close()
    pins.remove(dataplane.pins)


@pytest.fixture
def tiny(one_bucket: harness.Dataplane) -> Iterator[Rig]:
    rig = Rig(one_bucket)
    rig.config = replace(rig.config, tables=TINY)
    yield rig
    rig.reset()


def check(rig: Rig) -> None:
    """The sums are what the flow table says, to the flow and to the byte."""
    words = rig.tables.flows[:FLOW_WAYS].copy()
    states, whose = survey.state_of(words), survey.backend_of(words)
    held = rig.tables.flows_warm["waiting"][:FLOW_WAYS].astype(np.int64)
    forgotten = held >> WAITING_FORGOTTEN_SHIFT != 0
    waiting = np.where(forgotten, 0, held)
    awaits = states >= 6
    assert (held[awaits] > 0).all(), "it says that it waits, for nothing"
    assert (waiting[~awaits] == 0).all(), "bytes that nobody will take out"
    opened = 0
    for name in SERVERS:
        ident, counts, load = rig.backend_id(name), rig.counts(name), rig.load_of(name)
        mine = whose == ident
        slots = int(np.isin(states[mine], survey.OPEN).sum())
        assert (load["open"], counts.opened - counts.closed) == (slots, slots)
        assert load["waiting"] + load["waiting_fix"] == waiting[mine & awaits].sum()
        opened += slots
    assert rig.tables.service_load["open"][rig.service_id()] == opened


def members(out: str = "") -> tuple:
    return tuple(
        backend(name, address, admin=AdminState.MAINTENANCE if name == out else AdminState.ACTIVE)
        for name, address in SERVERS.items()
    )


class Crowd:
    """Clients that send anything, and backends that answer anything."""

    def __init__(self, rig: Rig, forward: Forward, scheduler: Scheduler) -> None:
        self.rig = rig
        self.forward = forward
        self.scheduler = scheduler
        self.seq = dict.fromkeys(CLIENTS, 1000)
        self.keeper = TrueUp(rig.tables)
        self.serve("")

    def serve(self, out: str) -> None:
        web = service(*members(out), forward=self.forward, scheduler=self.scheduler)
        self.rig.serve(web)

    def client(self, who: int, flags: str, payload: bytes, back: int, acked: int) -> None:
        packet = Packet(sport=who, flags=flags, seq=self.seq[who] - back, ack=5000 + acked,
                        payload=payload)  # fmt: skip
        self.rig.send(packet.frame())
        self.seq[who] += len(payload)

    def server(self, who: int, flags: str, payload: bytes, at: int, name: str) -> None:
        packet = Packet(SERVERS[name], CLIENT4, 80, who, payload, flags, 5000 + at, self.seq[who])
        self.rig.send(packet.frame())

    def age(self, who: int, seconds: int) -> None:
        slot = self.rig.slot(CLIENT4, who)
        if slot:
            self.rig.make_idle(slot.index, self.rig.clock.ticks(seconds) + 1)

    def late(self, who: int, seconds: int) -> None:
        """As if the newest request byte had come so long ago."""
        slot = self.rig.slot(CLIENT4, who)
        if slot:
            self.rig.tables.flows_warm["request"][slot.index] -= np.uint64(seconds * 10**9)
            self.rig.tables.flows_warm["request_jiffies"][slot.index] = 0

    def survey(self) -> None:
        """What the agent does, again and again."""
        found = self.rig.survey()
        self.keeper.take(found)
        survey.forget(self.rig.tables, found)


clients = st.sampled_from(CLIENTS)
near = st.sampled_from([0, 0, 0, 1, 2, 25, 300, 5000])
ACTIONS = st.one_of(
    st.tuples(st.just("client"), clients, st.sampled_from(FLAGS), st.sampled_from(PAYLOADS), near,
              near),
    st.tuples(st.just("client"), clients, st.just("PA"), st.sampled_from(PAYLOADS), st.just(0),
              near),
    st.tuples(st.just("server"), clients, st.sampled_from(FLAGS), st.sampled_from(ANSWERS), near,
              st.sampled_from(list(SERVERS))),
    st.tuples(st.just("age"), clients, st.sampled_from([5, 30, 60, 900])),
    st.tuples(st.just("late"), clients, st.sampled_from([29, 31, 61, 1000])),
    st.tuples(st.just("survey")),
    st.tuples(st.just("serve"), st.sampled_from(["", "", "a", "b"])),
)  # fmt: skip


def opens(who: int) -> list[tuple]:
    """Enough to be established and to wait."""
    return [("client", who, "S", b"", 0, 0),
            *(("server", who, "SA", b"", -1, name) for name in SERVERS),
            ("client", who, "A", b"", 0, 0), ("client", who, "PA", b"GET /", 0, 0)]  # fmt: skip


@random_tests
@given(
    forward=st.sampled_from([Forward.DSR, Forward.NAT]),
    scheduler=st.sampled_from([Scheduler.LEAST_CONN, Scheduler.LEAST_LOAD, Scheduler.SOURCE]),
    ready=st.integers(0, 8),
    actions=st.lists(ACTIONS, min_size=5, max_size=60),
)
@example(Forward.DSR, Scheduler.LEAST_LOAD, 8, [("serve", "a"), ("client", 1, "A", b"", 0, 0)])
@example(Forward.DSR, Scheduler.LEAST_LOAD, 1,
         [("client", 1, "FA", b"", 0, 0), ("client", 1, "S", b"", 0, 0)])  # fmt: skip
@example(Forward.DSR, Scheduler.SOURCE, 0,
         [("client", n, "S", b"x", 0, 0) for n in (1, 1, 2, 3, 4)])  # fmt: skip
@example(Forward.NAT, Scheduler.LEAST_LOAD, 1,
         [("server", 1, "PA", HEAD, 0, name) for name in SERVERS]
         + [("late", 1, 31), ("survey",), ("client", 1, "A", b"", 0, 79)]
         + [("server", 1, "PA", ANSWER, 79, name) for name in SERVERS])  # fmt: skip
@example(Forward.DSR, Scheduler.LEAST_LOAD, 2,
         [("late", 1, 1000), ("survey",), ("client", 1, "PA", b"GET /", 0, 0),
          ("late", 2, 1000), ("survey",), ("client", 2, "A", b"", 0, 700)])  # fmt: skip
def test_the_sums_are_what_the_table_says(tiny: Rig, forward, scheduler, ready: int, actions):
    tiny.reset()
    crowd = Crowd(tiny, forward, scheduler)
    for who in range(1, ready + 1):
        for action, *packet in opens(who):
            getattr(crowd, action)(*packet)
    check(tiny)
    for action, *arguments in actions:
        getattr(crowd, action)(*arguments)
        check(tiny)
    crowd.serve("")  # what is given up is left to the agent's sweep
    for who in CLIENTS:
        slot = tiny.slot(CLIENT4, who)
        if slot:  # a RST counts where the client is
            seq = int(tiny.tables.flows_warm["seq"][slot.index])
            tiny.send(Packet(sport=who, flags="R", seq=seq).frame())
    check(tiny)
    left = [slot for who in CLIENTS if (slot := tiny.slot(CLIENT4, who))]
    for name in SERVERS:
        load, ident = tiny.load_of(name), tiny.backend_id(name)
        mine = [slot.state for slot in left if slot.backend_id == ident]
        new = mine.count(FlowState.EMBRYONIC) if forward.is_nat else 0  # whose RST is not believed
        waiting = load["waiting"] + load["waiting_fix"]
        assert (load["open"], waiting) == (new, 0), "nothing stays behind"


@pytest.mark.parametrize("scheduler", [Scheduler.LEAST_CONN, Scheduler.SOURCE])
def test_a_flood_of_syns_leaves_no_trace_in_the_sums(tiny: Rig, scheduler: Scheduler):
    crowd = Crowd(tiny, Forward.DSR, scheduler)
    for who in range(1, 5):
        for action, *packet in opens(who):
            getattr(crowd, action)(*packet)
    segments = Segments()
    for address, port in random_clients(8, 3000):
        tiny.send(segments.frame(address.packed, port, SYN))
    check(tiny)
    assert sum(tiny.load_of(name)["open"] for name in SERVERS) == 4 + FLOW_EMBRYONIC_WAYS
    assert sum(tiny.load_of(name)["waiting"] for name in SERVERS) == 4 * 5


def on_two_cpus(tiny: Rig, frames: list[Iterator[bytes]], batches: tuple[int, int]) -> None:
    """Runs the program on both lists at a time, so many frames of each before it goes on: a CPU
    that others have, too, falls behind by no more than that.
    """
    fd, start = tiny.dataplane.program.fd, threading.Barrier(2)

    def traffic(cpu: int, mine: Iterator[bytes], size: int) -> None:
        os.sched_setaffinity(0, {cpu})
        try:
            for batch in itertools.batched(mine, size):
                start.wait()
                for frame in batch:
                    libbpf.test_run(fd, frame)
        except BaseException:
            start.abort()  # or the other one would wait for ever
            raise

    cpus = sorted(os.sched_getaffinity(0))
    threads = [
        threading.Thread(target=traffic, args=(cpus[n % len(cpus)], frames[n], batches[n]))
        for n in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_cpus_at_a_time_count_every_flow_once(tiny: Rig):
    """The same flows on both, in a bucket that is always full."""
    Crowd(tiny, Forward.NAT, Scheduler.SOURCE)
    some = [Packet(sport=who, flags=flags).frame() for who in CLIENTS for flags in ("S", "A", "R")]
    some += [
        Packet(server, CLIENT4, 80, who, flags=flags).frame()
        for server in SERVERS.values()
        for who in CLIENTS
        for flags in ("A", "FA")
    ]
    lists = [iter(random.Random(n).choices(some, k=20_000)) for n in (0, 1)]
    on_two_cpus(tiny, lists, (1000, 1000))
    check(tiny)


def test_requests_and_answers_at_a_time_leave_the_sum_right(tiny: Rig):
    """The clients on one CPU, the backends on the other. Where these come first in a batch they
    answer what came in the one before.
    """
    crowd = Crowd(tiny, Forward.NAT, Scheduler.SOURCE)
    for who in range(1, 7):
        for action, *packet in opens(who):
            getattr(crowd, action)(*packet)
    asked = (
        Packet(sport=1 + n % 6, flags="PA", seq=1005 + n // 6 * 10, ack=5000, payload=b"x" * 10)
        for n in range(60 * BATCHES)
    )
    answers = (
        Packet(server, CLIENT4, 80, 1 + n % 6, b"y" * 10, "PA", 5000 + n * 10)
        for n in range(60 * BATCHES)
        for server in SERVERS.values()
    )
    frames = [(each.frame() for each in asked), (each.frame() for each in answers)]
    on_two_cpus(tiny, frames, (60, 60 * len(SERVERS)))
    held = tiny.tables.flows_warm["waiting"][:FLOW_WAYS].astype(np.int64)
    backends = survey.backend_of(tiny.tables.flows[:FLOW_WAYS].copy())
    for name in SERVERS:
        mine = held[backends == tiny.backend_id(name)]
        assert tiny.load_of(name)["waiting"] == mine.sum()
    assert sum(tiny.counts(name).answers for name in SERVERS) >= BATCHES


# -- bytes that wait, exactly

STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["new", "new", "again", "gap", "answer", "head", "late-ack"]),
        st.integers(1, 1400),
    ),
    min_size=5,
    max_size=50,
)


@random_tests
@given(forward=st.sampled_from([Forward.DSR, Forward.NAT]), steps=STEPS)
@undisturbed
def test_plain_requests_are_counted_to_the_byte(rig: Rig, forward, steps):
    rig.reset()
    serve(rig, forward)
    wires = [Wire(rig, sport).open() for sport in (1, 2, 3)]
    waits, heads, answers = [0, 0, 0], [False, False, False], 0
    for who, what, count in steps:
        wire = wires[who]
        if what in ("new", "gap"):
            if heads[who]:
                waits[who], heads[who] = 0, False
            if what == "gap":
                wire.client("A", b"g" * count, seq=wire.seq + count)
                wire.seq += 2 * count
                waits[who] += count
            else:
                wire.client("PA", b"n" * count)
            waits[who] += count
        elif what == "again":
            back = min(count, (wire.seq - 1001) % 2**32)
            wire.client("A", b"a" * back, seq=wire.seq - back)
        elif what == "answer":
            answers += waits[who] > 0
            wire.after(500).gets(ANSWER)
            waits[who], heads[who] = 0, False
        elif what == "head":
            heads[who] = waits[who] > 0
            wire.after(1).gets(HEAD)
        else:
            wire.client("A", ack=wire.acked - count)
        held = rig.tables.flows_warm["waiting"]
        assert [int(held[w.index]) for w in wires] == waits
        assert rig.load_of("a")["waiting"] == sum(waits)
        assert rig.counts("a").answers == answers
