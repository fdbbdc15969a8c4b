"""Decides what is measured on the packet path, and against which target."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace

from agent.dataplane import libbpf
from agent.dataplane.compile import Compiled
from agent.model import Address, Forward, Protocol
from agent.state.addresstree import Prefix
from bench import frames, setting
from bench.setting import Bench
from bench.timing import Flows, Runnable, Timing, Wrapped

XDP_DROP, XDP_PASS, XDP_TX = 1, 2, 3
_LENGTHS = {4: 64, 6: 80}  # bytes of a frame, as in Katran's own measurements
_SEGMENT = 14 + 20 + 20  # bytes of a frame with a bare segment
_ROUNDS = 4  # of establishing flows


class Table(enum.Enum):
    """What the flow table holds when a case starts."""

    EMPTY = enum.auto()
    OWN_FLOWS = enum.auto()  # the case's flows, established
    FULL = enum.auto()  # a live, established flow that is not the case's in every slot


@dataclass(frozen=True, slots=True)
class Case:
    """One row. ``needs`` names the services that the specialised program serves.

    ``opening`` is the frame whose flows are established first, if it is not the measured one;
    ``is_reply``: the measured packet is the backend's answer to that frame.
    """

    name: str
    frame: bytes
    needs: tuple[str, ...]
    table: Table
    flows: Flows | None = None
    slots: int = setting.DEFAULT_SLOTS
    verdict: int = XDP_TX
    target_ns: float | None = None
    beside_katran: bool = False  # Katran can do the same, though only by IP-in-IP
    opening: bytes | None = None
    is_reply: bool = False
    blocked: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """A case's timings: the program specialised for it, the one with all features, and Katran's."""

    case: Case
    specialised: Timing
    all_features: Timing
    katran: Timing | None = None


# Nanoseconds of the program with all features, for an established flow, by forwarding mode. IPv6
# may take 10 more, and a packet whose request bytes are counted 15 more.
_TARGETS = {
    Forward.DSR: 45.0,
    Forward.IPIP: 50.0,
    Forward.GUE: 50.0,
    Forward.NAT: 60.0,
    Forward.FULLNAT: 70.0,
}
_MORE_V6, _MORE_COUNTED, _MANY, _NEW, _FOREIGN = 10.0, 15.0, 120.0, 150.0, 25.0


def cases() -> Iterator[Case]:
    """Yield every case, in the order of the report."""
    for family, forward in setting.VIPS:
        yield from _of_service(family, forward)
    for family, forward in setting.VIPS:
        if forward in (Forward.DSR, Forward.IPIP):
            yield from _of_many(family, forward)
    yield from _of_schedulers()
    yield from _of_unknown_sources()
    yield _new_flows("v4 dsr, client in a zone of 1,024 prefixes", setting.ZONES_VIP, "zones")
    yield Case(
        "v4 dsr: UDP, one flow",
        _frame(4, Forward.DSR, protocol=Protocol.UDP),
        ("udp",),
        Table.OWN_FLOWS,
        beside_katran=True,
    )
    yield Case(
        "v4 dsr: any port, established",
        frames.frame(setting.CLIENTS[4], setting.ANY_PORT_VIP, 4242, payload=False),
        ("any port",),
        Table.OWN_FLOWS,
        opening=frames.frame(setting.CLIENTS[4], setting.ANY_PORT_VIP, 4242, ack=0),
    )
    yield Case(
        "v4 dsr: request bytes, not counted",
        frames.frame(setting.CLIENTS[4], setting.UNCOUNTED_VIP, setting.PORT),
        ("uncounted",),
        Table.OWN_FLOWS,
    )
    for family in (4, 6):
        vip = setting.NO_VIP[family]
        yield Case(
            f"v{family}: not a VIP",
            frames.frame(setting.CLIENTS[family], vip, setting.PORT, length=_LENGTHS[family]),
            (f"v{family} dsr",),
            Table.EMPTY,
            verdict=XDP_PASS,
            target_ns=_FOREIGN,
            beside_katran=True,
        )


def _frame(
    family: int,
    forward: Forward,
    flags: int = frames.TCP_ACK,
    protocol: Protocol = Protocol.TCP,
    payload: bool = True,
    ack: int = 1,
) -> bytes:
    port = setting.PORT if protocol is Protocol.TCP else setting.UDP_PORT
    return frames.frame(
        setting.CLIENTS[family],
        setting.VIPS[family, forward],
        port,
        protocol=protocol,
        flags=flags,
        length=_LENGTHS[family],
        payload=payload,
        ack=ack,
    )


def _of_service(family: int, forward: Forward) -> Iterator[Case]:
    """Yield the cases of one flow, and of many flows in a table of the default size."""
    name = f"v{family} {forward.value}"
    opening = _frame(family, forward)
    answered = _frame(family, forward, payload=False, ack=2000)
    request = _frame(family, forward, frames.TCP_ACK | frames.TCP_PSH)
    syn = _frame(family, forward, frames.TCP_SYN, payload=False)
    offset = frames.client_offset(setting.VIPS[family, forward])
    counting = Flows(frames.sequence_offset(setting.VIPS[family, forward]), 0, base=2)
    some, ever_new = Flows(offset, 1 << 16), Flows(offset, 0)
    own, full, needs = Table.OWN_FLOWS, Table.FULL, (name,)
    target = _TARGETS[forward] + (_MORE_V6 if family == 6 else 0.0)
    beside = not forward.is_nat
    yield Case(
        f"{name}: established",
        answered,
        needs,
        own,
        target_ns=target,
        beside_katran=beside,
        opening=opening,
    )
    yield Case(
        f"{name}: request bytes, counted",
        request,
        needs,
        own,
        counting,
        target_ns=target + _MORE_COUNTED,
        beside_katran=beside,
        opening=opening,
    )
    if forward.is_nat:
        yield Case(
            f"{name}: the backend's answers",
            answered,
            needs,
            own,
            target_ns=target,
            opening=opening,
            is_reply=True,
        )
    yield Case(f"{name}: SYN, same flow", syn, needs, Table.EMPTY, beside_katran=beside)
    if forward is not Forward.FULLNAT:  # which has 22,528 ports with one source address
        yield Case(f"{name}: 65,536 flows", answered, needs, own, some, opening=opening,
                   beside_katran=beside)  # fmt: skip
        yield Case(f"{name}: all new flows (SYN flood)", syn, needs, Table.EMPTY, ever_new,
                   beside_katran=beside)  # fmt: skip
    if forward not in (Forward.NAT, Forward.FULLNAT):  # which drop packets of flows without room
        yield Case(f"{name}: all new flows, table full", syn, needs, full, ever_new,
                   target_ns=_NEW, beside_katran=beside)  # fmt: skip


def _of_many(family: int, forward: Forward) -> Iterator[Case]:
    """Yield cases with more flows than the CPU's caches hold."""
    name = f"v{family} {forward.value}"
    opening = _frame(family, forward)
    ack = _frame(family, forward, payload=False, ack=2000)
    syn = _frame(family, forward, frames.TCP_SYN, payload=False)
    offset = frames.client_offset(setting.VIPS[family, forward])
    some, many, ever_new = Flows(offset, 1 << 16), Flows(offset, 1 << 20), Flows(offset, 0)
    own, full = Table.OWN_FLOWS, Table.FULL
    for label, frame, table, flows, target in (
        ("65,536 flows", ack, own, some, None),
        ("65,536 flows, request bytes", opening, own, some, None),
        ("1,048,576 flows", ack, own, many, _MANY),
        ("1,048,576 flows, request bytes", opening, own, many, None),
        ("all new flows (SYN flood)", syn, Table.EMPTY, ever_new, None),
        ("all new flows, table full", syn, full, ever_new, _NEW),
    ):
        yield Case(
            f"{name}: {label}, 4M slots",
            frame,
            (name,),
            table,
            flows,
            setting.LARGE_SLOTS,
            target_ns=target,
            beside_katran=True,
            opening=opening if table is own else None,
        )


def _of_schedulers() -> Iterator[Case]:
    """Yield cases in which each packet is a new flow, of a service with 100 backends."""
    for scheduler, vip in setting.SCHEDULER_VIPS.items():
        yield _new_flows(f"v4 dsr, {scheduler.value}", vip, scheduler.value)
    yield _new_flows("v4 dsr, least-load with affinity", setting.AFFINITY_VIP, "affinity")


def _of_unknown_sources() -> Iterator[Case]:
    """Yield cases of SYNs from sources that are not verified, not allowed, blocked or limited."""
    vip = setting.CHALLENGED_VIP
    # As long as the reply: the wrapper cannot restore bytes that are cut off at the end.
    yield _new_flows("v4 dsr, challenged", vip, "challenged", length=_SEGMENT)
    asked = setting.SYN_OPTIONS
    yield _new_flows("v4 dsr, SYN cookies", setting.COOKIES_VIP, "cookies",
                     length=_SEGMENT + len(asked), options=asked)  # fmt: skip
    refused = _new_flows("v4 dsr, on no list of 10,000 prefixes", setting.LISTED_VIP, "listed")
    yield replace(refused, verdict=XDP_DROP)
    # Both halves of each /16, so that no source is found at the root of the tree.
    halves = tuple((n << 15, 17) for n in range(1 << 17))
    blocked = _new_flows("v4 dsr, blocked in 131,072 prefixes", setting.LISTED_VIP, "listed")
    yield replace(blocked, verdict=XDP_DROP, blocked=halves)
    yield _new_flows("v4 dsr, three rates that allow it", setting.LIMITED_VIP, "limited")
    spent = _new_flows("v4 dsr, beyond a rate", setting.SPENT_VIP, "spent")
    yield replace(spent, verdict=XDP_DROP)
    yield replace(
        next(_of_service(4, Forward.DSR)),
        name="v4 dsr: established, beside 10,000 blocked prefixes",
        needs=("v4 dsr", "listed"),
        blocked=tuple(setting.scattered(10_000)),
        target_ns=None,
        beside_katran=False,
    )


def _new_flows(
    name: str, vip: Address, needs: str, length: int = _LENGTHS[4], options: bytes = b""
) -> Case:
    syn = frames.frame(setting.CLIENTS[4], vip, setting.PORT, flags=frames.TCP_SYN,
                       length=length, payload=False, options=options)  # fmt: skip
    flows = Flows(frames.client_offset(vip), 0)
    return Case(f"{name}: all new flows (SYN flood)", syn, (needs,), Table.EMPTY, flows)


def measure(
    bench: Bench, case: Case, runs: int, repeat: int, katran: Runnable | None = None
) -> Result:
    """Time a case with both programs, and Katran's, in turn, with the flow table that it needs."""
    if case.flows and case.flows.count:
        repeat = max(repeat, case.flows.count)
    own = [bench.program(names).program for names in (case.needs, ())]
    programs: list[Runnable] = [*own]
    if katran is not None and case.beside_katran:
        programs.append(katran)
    bench.block([*case.blocked])
    frame = _prepare(bench, case, own[0])
    wrapped = Wrapped(frame, case.flows)
    timings = wrapped.time(programs, runs, repeat)
    for program in programs:
        verdict = wrapped.send(program, 3)
        assert verdict == case.verdict, f"{case.name}: verdict {verdict}"
    return Result(case, *timings)


def _prepare(bench: Bench, case: Case, program: Compiled) -> bytes:
    """Bring the flow table into the case's state; return the frame to measure."""
    if case.table is Table.FULL:
        bench.fill_flows()
        return case.frame
    bench.clear_flows()
    if case.table is Table.OWN_FLOWS:
        _establish(bench, case, program)
    if case.is_reply:
        return frames.answer(libbpf.test_run(program.fd, case.frame).data, len(case.frame))
    return case.frame


def _establish(bench: Bench, case: Case, program: Compiled) -> None:
    """Establish the flows of a case.

    Each flow begins with a SYN, as `fullnat` requires, and sends two packets in a row: the first
    one opens it, and the payload of the second one establishes it. In `nat` and `fullnat` it also
    has to be answered by the server; this takes rounds, with at most four flows of a bucket each.
    """
    frame, flows = case.opening or case.frame, case.flows
    if flows is None or not flows.count:
        wanted, once, twice = 1, None, None
    else:
        wanted = flows.count
        once, twice = flows, replace(flows, in_a_row=2)
    opening = Wrapped(frame, twice)
    beginning = Wrapped(frames.begun(frame), once)
    for _ in range(_ROUNDS):
        beginning.send(program, wanted)
        opening.send(program, 2 * wanted)
        bench.answer_clients()
        if bench.established() >= 0.99 * wanted:
            break
    if case.opening is not None:  # answers the waiting requests
        Wrapped(case.frame, once).send(program, wanted)
    found = bench.established()
    assert found >= 0.99 * wanted, f"{case.name}: only {found} of {wanted} flows established"
