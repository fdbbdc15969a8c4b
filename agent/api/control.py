"""Defines what the API needs from the agent. The daemon implements it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from agent.config.edit import Edit
from agent.config.layers import LeftOut
from agent.config.origins import Setting
from agent.config.plan import Change
from agent.config.reverts import Revert
from agent.config.versions import Author, Version
from agent.discovery.run import SourceView
from agent.fleet.overview import FleetPart
from agent.fleet.versions import Trial
from agent.model import Address, Config, Network
from agent.state.causes import Troubles
from agent.state.events import Event, Lost, TraceQuery
from agent.state.guardview import Blocked, BlockOrder, Verdicts
from agent.state.journal import Entry, Query, Tally
from agent.state.matrix import Matrix
from agent.state.moves import Moved, MoveOrder
from agent.state.queries import (
    Explanation,
    FiveTuple,
    FlowPage,
    FlowQuery,
    ListQuery,
    TopPage,
    TopQuery,
)
from agent.state.snapshot import Page, Snapshot


class Following(Protocol):
    """The events that one client asked for."""

    @property
    def ended(self) -> bool:
        """Whether no more events will come."""
        ...

    @property
    def lost(self) -> Lost:
        """How many events were missed so far."""
        ...

    async def next(self, timeout_s: float, limit: int) -> tuple[Event, ...]:
        """Return the oldest events not yet returned, at most ``limit``.

        The result is empty if none comes within ``timeout_s``, and at the end.
        """
        ...

    def close(self) -> None:
        """End it; may be called from any task."""
        ...


class Control(Protocol):
    """The agent as the API sees it.

    Reads are answered from memory at once; ``edit`` and ``reload`` may wait for the kernel.
    Implementations serialise ``edit`` and ``reload``, because requests arrive concurrently.
    """

    async def snapshot(self, services: Collection[str] | None = None) -> Snapshot:
        """Return the state of about now, of all services or only of the named ones.

        With thousands of backends this takes a while, during which other requests are answered.
        """
        ...

    async def page(self, of: str, query: ListQuery) -> Page:
        """Return the rows of a list; ``of`` is ``backends`` or ``services``."""
        ...

    def matrix(self) -> Matrix:
        """Return all backends, by server and service."""
        ...

    def is_attached(self) -> bool:
        """Return whether our program is attached to every interface."""
        ...

    def config(self) -> Config:
        """Return the running configuration."""
        ...

    def file_changes(self) -> tuple[Change, ...]:
        """Return what the running configuration has that the file does not."""
        ...

    def unsaved(self) -> str:
        """Return why changes are in memory only, or an empty text if they are saved."""
        ...

    async def edit(
        self,
        *edits: Edit,
        dry_run: bool = False,
        confirmed: bool = False,
        for_s: float | None = None,
        trial: Trial | None = None,
        author: Author,
    ) -> tuple[Change, ...]:
        """Apply all edits or none to the running configuration, and return the changes.

        With ``dry_run``, only return what would change. ``confirmed``: the client knows that open
        flows are cut. ``for_s``: how long they hold; None: until they are changed again.
        ``trial``: which balancers of the fleet try them first.
        """
        ...

    async def reload(
        self, *, dry_run: bool = False, confirmed: bool = False, author: Author
    ) -> tuple[Change, ...]:
        """Read the configuration file again, as SIGHUP does, or only return what would change."""
        ...

    async def rollback(
        self,
        number: int,
        service: str | None,
        dry_run: bool,
        *,
        confirmed: bool = False,
        author: Author,
    ) -> tuple[Change, ...]:
        """Restore all services of a version, or only ``service``, or only return what would
        change.
        """
        ...

    def in_fleet(self) -> FleetPart:
        """Return the agent's part in its fleet. Raises ConflictError if it belongs to none."""
        ...

    async def fleet_rollback(
        self,
        number: int,
        service: str | None,
        dry_run: bool,
        *,
        confirmed: bool = False,
        author: Author,
    ) -> tuple[Change, ...]:
        """Like ``rollback``, to a version of the fleet."""
        ...

    def reverts(self) -> tuple[Revert, ...]:
        """Return the changes that end by themselves."""
        ...

    def origins(self, service: str) -> tuple[Setting, ...]:
        """Return where the settings of a service come from. Raises NotFoundError."""
        ...

    def sources(self) -> tuple[tuple[SourceView, ...], Mapping[str, tuple[LeftOut, ...]]]:
        """Return the sources of backends, and by service which targets are no backends."""
        ...

    async def accept_answer(self, service: str) -> None:
        """Use the answer of a service's source that looked like a mistake."""
        ...

    async def versions(self) -> tuple[Version, ...]:
        """Return the stored versions of the running configuration, oldest first."""
        ...

    async def diff(self, old: int, new: int | None) -> tuple[Change, ...]:
        """Return the changes between two versions; ``new`` None means the running configuration."""
        ...

    def troubles(self) -> Callable[[], Troubles]:
        """Return a function that finds what is wrong now, by server and cause, in any thread."""
        ...

    def recent(self) -> Tally:
        """Return how many events there were in the last hour, by level and backend."""
        ...

    def events(self, query: Query) -> tuple[Entry, ...]:
        """Return the matching entries of the journal, oldest first."""
        ...

    async def move(self, order: MoveOrder) -> Moved:
        """Move the VIPs as the operator orders, or with ``dry_run`` only say how they would
        move.
        """
        ...

    async def block(self, order: BlockOrder) -> Blocked:
        """Drop packets from some sources, and end their flows."""
        ...

    async def unblock(self, prefixes: tuple[Network, ...]) -> int:
        """Serve these sources again. Returns how many other balancers were informed."""
        ...

    def guard_test(self, address: Address) -> Verdicts:
        """Return what happens to a new flow from an address, for each service."""
        ...

    async def top_sources(self, query: TopQuery) -> TopPage:
        """Return the sources with the most open flows or waiting bytes."""
        ...

    async def flows(self, query: FlowQuery) -> FlowPage:
        """Return the recorded flows that match."""
        ...

    def explain(self, tuple5: FiveTuple) -> Explanation:
        """Return what the data plane would do with the next packet of a flow, and why."""
        ...

    def follow(self, query: TraceQuery) -> AbstractContextManager[Following]:
        """Follow the data plane's decisions as they are made, until the context is left."""
        ...
