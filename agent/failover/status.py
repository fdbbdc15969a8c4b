"""What the failover process tells of itself, as values and as the JSON of its socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from agent.errors import ApiError
from agent.failover.model import Method, Mode, Role

# Problems of this node's own, by kind: VIPs on its interface, their announcements, its adverts.
OWN = frozenset({"addresses", "announcements", "send"})


@dataclass(frozen=True, slots=True)
class Problem:
    """A mismatch with another node that can make two masters, or what this one cannot do."""

    kind: str  # bounded, a metric's label: version, authentication, addressing, checksum, …
    text: str  # what is wrong, with whom, and the remedy
    since: float  # seconds since the epoch
    last: float
    count: int


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """One virtual router; times are seconds since the epoch."""

    name: str
    instance: str
    method: Method
    group: str
    interface: str
    family: int
    vrid: int
    version: int
    role: Role
    since: float
    why: str
    mode: Mode
    priority: int  # effective
    configured_priority: int
    priority_reasons: tuple[str, ...]  # what makes it other than the configured one, or FAULT
    interval_s: float
    vips: tuple[str, ...]
    peers: tuple[str, ...]  # unicast
    master: str | None  # address of the master as far as known; None: nobody
    master_priority: int | None
    problems: tuple[Problem, ...] = ()
    transitions: Mapping[str, int] = field(default_factory=dict)  # by role
    adverts_sent: int = 0
    adverts_received: int = 0
    adverts_discarded: Mapping[str, int] = field(default_factory=dict)  # by reason, bounded
    announcements: int = 0  # gratuitous ARP and unsolicited NA frames
    vouched: bool = False  # no adverts of the master are heard, but flow sync says that it is well


@dataclass(frozen=True, slots=True)
class FailoverStatus:
    """The whole process."""

    pid: int
    started: float
    version: str  # of the project
    realtime: bool  # scheduled before everything else
    memory_locked: bool
    agent_seen: float | None  # the last word of the agent
    config_problem: str  # a configuration that could not be taken; empty: none
    routers: tuple[RouterStatus, ...]
    leaving: bool = False  # it was told to stop, and waits for the agent to hand over


def to_json(status: FailoverStatus) -> dict[str, Any]:
    """Plain data: enums as their words."""
    data: dict[str, Any] = asdict(status)
    for router in data["routers"]:
        for key in ("method", "role", "mode"):
            router[key] = router[key].value
    return data


def from_json(data: Mapping[str, Any]) -> FailoverStatus:
    """The inverse of ``to_json``. What a newer process tells beyond it is left out; ApiError if
    one of another version does not tell enough.
    """
    try:
        routers = tuple(_router(router) for router in data["routers"])
        return FailoverStatus(**(_known(FailoverStatus, data) | {"routers": routers}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ApiError(
            f"the failover process is of another version, it tells too little: {error}",
            where="failover",
            remedy="restart it: systemctl restart lb-agent-failover",
        ) from error


def _router(data: Mapping[str, Any]) -> RouterStatus:
    return RouterStatus(
        **(
            _known(RouterStatus, data)
            | {
                "method": Method(data["method"]),
                "role": Role(data["role"]),
                "mode": Mode(data["mode"]),
                "problems": tuple(
                    Problem(**_known(Problem, problem)) for problem in data["problems"]
                ),
            }
            | {key: tuple(data[key]) for key in ("priority_reasons", "vips", "peers")}
        )
    )


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: data[field.name] for field in fields(kind) if field.name in data}
