"""Decides the metrics of failover: roles, adverts, mismatches and flow sync."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from agent.failover.model import Role
from agent.failover.status import RouterStatus
from agent.failover.syncstatus import LinkState, PeerSync
from agent.metrics.family import Family, Kind, Sample, Samples
from agent.state.snapshot import Snapshot

# Not `instance`, which is Prometheus' label for the target.
_ROUTER = ("router",)
_PEER = ("peer",)


def _routers(snapshot: Snapshot) -> tuple[RouterStatus, ...]:
    process = snapshot.failover.process
    return process.routers if process else ()


def _each_router(value: Callable[[RouterStatus], float]) -> Samples:
    return lambda snapshot: [((router.name,), value(router)) for router in _routers(snapshot)]


def _router_labels(value: Callable[[RouterStatus], Mapping[str, float]]) -> Samples:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for router in _routers(snapshot):
            for label, number in value(router).items():
                yield (router.name, label), float(number)

    return samples


def _each_peer(value: Callable[[PeerSync], float | None]) -> Samples:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for peer in snapshot.failover.sync:
            found = value(peer)
            if found is not None:
                yield (str(peer.address),), found

    return samples


def _peer_labels(value: Callable[[PeerSync], Mapping[str, float]]) -> Samples:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for peer in snapshot.failover.sync:
            for label, number in value(peer).items():
                yield (str(peer.address), label), float(number)

    return samples


def _process_up(snapshot: Snapshot) -> Iterator[Sample]:
    if snapshot.failover.configured:
        yield (), float(snapshot.failover.process is not None)


def _lacking(snapshot: Snapshot) -> Iterator[Sample]:
    if snapshot.failover.configured:
        yield (), float(snapshot.failover.lacking.total)


def _strangers(snapshot: Snapshot) -> Iterator[Sample]:
    for reason, number in snapshot.failover.sync_strangers.items():
        yield (reason,), float(number)


def _counted(name: str) -> Samples:
    """Return the samples of a counter of flow sync that the packet path keeps."""

    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        counts = snapshot.failover.sync_counts
        if name in counts:
            yield (), float(counts[name])

    return samples


def _packets(snapshot: Snapshot) -> Iterator[Sample]:
    for name, number in snapshot.failover.sync_counts.items():
        if name != "untold":
            yield (name,), float(number)


_ROUTER_FAMILIES: tuple[Family, ...] = (
    Family(
        "steelyard_failover_process_up",
        Kind.GAUGE,
        "Whether the failover process answers. Absent without instances of failover.",
        (),
        _process_up,
    ),
    Family(
        "steelyard_failover_role",
        Kind.GAUGE,
        "1 for the role of this node, 0 for the others. `web/ipv4` is the IPv4 side of an instance "
        "with VIPs of both families.",
        (*_ROUTER, "role"),
        _router_labels(lambda r: {role.value: float(r.role is role) for role in Role}),
    ),
    Family(
        "steelyard_failover_priority",
        Kind.GAUGE,
        "Effective priority.",
        _ROUTER,
        _each_router(lambda r: r.priority),
    ),
    Family(
        "steelyard_failover_transitions_total",
        Kind.COUNTER,
        "Changes of role, by the new role.",
        (*_ROUTER, "role"),
        _router_labels(lambda r: r.transitions),
    ),
    Family(
        "steelyard_failover_moves_lacking_flows_total",
        Kind.COUNTER,
        "Moves of the VIPs away from this node while the other balancer may not have had all "
        "flows: connections may have been cut.",
        (),
        _lacking,
    ),
    Family(
        "steelyard_failover_adverts_sent_total",
        Kind.COUNTER,
        "Adverts sent.",
        _ROUTER,
        _each_router(lambda r: r.adverts_sent),
    ),
    Family(
        "steelyard_failover_adverts_received_total",
        Kind.COUNTER,
        "Adverts from other nodes that were accepted.",
        _ROUTER,
        _each_router(lambda r: r.adverts_received),
    ),
    Family(
        "steelyard_failover_adverts_discarded_total",
        Kind.COUNTER,
        "Adverts from other nodes that were refused, by reason.",
        (*_ROUTER, "reason"),
        _router_labels(lambda r: r.adverts_discarded),
    ),
    Family(
        "steelyard_failover_announcements_total",
        Kind.COUNTER,
        "Gratuitous ARP and unsolicited neighbour advertisements sent.",
        _ROUTER,
        _each_router(lambda r: r.announcements),
    ),
    Family(
        "steelyard_failover_problem",
        Kind.GAUGE,
        "1 while another node is master too (two-masters); while the master's adverts do not "
        "arrive and only flow sync shows that it works (unheard); while another node has a "
        "different setting that can cause two masters or prevents a handover (the setting's "
        "name); or while this node has a problem with its VIPs (addresses), their announcements "
        "or its adverts (send). Absent otherwise.",
        (*_ROUTER, "kind"),
        _router_labels(lambda r: {problem.kind: 1.0 for problem in r.problems}),
    ),
)

_SYNC_FAMILIES: tuple[Family, ...] = (
    Family(
        "steelyard_flow_sync_connected",
        Kind.GAUGE,
        "Whether flows are exchanged with the other balancer.",
        _PEER,
        _each_peer(lambda p: float(p.state is LinkState.CONNECTED)),
    ),
    Family(
        "steelyard_flow_sync_lag_seconds",
        Kind.GAUGE,
        "Age of the newest complete state of this balancer's flows that the other balancer has. "
        "Absent before the first.",
        _PEER,
        _each_peer(lambda p: p.lag_s),
    ),
    Family(
        "steelyard_flow_sync_behind_seconds",
        Kind.GAUGE,
        "Age of the newest complete state of the other balancer's flows that this one has. Absent "
        "before the first.",
        _PEER,
        _each_peer(lambda p: p.behind_s),
    ),
    Family(
        "steelyard_flow_sync_flows_sent_total",
        Kind.COUNTER,
        "Records of flows sent: new, changed and refreshed ones.",
        _PEER,
        _each_peer(lambda p: p.flows_sent),
    ),
    Family(
        "steelyard_flow_sync_flows_received_total",
        Kind.COUNTER,
        "Records of flows received.",
        _PEER,
        _each_peer(lambda p: p.flows_received),
    ),
    Family(
        "steelyard_flow_sync_flows_installed_total",
        Kind.COUNTER,
        "Received records whose flows were put into the flow table, or were in it already.",
        _PEER,
        _each_peer(lambda p: p.flows_installed),
    ),
    Family(
        "steelyard_flow_sync_flows_dropped_total",
        Kind.COUNTER,
        "Received records that could not be used, by reason.",
        (*_PEER, "reason"),
        _peer_labels(lambda p: p.flows_dropped),
    ),
    Family(
        "steelyard_flow_sync_sent_bytes_total",
        Kind.COUNTER,
        "Bytes sent.",
        _PEER,
        _each_peer(lambda p: p.bytes_sent),
    ),
    Family(
        "steelyard_flow_sync_received_bytes_total",
        Kind.COUNTER,
        "Bytes received.",
        _PEER,
        _each_peer(lambda p: p.bytes_received),
    ),
    Family(
        "steelyard_flow_sync_full_resyncs_total",
        Kind.COUNTER,
        "How often all flows were sent again.",
        _PEER,
        _each_peer(lambda p: p.full_sent),
    ),
    Family(
        "steelyard_flow_sync_refused_total",
        Kind.COUNTER,
        "Streams and messages from the peer that were refused, by reason.",
        (*_PEER, "reason"),
        _peer_labels(lambda p: p.refused),
    ),
    Family(
        "steelyard_flow_sync_untold_total",
        Kind.COUNTER,
        "Flows that became established while the ring buffer to the agent was full. They were "
        "sent after the next survey of the flow table. Absent without peers.",
        (),
        _counted("untold"),
    ),
    Family(
        "steelyard_flow_sync_packets_total",
        Kind.COUNTER,
        "Mid-connection packets of flows that the balancer that received them does not have: "
        "`passed_on` to another balancer; `not_passed`, because there were too many; `taken` from "
        "another balancer; `strangers`, from an unknown sender that imitated a peer. Absent "
        "without peers.",
        ("what",),
        _packets,
    ),
    Family(
        "steelyard_flow_sync_strangers_total",
        Kind.COUNTER,
        "Connections to the port of flow sync that were closed at once, by reason: `stranger`, "
        "the address is not a peer's; `busy`, there were too many handshakes.",
        ("reason",),
        _strangers,
    ),
)

FAILOVER_FAMILIES: tuple[Family, ...] = (*_ROUTER_FAMILIES, *_SYNC_FAMILIES)
