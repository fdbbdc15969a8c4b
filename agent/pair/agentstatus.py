"""Defines what the agent reports about itself to the failover process in a heartbeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from agent.model import BackendRef, NoBackend
from agent.state.situation import Situation


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """The contents of a heartbeat.

    ``attached``: the program is attached; ``why``: otherwise, why not. ``services``: by name, how
    many backends are up and how many there are. ``ready``: this node may take over from a healthy
    master, or announce itself; ``waits_for``: otherwise, what it waits for. ``cut_off``: it reaches
    neither a backend nor a peer. ``hands_over``: the agent can hand over before this node leaves.
    ``vouchers``: for virtual routers, by name, the last time (monotonic) at which, according to
    flow sync, another node was their master and well.
    """

    attached: bool
    why: str
    services: Mapping[str, tuple[int, int]]
    ready: bool = True
    waits_for: str = ""
    cut_off: bool = False
    hands_over: bool = False
    vouchers: Mapping[str, float] = field(default_factory=dict)


def up_of(now: Situation, blocked: Collection[BackendRef] = ()) -> dict[str, tuple[int, int]]:
    """Return how many backends of each service are up, and how many there are.

    ``blocked``: backends that nothing can be sent to because of an interface of this node. They may
    be up, but do not count here, because another node can serve them. A service that waits for its
    first backend counts as one without backends: it may be scaled to zero, which says nothing about
    what this node reaches, and its clients can only wait at a node that serves the VIP.
    """
    up = Counter(
        ref.service
        for ref, verdict in now.verdicts.items()
        if verdict.usable and not (blocked and ref in blocked)  # mostly, nothing need be hashed
    )
    return {
        service.name: (up[service.name], len(service.backends))
        if up[service.name] or service.no_backend is not NoBackend.HOLD
        else (0, 0)
        for service in now.config.services
    }
