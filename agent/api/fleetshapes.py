"""Defines the JSON that the routes below /v1/fleet take and answer."""

from __future__ import annotations

from typing import Literal, TypedDict

from agent.api.shapes import FleetMembership, Reason, Time


class FleetRollout(TypedDict):
    """The version that is being tried. `bake_s` 0: an operator decides how it ends."""

    version: int
    nodes: list[str]
    since: Time
    bake_s: float


class EndedRollout(TypedDict):
    """How a rollout ended."""

    version: int
    outcome: Literal["promoted", "aborted"]
    why: str
    who: str
    at: Time


class FleetWork(TypedDict):
    """What a balancer did in about the last minute, or since it took its version."""

    opened: int
    established: int
    drops: int
    answers: int
    failed: int


class FleetBalancer(TypedDict):
    """What a balancer of the fleet reported last.

    `behind_by`: by how many versions. `refused_version`: one that it cannot run, and why. `frozen`:
    why it takes no versions; null: it does. `drift`: it runs other services than the others with
    its version. Balancers with equal `rings_digest` choose the same backends.
    """

    node: str
    release: str
    role: str
    version: int
    since: Time
    reported: Time
    behind_by: int
    refused_version: int | None
    refused_why: str
    problem: str
    frozen: str | None
    drift: bool
    services_digest: str
    rings_digest: str
    services_down: list[str]
    last_minute: FleetWork


class MissingBalancer(TypedDict):
    """A balancer of the fleet that does not report. `last_seen` is a minute too early at most."""

    node: str
    last_seen: Time


class FleetOverview(TypedDict):
    """The fleet. `balancers` are those that report, and `missing` those that did before and were
    not forgotten; both are empty while the store is away.
    """

    fleet: FleetMembership
    rollout: FleetRollout | None
    last_rollout: EndedRollout | None
    balancers: list[FleetBalancer]
    missing: list[MissingBalancer]


class FleetVersion(TypedDict):
    """One version of the fleet's services.

    `base`: the version that it was made from. `changes` has the first of `changes_count`. `state`:
    what became of it; empty: it was stable once.
    """

    number: int
    base: int
    at: Time
    node: str
    how: str
    who: str
    message: str
    changes: list[str]
    changes_count: int
    state: Literal["", "stable", "trying", "aborted"]


class WholeFleetVersion(FleetVersion):
    """One version of the fleet's services, with the services, written as in the file."""

    services: list[dict[str, object]]


class FleetHistory(TypedDict):
    """The newest versions, the newest first."""

    versions: list[FleetVersion]


class FleetDifference(TypedDict):
    """A service that two balancers do not treat alike, and in what."""

    service: str
    what: str


class FleetComparison(TypedDict):
    """How the services of two balancers differ; empty: they do not."""

    one: str
    other: str
    differences: list[FleetDifference]


class ForgetBody(TypedDict):
    """The balancer to forget, which does not report any more."""

    node: str


class FleetBody(TypedDict, total=False):
    """The reason, for the history."""

    message: Reason
