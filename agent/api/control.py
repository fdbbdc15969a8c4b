"""What the API needs of the agent; the daemon implements it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Protocol

from agent.config.edit import Edit
from agent.config.plan import Change
from agent.config.versions import Author, Version
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
        """No more will come."""
        ...

    @property
    def lost(self) -> Lost:
        """What was missed so far."""
        ...

    async def next(self, timeout_s: float, limit: int) -> tuple[Event, ...]:
        """The oldest not had yet, at most ``limit``; none after ``timeout_s``, or at the end."""
        ...

    def close(self) -> None:
        """End it, from wherever."""
        ...


class Control(Protocol):
    """Reads answer from memory at once; ``edit`` and ``reload`` may wait for the kernel.

    Implementations serialise ``edit`` and ``reload``: requests arrive concurrently.
    """

    async def snapshot(self, services: Collection[str] | None = None) -> Snapshot:
        """Everything, as of about now; of these services only, if any are named. Thousands of
        backends take a while, in which other requests are answered.
        """
        ...

    async def page(self, of: str, query: ListQuery) -> Page:
        """The ``backends``, or the ``services``, that a list shows."""
        ...

    def matrix(self) -> Matrix:
        """All backends, by server and service."""
        ...

    def is_attached(self) -> bool:
        """Whether every interface has our program."""
        ...

    def config(self) -> Config:
        """The running configuration."""
        ...

    def file_changes(self) -> tuple[Change, ...]:
        """What the running configuration has that the file does not."""
        ...

    def unsaved(self) -> str:
        """Why changes are in memory only; empty: they are saved."""
        ...

    async def edit(
        self, *edits: Edit, dry_run: bool = False, confirmed: bool = False, author: Author
    ) -> tuple[Change, ...]:
        """Change the running configuration, or with ``dry_run`` only say what would change: all of
        it, or nothing.

        ``confirmed``: whoever asks knows that open flows are cut.
        """
        ...

    async def reload(
        self, *, dry_run: bool = False, confirmed: bool = False, author: Author
    ) -> tuple[Change, ...]:
        """Read the configuration file again, as SIGHUP does, or only say what would change."""
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
        """Run the services of a version again, or (``service``) one of them, or only say what would
        change.
        """
        ...

    async def versions(self) -> tuple[Version, ...]:
        """The versions of the running configuration that are kept, oldest first."""
        ...

    async def diff(self, old: int, new: int | None) -> tuple[Change, ...]:
        """What lies between two versions; None: and the running configuration."""
        ...

    def troubles(self) -> Callable[[], Troubles]:
        """What is wrong now, by server and cause: a function that finds it, in any thread."""
        ...

    def recent(self) -> Tally:
        """What the agent has said in the last hour."""
        ...

    def events(self, query: Query) -> tuple[Entry, ...]:
        """What the agent has said, oldest first."""
        ...

    async def move(self, order: MoveOrder) -> Moved:
        """Have the VIPs move as the operator says, or with ``dry_run`` only say how."""
        ...

    async def block(self, order: BlockOrder) -> Blocked:
        """Drop what some sources send, and end their flows."""
        ...

    async def unblock(self, prefixes: tuple[Network, ...]) -> int:
        """Serve these sources again; how many other balancers were told."""
        ...

    def guard_test(self, address: Address) -> Verdicts:
        """What becomes of a new flow from an address."""
        ...

    async def top_sources(self, query: TopQuery) -> TopPage:
        """The sources with most open flows or waiting bytes."""
        ...

    async def flows(self, query: FlowQuery) -> FlowPage:
        """Recorded flows that match."""
        ...

    def explain(self, tuple5: FiveTuple) -> Explanation:
        """What the data plane would do with the next packet of a flow, and why."""
        ...

    def follow(self, query: TraceQuery) -> AbstractContextManager[Following]:
        """What the data plane decides, as it happens, until the context is left."""
        ...
