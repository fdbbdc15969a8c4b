"""Explains what the program would do with the next packet of a flow, and why.

It follows ``bpf/balancer.c`` step by step on the tables as they are; tests/packet compares its
answers with the kernel's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network

from agent.dataplane import abi, flowhash, limits, score, survey
from agent.dataplane.abi import GuardModeId
from agent.dataplane.constants import Clock, HashKeys
from agent.dataplane.flows import (
    STATE_NAMES,
    Names,
    address_of,
    nat_source,
    requests,
    tagged,
)
from agent.dataplane.selection import LOAD, TURN, Ring, Selection, select
from agent.dataplane.sourcetrees import BLOCKS, LISTS, SourceTrees
from agent.dataplane.tables import SharedTables
from agent.model import ANY_PORT, Address, Forward, Network, Protocol
from agent.state.eligibility import FAIL_OPEN, PANIC
from agent.state.queries import Explanation, FiveTuple, FlowView
from agent.state.ranges import covers
from agent.state.tables import (
    BackendEntry,
    ServiceEntry,
    ServiceSlot,
    TableContents,
    ZoneRingKey,
)

# Addresses that no host has (bpf/guard.h).
NO_HOSTS: tuple[tuple[str, Network], ...] = (
    ("this network", ip_network("0.0.0.0/8")),
    ("loopback", ip_network("127.0.0.0/8")),
    ("multicast and reserved", ip_network("224.0.0.0/3")),
    ("unspecified, loopback, IPv4-compatible", ip_network("::/96")),
    ("IPv4-mapped", ip_network("::ffff:0:0/96")),
    ("multicast", ip_network("ff00::/8")),
)
_GUARDED = {
    GuardModeId.ENFORCE: "dropped (lbctl guard test says more)",
    GuardModeId.DRY_RUN: "counted, and served (guard: dry-run)",
    GuardModeId.OFF: "served all the same (guard: off)",
}
_REASONS = {
    None: "picked from the ring",
    LOAD: "the lowest of those compared; depends on the load of the moment",
    TURN: "the next in turn",
}


@dataclass(frozen=True, slots=True)
class DataplaneView:
    """What an explanation is made from."""

    tables: SharedTables
    contents: TableContents
    names: Names
    keys: HashKeys
    clock: Clock
    jiffies: int


def explain(view: DataplaneView, flow: FiveTuple) -> Explanation:
    """Explain what happens to the next packet of a flow, which is a SYN only if the flow is new."""
    steps: list[str] = []
    entry = _service(view.contents, flow, steps)
    if entry is None:
        reason = "no service has this address, port and protocol"
        return Explanation("pass", None, None, reason, tuple(steps), None, 0, ())
    service = view.names.services.get(entry.id, f"service {entry.id}")
    steps.append(f"service {service}: scheduler {entry.scheduler.value}, {entry.forward.value}")
    base = Explanation(
        "forward", service, None, "", (), None, ring_slots=len(entry.ring) // 2, draws=(),
        scheduler=entry.scheduler.value,
    )  # fmt: skip
    if entry.quic_id_bytes and flow.protocol is Protocol.UDP:
        steps.append("a QUIC packet whose connection id names a backend goes there instead")
    blocked = _blocked(view, entry, flow.client, steps)
    base = replace(base, steps=tuple(steps))
    if blocked:
        return replace(base, verdict="drop", reason=abi.Reason.BLOCKED.label)
    recorded, backend_id = _recorded(view, flow, entry, service)
    if recorded is not None:
        steps.append(
            f"the flow table has it: {recorded.backend}, {recorded.state}, "
            f"idle {recorded.idle_s:.0f} s"
        )
        held = view.contents.backends[backend_id]
        if held.alive:
            steps.append("its backend keeps its flows, so the flow stays there")
            steps.append(_forwarding(held, flow, recorded))
            return replace(
                base,
                backend=recorded.backend,
                reason="recorded flow",
                steps=tuple(steps),
                recorded=recorded,
            )
        steps.append("its backend has given its flows up, so another one is picked")
    elif backend_id == _ENDED:
        steps.append("it was reset, so it gets an RST; for a new connection a backend is picked")
    else:
        steps.append("the flow table does not have it, so a backend is picked")
    return _picked(view, flow, entry, replace(base, steps=tuple(steps), recorded=recorded))


def is_connected(view: DataplaneView, flow: FiveTuple) -> bool:
    """Return whether the flow table has a flow, and its handshake is complete."""
    entry = _service(view.contents, flow, [])
    if entry is None:
        return False
    recorded, _ = _recorded(view, flow, entry, "")
    return recorded is not None and recorded.state != STATE_NAMES[abi.FlowState.EMBRYONIC]


_IN_SPITE = {
    FAIL_OPEN: "no backend is up: all get new flows (no_backend: any)",
    PANIC: "too few backends are up: all get new flows (panic)",
}


def _picked(
    view: DataplaneView, flow: FiveTuple, entry: ServiceEntry, base: Explanation
) -> Explanation:
    """Explain which backend a flow gets that has none yet."""
    for refuses in (
        (_unlisted, _martian) if flow.protocol is Protocol.TCP else (_martian, _unlisted)
    ):
        refused, step = refuses(view, entry, flow.client)
        if step:
            base = replace(base, steps=(*base.steps, step))
        if refused is not None:
            return replace(base, verdict="drop", reason=refused.label)
    is_limited, step = _limited(view, entry, flow.client)
    if step:
        base = replace(base, steps=(*base.steps, step))
    if is_limited:
        return replace(base, verdict="drop", reason=abi.Reason.LIMITED.label)
    if entry.challenge:
        shown = "a client that has not shown recently that it has its address is challenged first"
        base = replace(base, steps=(*base.steps, f"SYN protection is on: {shown}"))
    loads = score.as_of(view.tables.backend_load, view.jiffies)
    ring = Ring(entry, view.contents, view.tables, view.names.backends.get, loads)
    steps = [*base.steps]
    if entry.zones:
        ring = _with_zone_ring(view, flow, entry, ring, steps)
    found = select(ring, flow)
    steps += found.steps
    if in_spite := view.names.in_spite.get(entry.id):
        steps.append(_IN_SPITE[in_spite])
    base = replace(base, draws=found.draws, depends_on=found.depends_on, ring_slots=ring.slots)
    if not found.chosen and not found.any_of:
        verdict, end = _no_backend(entry, flow)
        steps.append(f"no usable backend: {end}")
        reason = (abi.Reason.HELD if entry.holds else abi.Reason.NO_BACKEND).label
        return replace(base, verdict=verdict, reason=reason, steps=tuple(steps), depends_on=None)
    if found.chosen:
        steps.append(_forwarding(view.contents.backends[found.chosen], flow, None))
    return replace(
        base, backend=_name(view.names, found), reason=_REASONS[found.depends_on],
        steps=tuple(steps),
    )  # fmt: skip


def _martian(
    view: DataplaneView, _entry: ServiceEntry, client: Address
) -> tuple[abi.Reason | None, str]:
    """Mirror ``guard_first`` as far as the address decides.

    Returns why no client begins a flow from this address, and the step in words.
    """
    what = _reserved_as(view.contents, client)
    if not what:
        return None, ""
    return abi.Reason.MARTIAN, f"{client} is {what}: dropped, no client has it"


def _reserved_as(contents: TableContents, client: Address) -> str:
    """Return what the address is if no client can have it; otherwise an empty string."""
    for kind, network in NO_HOSTS:
        if network.version == client.version and client in network:
            return f"in {network} ({kind})"
    mark = contents.marks.get(ServiceSlot(client, 0, 0))
    if mark is not None and mark.nat_source is not None:
        return "a source address of fullnat"
    return "a VIP" if mark is not None or _prefix(contents, client) is not None else ""


def _blocked(view: DataplaneView, entry: ServiceEntry, client: Address, steps: list[str]) -> bool:
    """Mirror ``source_look_up``: return whether packets of the client are dropped."""
    if not SourceTrees(view.tables).lists(BLOCKS, client):
        return False
    mode = GuardModeId(int(view.tables.guard_policies[entry.id]["mode"]))
    steps.append(f"{client} is blocked: {_GUARDED[mode]}")
    return mode is GuardModeId.ENFORCE


def _unlisted(
    view: DataplaneView, entry: ServiceEntry, client: Address
) -> tuple[abi.Reason | None, str]:
    """Mirror ``source_unlisted``.

    Returns why the client may not begin a flow, and what the lists say, in words.
    """
    policy = view.tables.guard_policies[entry.id]
    allow, deny, mode = (int(policy[name]) for name in ("allow", "deny", "mode"))
    if not allow | deny or mode == GuardModeId.OFF:
        return None, ""
    held = SourceTrees(view.tables).lists(LISTS, client)
    if held & deny:
        reason, what = abi.Reason.DENIED, f"{client} is on a list that is denied"
    elif allow and not held & allow:
        reason, what = abi.Reason.NOT_ALLOWED, f"{client} is on no list that is allowed"
    else:
        return None, f"no list keeps {client} from it"
    enforced = mode == GuardModeId.ENFORCE
    return reason if enforced else None, f"{what}: {_GUARDED[GuardModeId(mode)]}"


def _limited(view: DataplaneView, entry: ServiceEntry, client: Address) -> tuple[bool, str]:
    """Return whether a limit keeps the client from a new flow, as far as is known, and the step in
    words.
    """
    mode = GuardModeId(int(view.tables.guard_policies[entry.id]["mode"]))
    if mode is GuardModeId.OFF:
        return False, ""
    if entry.limits_held and limits.is_limited(view.tables, entry.id, client):
        what = f"{client} has as many open flows, or waiting bytes, as it may"
        return mode is GuardModeId.ENFORCE, f"{what}: {_GUARDED[mode]}"
    if entry.limits_new:
        return False, "new flows are limited: `lbctl guard status` says whether some were too many"
    return False, ""


def _with_zone_ring(
    view: DataplaneView, flow: FiveTuple, entry: ServiceEntry, ring: Ring, steps: list[str]
) -> Ring:
    """Return ``ring`` with the ring for the client's zone, if there is one."""
    prefix = _longest(view.contents.zones, flow.client)
    if prefix is None:
        steps.append(f"client {flow.client} is in no zone: the service's own ring")
        return ring
    ident = view.contents.zones[prefix]
    zone = view.names.zones.get(ident, f"id {ident}")
    near = view.contents.zone_rings.get(ZoneRingKey(entry.id, ident), b"")
    used = f"ring of {zone}" if near else "no backend is near it: the service's own ring"
    steps.append(f"client {flow.client} is in zone {zone} ({prefix}): {used}")
    return replace(ring, near=near, zone=zone)


def _name(names: Names, found: Selection) -> str | None:
    if not found.chosen:
        return None
    ref = names.backends.get(found.chosen)
    return ref.backend if ref else f"id {found.chosen}"


def _no_backend(entry: ServiceEntry, flow: FiveTuple) -> tuple[str, str]:
    """Return the verdict and the words for a service that has no usable backend."""
    if entry.holds and flow.protocol is Protocol.TCP:
        return "drop", "kept, and sent to the first backend that is usable (no_backend: hold)"
    if entry.holds:
        return "drop", "dropped; its client has to send it again (no_backend: hold)"
    if not entry.reset:
        return "drop", "dropped (no_backend: drop)"
    with_what = "a RST" if flow.protocol is Protocol.TCP else "an ICMP unreachable"
    return "reset", f"answered with {with_what} (no_backend: reset)"


def _forwarding(backend: BackendEntry, flow: FiveTuple, recorded: FlowView | None) -> str:
    """Return in words how the packet is changed for its backend."""
    port = backend.port or flow.port
    match backend.forward:
        case Forward.DSR:
            return f"dsr: to the MAC {backend.mac}, nothing else is changed"
        case Forward.IPIP | Forward.GUE:
            return f"{backend.forward.value}: an outer header to {backend.address}"
        case Forward.NAT:
            return f"nat: the destination becomes {backend.address} port {port}"
        case Forward.FULLNAT:
            source = "one of the balancer's"
            if recorded is not None and recorded.nat_source is not None:
                source = "{} port {}".format(*recorded.nat_source)
            return (
                f"fullnat: the destination becomes {backend.address} port {port}, "
                f"the source {source}"
            )


def _service(contents: TableContents, flow: FiveTuple, steps: list[str]) -> ServiceEntry | None:
    """Mirror ``service_find``: return the service of a flow, and append what led to it."""
    protocol = flow.protocol.number
    entry = contents.services.get(ServiceSlot(flow.vip, flow.port, protocol))
    if entry is not None:
        steps.append(f"{flow.vip} port {flow.port} {flow.protocol.value} is a service")
        return entry
    mark = contents.marks.get(ServiceSlot(flow.vip, 0, 0))
    vip = flow.vip
    if mark is None:
        below = _prefix(contents, flow.vip)
        if below is None:
            steps += [f"{flow.vip} is not a VIP", _PASSED]
            return None
        vip = below
        steps.append(f"{flow.vip} is below the prefix VIP of {vip}")
        entry = contents.services.get(ServiceSlot(vip, flow.port, protocol))
        mark = contents.marks.get(ServiceSlot(vip, 0, 0))
    elif mark.nat_source is not None:
        steps += [
            f"{flow.vip} is a source address of fullnat: the packet is taken for an answer",
            "to the flow that has its port; if there is none, it is passed to the host",
        ]
        return None
    if entry is None and mark is not None:
        entry = _by_range_or_any_port(contents, vip, flow, steps)
    elif entry is not None:
        steps.append(f"port {flow.port} {flow.protocol.value} is a service")
    if entry is None:
        steps += [
            f"{vip} is a VIP, but has no service on port {flow.port} {flow.protocol.value}",
            _PASSED,
        ]
    return entry


_ENDED = -1
_PASSED = "the packet is passed to the host, untouched"


def _prefix(contents: TableContents, address: Address) -> Address | None:
    """Return the first address of the longest prefix VIP that contains an address."""
    found = _longest(contents.prefixes, address)
    return found.network_address if found else None


def _longest(prefixes: Iterable[Network], address: Address) -> Network | None:
    """Return the longest prefix that contains an address."""
    containing = [net for net in prefixes if net.version == address.version and address in net]
    return max(containing, key=lambda net: net.prefixlen, default=None)


def _by_range_or_any_port(
    contents: TableContents, vip: Address, flow: FiveTuple, steps: list[str]
) -> ServiceEntry | None:
    """Return a service that has the port but is not stored under it: by a range, or any port."""
    protocol = flow.protocol.number
    for block, first in contents.ranges.items():
        if (block.vip, block.protocol) == (vip, protocol) and covers(
            block.port, block.bits, flow.port
        ):
            entry = contents.services.get(ServiceSlot(vip, first, protocol))
            if entry is not None:
                steps.append(f"port {flow.port} is in the range {first}-{entry.port_last}")
                return entry
    entry = contents.services.get(ServiceSlot(vip, ANY_PORT, protocol))
    if entry is not None:
        steps.append(f"{vip} port any {flow.protocol.value} is a service")
    return entry


def _recorded(
    view: DataplaneView, flow: FiveTuple, entry: ServiceEntry, service: str
) -> tuple[FlowView | None, int]:
    """Return the recorded flow, and the backend id in its slot.

    The id is 0 if there is no record of a known backend, and _ENDED if the agent has reset the
    flow.
    """
    below_prefix = flow.vip if entry.vip_bits is not None else None
    value = flowhash.flow_hash(
        view.keys, entry.salt, flow.client, flow.client_port, flow.port, below_prefix
    )
    now = view.jiffies >> view.clock.shift
    for index, word in tagged(view.tables, value):
        state = (word >> abi.FLOW_STATE_SHIFT) & (abi.FLOW_STATES - 1)
        ident = (word >> abi.FLOW_BACKEND_SHIFT) & 0xFFFF
        if state not in STATE_NAMES:
            continue
        if not ident:
            return None, _ENDED
        ref = view.names.backends.get(ident)
        if ref is None or ident not in view.contents.backends:
            return None, 0
        cold = view.tables.flows_cold[index]
        is_mine = (
            state != abi.FlowState.EMBRYONIC
            and int(cold["family"]) == flow.client.version
            and address_of(cold["saddr"], flow.client.version) == flow.client
        )
        age = float(survey.age_jiffies(cold["start"], view.jiffies)) if is_mine else 0.0
        idle = ((now - word) & abi.FLOW_STAMP_MASK) * view.clock.tick_s
        return FlowView(
            service, flow, ref.backend, STATE_NAMES[state], age / view.clock.hz, idle,
            nat_source(view.tables, index, ident),
            requests(view.tables, view.names, entry.id, index, word) if is_mine else None,
        ), ident  # fmt: skip
    return None, 0
