"""Defines the status that the failover process reports, as values and as the JSON of its socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from agent.errors import ApiError
from agent.failover.model import Method, Mode, Role

# The kinds of problems that are this node's own: with VIPs on its interface, with their
# announcements, and with sending adverts.
OWN = frozenset({"addresses", "announcements", "send"})


@dataclass(frozen=True, slots=True)
class Problem:
    """A mismatch that can lead to two masters, or something that this node cannot do."""

    kind: str  # one of a few, as it labels a metric: version, authentication, checksum, …
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
    priority_reasons: tuple[str, ...]  # why it is not the configured one, or why the role is FAULT
    interval_s: float
    vips: tuple[str, ...]
    peers: tuple[str, ...]  # unicast peers
    master: str | None  # address of the master as far as known; None: no master is known
    master_priority: int | None
    problems: tuple[Problem, ...] = ()
    transitions: Mapping[str, int] = field(default_factory=dict)  # by role
    adverts_sent: int = 0
    adverts_received: int = 0
    adverts_discarded: Mapping[str, int] = field(default_factory=dict)  # by reason, one of a few
    announcements: int = 0  # gratuitous ARP and unsolicited NA frames
    vouched: bool = False  # no adverts of the master are heard, but flow sync says that it is well


@dataclass(frozen=True, slots=True)
class FailoverStatus:
    """The status of the whole process."""

    pid: int
    started: float
    version: str  # of the project
    realtime: bool  # scheduled before everything else
    memory_locked: bool
    agent_seen: float | None  # when the agent's last heartbeat came; None: none has come
    config_problem: str  # why the configuration could not be applied; empty: it was
    routers: tuple[RouterStatus, ...]
    leaving: bool = False  # it was asked to stop, and waits for the agent to hand over


def to_json(status: FailoverStatus) -> dict[str, Any]:
    """Return the status as plain data, with each enum as its value."""
    data: dict[str, Any] = asdict(status)
    for router in data["routers"]:
        for key in ("method", "role", "mode"):
            router[key] = router[key].value
    return data


def from_json(data: Mapping[str, Any]) -> FailoverStatus:
    """Return the status that ``to_json`` gave.

    Fields that only a newer process sends are ignored. Raises ApiError if a process of another
    version sends too few.
    """
    try:
        routers = tuple(_router(router) for router in data["routers"])
        return FailoverStatus(**(_known(FailoverStatus, data) | {"routers": routers}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ApiError(
            f"the failover process is of another version, its status is incomplete: {error}",
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
