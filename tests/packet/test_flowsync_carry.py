"""A start with other table sizes: flows go on at their backends, those included of which only a
SYN has been seen.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from agent.dataplane import libbpf
from agent.dataplane.old import OldTables
from agent.dataplane.pins import pins_of
from agent.dataplane.program import remove_instance
from agent.flowsync import carry
from agent.model import Config, Forward, Hook, Nat, Scheduler, Service, Tables
from tests.packet import harness, nodes
from tests.packet.frames import CLIENT4, VIP4
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.wires import Packet

pytestmark = pytest.mark.usefixtures("network")

OLD = Tables(flows=16_384, services=8, backends=64, ring_slots=251)
LARGER = Tables(flows=65_536, services=8, backends=64, ring_slots=251, nat_blocks=40)
SMALLER = Tables(flows=4096, services=4, backends=32, ring_slots=127)
FLOWS = 60


def services() -> tuple[Service, ...]:
    return tuple(
        service(*(backend(f"{name}{n}", f"10.1.{port}.{n}") for n in range(1, 5)), name=name,
                port=port, forward=forward, scheduler=Scheduler.ROUND_ROBIN)
        for name, port, forward in (
            ("web", 80, Forward.DSR), ("nat", 81, Forward.NAT), ("full", 82, Forward.FULLNAT)
        )
    )  # fmt: skip


def started(instance: str, tables: Tables) -> Rig:
    """As the agent does it: tables and program, what was there, a pass, the attachment."""
    config = Config(instance, "here", hook=Hook.NATIVE, tables=tables)
    dataplane = harness.load(config, services())
    carry.prepare(dataplane)
    rig = object.__new__(Rig)
    rig.dataplane, rig.tables, rig.clock = dataplane, dataplane.tables, dataplane.clock
    rig.config = config
    rig.reconciler = harness.Reconciler(rig.tables, lambda: 1000.0)
    rig.serve(*services())
    return rig


def client(number: int, port: int, flags: str = "S") -> Packet:
    data = b"" if flags == "S" else b"GET /"
    seq = 1000 if flags == "S" else 1001
    return Packet(
        CLIENT4, VIP4, 20_000 + number, port, data, flags, seq, 0 if data == b"" else 7001
    )


def opens(rig: Rig, number: int, port: int) -> None:
    """A client connects, and acknowledges what the server says where that is seen: in fullnat, so
    that its port is its own, always, and in nat if it is to go on.
    """
    out = rig.send(client(number, port).frame()).data
    if port == 82 or (port == 81 and number % 3):
        told = nodes.answer(client(number, port), out, flags="SA", payload=b"", seq=7000)
        sent(rig, told)
        sent(rig, replace(client(number, port, "PA"), flags="A", payload=b""))


def sent(rig: Rig, packet: Packet) -> bytes:
    done = rig.send(packet.frame())
    assert done.verdict == Verdict.TX, Verdict(done.verdict).name
    return done.data[:6] + done.data[26:38]  # next hop, addresses and ports


@pytest.mark.parametrize(
    "tables",
    [SMALLER, pytest.param(LARGER, marks=pytest.mark.soak)],
    ids=["smaller", "larger"],
)
def test_flows_go_on_in_tables_of_another_size(instance: str, tables: Tables):
    before = started(instance, OLD)
    before.dataplane.attach()
    for number in range(FLOWS):
        for port in (80, 81, 82):
            opens(before, number, port)
            if number % 3:
                sent(before, client(number, port, "PA"))
    went = {}
    after = started(instance, tables)
    assert after.dataplane.takes_over
    for number in range(FLOWS, FLOWS + 10):  # before the new program is there
        for port in (80, 81, 82):
            opens(before, number, port)
    for number in range(FLOWS + 10):
        for port in (80, 81, 82):
            went[number, port] = sent(before, client(number, port))
    after.dataplane.attach()
    assert not after.dataplane.pins.of_other_versions()
    assert {
        (number, port): sent(after, client(number, port, "PA")) for number, port in went
    } == went
    assert after.counts("web1").opened >= FLOWS // 4
    remove_instance(instance)


@pytest.mark.parametrize("reason", ["held", "no-backend"])
def test_the_old_program_takes_no_new_flow_while_the_last_are_carried(instance: str, reason: str):
    """Nor does one of an ABI that has no deadline."""
    rig = started(instance, OLD)
    rig.dataplane.attach()
    old = OldTables(rig.dataplane.pins, rig.dataplane.size, Nat())
    if reason == "no-backend":
        fields = old._layout.structs["settings"].offsets
        fields["pad3"] = fields.pop("held_until")
    port = 0
    while not rig.service_counts().drops.get(reason):  # it is over in a second, on any host
        with old.new_flows_held() as renew:
            renew()
            rig.send(client(port := port + 1, 80).frame())
    sent(rig, client(0, 80))
    old.close()
    remove_instance(instance)


def test_tables_that_nobody_can_read_stop_no_start(instance: str):
    """A program without BTF; the flows are lost, and the log says so."""
    strange = pins_of(instance).folder.with_name("abi1")
    strange.mkdir(parents=True)
    fd = libbpf.load_pass_program()
    libbpf.object_pin(fd, strange / "program")
    os.close(fd)
    rig = started(instance, OLD)
    assert rig.dataplane.old is None
    rig.dataplane.attach()
    assert not rig.dataplane.pins.of_other_versions()
    remove_instance(instance)


def test_a_start_that_is_given_up_leaves_the_old_tables(instance: str):
    before = started(instance, OLD)
    before.dataplane.attach()
    sent(before, client(1, 80))
    there = sorted(path.name for path in before.dataplane.pins.folder.iterdir())
    after = started(instance, SMALLER)
    after.dataplane.undo_load()
    assert not before.dataplane.pins.of_other_versions()
    assert sorted(path.name for path in before.dataplane.pins.folder.iterdir()) == there
    remove_instance(instance)
