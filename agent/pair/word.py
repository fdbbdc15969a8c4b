"""Decides what the agent says of itself to the failover process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from agent.model import BackendRef
from agent.state.situation import Situation


@dataclass(frozen=True, slots=True)
class Word:
    """Whether the program is attached, why not, and how many backends of each service are up, of
    how many. ``ready``: this node may take its place from a master that is well, or announce
    itself; ``waits_for``: else, what it waits for. ``cut_off``: it
    reaches nobody. ``hands_over``: before this node leaves, the agent can hand over. ``vouchers``:
    for virtual routers, by name, the last moment (monotonic) of which flow sync says that another
    node was their master, and well.
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
    """How many backends of each service are up, and of how many; ``blocked``: those that nothing
    can be sent to, for an interface of this node. They may be up, but another node serves them
    better.
    """
    up = Counter(
        ref.service
        for ref, verdict in now.verdicts.items()
        if verdict.usable and ref not in blocked
    )
    return {
        service.name: (up[service.name], len(service.backends)) for service in now.config.services
    }
