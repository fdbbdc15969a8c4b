"""Says what the program would do with the next packet of a flow, and why.

Follows ``bpf/balancer.c`` step by step on the tables as they are; tests/packet compares its
answers with the kernel's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.dataplane import abi, flowhash
from agent.dataplane.constants import Clock, HashKeys
from agent.dataplane.flows import STATE_NAMES, Names, address_of
from agent.dataplane.tables import SharedTables
from agent.model import ANY_PORT
from agent.state.queries import Draw, Explanation, FiveTuple, FlowView
from agent.state.tables import ServiceEntry, ServiceSlot, TableContents

MAGLEV_DRAWS = 32


@dataclass(frozen=True, slots=True)
class DataplaneView:
    """What an explanation reads."""

    tables: SharedTables
    contents: TableContents
    names: Names
    keys: HashKeys
    clock: Clock
    jiffies: int


def explain(view: DataplaneView, flow: FiveTuple) -> Explanation:
    """What happens to a packet that is no SYN (of a new flow: to its SYN)."""
    steps: list[str] = []
    entry = _service(view.contents, flow, steps)
    if entry is None:
        reason = "no service has this address, port and protocol"
        return Explanation("pass", None, None, reason, tuple(steps), None, 0, ())
    service = view.names.services.get(entry.id, f"service {entry.id}")
    steps.append(f"service {service}: scheduler {entry.scheduler.value}, {entry.forward.value}")
    base = Explanation(
        "forward", service, None, "", (), None, ring_slots=len(entry.ring) // 2, draws=()
    )
    recorded, backend_id = _recorded(view, flow, entry, service)
    if recorded is not None:
        steps.append(
            f"the flow table has it: {recorded.backend}, {recorded.state}, "
            f"idle {recorded.idle_s:.0f} s"
        )
        if view.contents.backends[backend_id].alive:
            steps.append("its backend keeps its flows, so it stays")
            return replace(
                base,
                backend=recorded.backend,
                reason="recorded flow",
                steps=tuple(steps),
                recorded=recorded,
            )
        steps.append("its backend gives its flows up, so it is picked for anew")
    else:
        steps.append("the flow table does not have it, so a backend is picked")
    draws = _draws(view, flow, entry)
    steps += [
        f"draw {n}: slot {draw.slot} names {draw.backend}, "
        + ("usable" if draw.usable else "not usable, next draw")
        for n, draw in enumerate(draws, 1)
    ]
    if not draws or not draws[-1].usable:
        steps.append("no usable backend: dropped")
        return replace(
            base,
            verdict="drop",
            reason=abi.Reason.NO_BACKEND.label,
            steps=tuple(steps),
            recorded=recorded,
            draws=draws,
        )
    return replace(
        base,
        backend=draws[-1].backend,
        reason="picked from the ring",
        steps=tuple(steps),
        recorded=recorded,
        draws=draws,
    )


def _service(contents: TableContents, flow: FiveTuple, steps: list[str]) -> ServiceEntry | None:
    protocol = flow.protocol.number
    for port in (flow.port, ANY_PORT):
        entry = contents.services.get(ServiceSlot(flow.vip, port, protocol))
        if entry is not None:
            steps.append(f"{flow.vip} port {port or 'any'} {flow.protocol.value} is a service")
            return entry
    is_vip = ServiceSlot(flow.vip, 0, 0) in contents.marks
    steps.append(
        f"{flow.vip} is a VIP, but has no service on port {flow.port} {flow.protocol.value}"
        if is_vip
        else f"{flow.vip} is not a VIP"
    )
    steps.append("the packet is passed to the host, untouched")
    return None


def _recorded(
    view: DataplaneView, flow: FiveTuple, entry: ServiceEntry, service: str
) -> tuple[FlowView | None, int]:
    """The flow's slot as people see it, and the backend id in it."""
    value = flowhash.flow_hash(view.keys, entry.salt, flow.client, flow.client_port, flow.port)
    bucket = (value >> 32) & (view.tables.size.flow_buckets - 1)
    tag, now = value & 0xFFFFFFFF, view.jiffies >> view.clock.shift
    first = bucket * abi.FLOW_WAYS
    for index in range(first, first + abi.FLOW_WAYS):
        word = int(view.tables.flows[index])
        state = (word >> abi.FLOW_STATE_SHIFT) & (abi.FLOW_STATES - 1)
        ident = (word >> abi.FLOW_BACKEND_SHIFT) & 0xFFFF
        if word >> abi.FLOW_TAG_SHIFT != tag or state not in STATE_NAMES:
            continue
        ref = view.names.backends.get(ident)
        if ref is None or ident not in view.contents.backends:
            return None, 0
        cold = view.tables.flows_cold[index]
        is_mine = (
            state != abi.FlowState.EMBRYONIC
            and int(cold["family"]) == flow.client.version
            and address_of(cold["saddr"], flow.client.version) == flow.client
        )
        age = (view.jiffies - int(cold["start"])) % 2**32 / view.clock.hz if is_mine else 0.0
        idle = ((now - word) & abi.FLOW_STAMP_MASK) * view.clock.tick_s
        name = STATE_NAMES[state]
        return FlowView(service, flow, ref.backend, name, age, idle), ident
    return None, 0


def _draws(view: DataplaneView, flow: FiveTuple, entry: ServiceEntry) -> tuple[Draw, ...]:
    slots = len(entry.ring) // 2
    if not slots:
        return ()
    pick = flowhash.pick_hash(entry.pick_seed, flow.client, flow.client_port, flow.port)
    draws = []
    for _ in range(MAGLEV_DRAWS):
        slot = flowhash.ring_slot(pick, slots)
        ident = int.from_bytes(entry.ring[2 * slot : 2 * slot + 2], "little")
        held = view.contents.backends.get(ident)
        ref = view.names.backends.get(ident)
        usable = held is not None and held.usable
        draws.append(Draw(slot, ref.backend if ref else f"id {ident}", usable))
        if usable:
            break
        pick = flowhash.pick_again(pick)
    return tuple(draws)
