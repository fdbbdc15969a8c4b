"""Defines what is shown of a whole fleet, and what the API may ask of a balancer's part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.config.plan import Change
from agent.config.versions import Author
from agent.fleet.reports import Difference, Report
from agent.fleet.versions import Active, Documents, FleetVersion
from agent.state.fleetview import FleetStatus


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole fleet as one balancer sees it. ``reports`` None: the store is away.

    ``missing``: when each balancer that does not report any more did so last, in seconds since the
    epoch by its own clock.
    """

    status: FleetStatus
    active: Active | None
    reports: Mapping[str, Report] | None
    drifted: frozenset[str] = frozenset()
    missing: Mapping[str, float] = field(default_factory=dict)


class FleetPart(Protocol):
    """A balancer's part in its fleet, as the API sees it. The queries raise StoreError while the
    store is away.
    """

    @property
    def active(self) -> Active | None:
        """What was active in the store when it was heard last; None: nothing."""
        ...

    async def overview(self) -> Overview:
        """Return the whole fleet."""
        ...

    async def history(self, most: int) -> tuple[FleetVersion, ...]:
        """Return the newest versions, newest first."""
        ...

    async def version(self, number: int) -> tuple[FleetVersion, Documents]:
        """Return a version and its services. Raises NotFoundError."""
        ...

    async def diff(self, old: int, new: int | None) -> tuple[Change, ...]:
        """Return the changes from one version to another; None: what runs here."""
        ...

    async def compare(self, one: str, other: str) -> tuple[Difference, ...]:
        """Return how the services of two balancers differ. Raises NotFoundError."""
        ...

    async def import_services(self, author: Author) -> int:
        """Write what runs here as the fleet's next version; return its number."""
        ...

    async def end_rollout(self, *, promote: bool, author: Author) -> Active:
        """Promote the version that is being tried, or give it up; return what is active then."""
        ...

    async def forget(self, node: str) -> None:
        """Forget a balancer that is gone for good. Raises NotFoundError or ConflictError."""
        ...

    async def freeze(self, author: Author) -> None:
        """Take no versions of the fleet any more; changes made here stay here."""
        ...

    async def thaw(self) -> None:
        """Follow the fleet again."""
        ...
