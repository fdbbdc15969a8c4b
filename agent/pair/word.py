"""Decides what the agent says of itself to the failover process."""

from __future__ import annotations

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


def word_of(now: Situation, attached: bool, why: str, blocked: Collection[BackendRef] = ()) -> Word:
    """As of the last pass. ``blocked``: backends that an interface of this node keeps from it.

    They may be up, but another node serves them better.
    """
    services = {
        service.name: (
            sum(
                verdict.usable and ref not in blocked
                for ref, verdict in now.verdicts.items()
                if ref.service == service.name
            ),
            len(service.backends),
        )
        for service in now.config.services
    }
    return Word(attached, why, services)
