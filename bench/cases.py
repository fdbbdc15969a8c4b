"""Decides what is measured on the packet path, against which target."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from agent.dataplane import libbpf
from agent.dataplane.compile import Compiled
from agent.model import Forward, Protocol
from bench import frames, setting
from bench.setting import Bench
from bench.timing import Flows, Timing, Wrapped

XDP_PASS, XDP_TX = 2, 3
_LENGTHS = {4: 64, 6: 80}  # frames, as in the measurements of Katran


class Table(enum.Enum):
    """What the flow table holds when a case starts."""

    EMPTY = enum.auto()
    OWN_FLOWS = enum.auto()  # the case's flows, established
    FULL = enum.auto()  # live, established flows of others in every slot


@dataclass(frozen=True, slots=True)
class Case:
    """One row. ``needs`` names the services that the specialised program serves."""

    name: str
    frame: bytes
    needs: tuple[str, ...]
    table: Table
    flows: Flows | None = None
    slots: int = setting.DEFAULT_SLOTS
    verdict: int = XDP_TX
    target_ns: float | None = None
    katran_ns: str | None = None  # minimum, from the same method, on another machine


@dataclass(frozen=True, slots=True)
class Result:
    """A case's timings: the program specialised for it, and the one with every feature."""

    case: Case
    specialised: Timing
    all_features: Timing


def cases() -> Iterator[Case]:
    """Every case, in the order of the report."""
    for family, forward in setting.VIPS:
        yield from _of_service(family, forward)
    yield Case(
        "v4 dsr: UDP, one flow",
        _frame(4, Forward.DSR, protocol=Protocol.UDP),
        ("udp",),
        Table.OWN_FLOWS,
        katran_ns="130",
    )
    yield Case(
        "v4 dsr: any port, established",
        frames.frame(setting.CLIENTS[4], setting.ANY_PORT_VIP, 4242),
        ("any port",),
        Table.OWN_FLOWS,
    )
    for family, katran in ((4, "47"), (6, "46")):
        vip = setting.NO_VIP[family]
        yield Case(
            f"v{family}: not a VIP",
            frames.frame(setting.CLIENTS[family], vip, setting.PORT, length=_LENGTHS[family]),
            (f"v{family} dsr",),
            Table.EMPTY,
            verdict=XDP_PASS,
            target_ns=22,
            katran_ns=katran,
        )


def _frame(
    family: int,
    forward: Forward,
    flags: int = frames.TCP_ACK,
    protocol: Protocol = Protocol.TCP,
) -> bytes:
    port = setting.PORT if protocol is Protocol.TCP else setting.UDP_PORT
    return frames.frame(
        setting.CLIENTS[family],
        setting.VIPS[family, forward],
        port,
        protocol=protocol,
        flags=flags,
        length=_LENGTHS[family],
    )


def _of_service(family: int, forward: Forward) -> Iterator[Case]:
    name = f"v{family} {forward.value}"
    ack, syn = _frame(family, forward), _frame(family, forward, frames.TCP_SYN)
    offset = frames.client_offset(setting.VIPS[family, forward])
    some, many, ever_new = Flows(offset, 1 << 16), Flows(offset, 1 << 20), Flows(offset, 0)
    own, full, large = Table.OWN_FLOWS, Table.FULL, setting.LARGE_SLOTS
    target = {"v4 dsr": 45.0, "v4 ipip": 55.0}.get(name)
    # Katran has IPIP only, and was measured with a table of 4M slots.
    katran = {
        "v4 ipip": {"ack": "99", "syn": "103", "64k": "141-253", "1m": "263", "new": "438",
                    "full": "805"},
        "v6 ipip": {"ack": "100"},
    }.get(name, {})  # fmt: skip
    needs = (name,)
    yield from (
        Case(
            f"{name}: established", ack, needs, own, target_ns=target, katran_ns=katran.get("ack")
        ),
        Case(f"{name}: SYN, same flow", syn, needs, Table.EMPTY, katran_ns=katran.get("syn")),
        Case(f"{name}: 65,536 flows", ack, needs, own, some),
        Case(f"{name}: all new flows (SYN flood)", syn, needs, Table.EMPTY, ever_new),
        Case(f"{name}: all new flows, table full", syn, needs, full, ever_new, target_ns=150),
    )
    for label, frame, table, flows, theirs in (
        ("65,536 flows", ack, own, some, "64k"),
        ("1,048,576 flows", ack, own, many, "1m"),
        ("all new flows (SYN flood)", syn, Table.EMPTY, ever_new, "new"),
        ("all new flows, table full", syn, full, ever_new, "full"),
    ):
        title = f"{name}: {label}, 4M slots"
        limit = 150.0 if table is full else None
        yield Case(
            title, frame, needs, table, flows, large, target_ns=limit, katran_ns=katran.get(theirs)
        )


def measure(bench: Bench, case: Case, runs: int, repeat: int) -> Result:
    """Time a case with both programs in turn, on the flow table that the case asks for."""
    if case.flows and case.flows.count:
        repeat = max(repeat, case.flows.count)
    programs = [bench.program(names).program for names in (case.needs, ())]
    wrapped = Wrapped(case.frame, case.flows)
    _prepare(bench, case, programs[0])
    timings = wrapped.time(programs, runs, repeat)
    for program in programs:
        verdict = wrapped.send(program, 3)
        assert verdict == case.verdict, f"{case.name}: verdict {verdict}"
    return Result(case, *timings)


def _prepare(bench: Bench, case: Case, program: Compiled) -> None:
    if case.table is Table.FULL:
        bench.fill_flows()
        return
    bench.clear_flows()
    if case.table is Table.OWN_FLOWS:
        _establish(bench, case, program)


def _establish(bench: Bench, case: Case, program: Compiled) -> None:
    """Each flow sends two packets in a row: what one packet opens, the next one's payload
    establishes.
    """
    if case.flows is None:
        for _ in range(2):
            libbpf.test_run(program.fd, case.frame)
        wanted = 1
    else:
        wanted = case.flows.count
        twice = Flows(case.flows.offset, wanted, in_a_row=2, base=case.flows.base)
        Wrapped(case.frame, twice).send(program, 2 * wanted)
    found = bench.established()
    assert found >= 0.99 * wanted, f"{case.name}: only {found} of {wanted} flows established"
