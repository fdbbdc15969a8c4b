"""Owns the passes that make the shared tables what they should be.

Level-triggered: every pass reads the tables, decides what they should hold, and does the
difference. It can be run at any time, and again after any failure.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from agent.dataplane import contents, survey
from agent.dataplane.tables import SharedTables
from agent.model import Config
from agent.reconcile.apply import Applier
from agent.reconcile.diff import ClearBackend, PutBackend, Step, at_once, diff
from agent.state.desired import Surroundings, desired, desired_backends
from agent.state.identities import Identities, assign
from agent.state.tables import TableContents

REST_S = 1.0  # a packet that drew a backend just before it went may still record it


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: what it did, and what the tables hold now."""

    steps: tuple[Step, ...]
    ids: Identities
    contents: TableContents


class Reconciler:
    """The passes of one instance, one at a time."""

    def __init__(self, tables: SharedTables, now: Callable[[], float]) -> None:
        self._tables = tables
        self._applier = Applier(tables)
        self._now = now
        held = contents.read(tables)
        # ids that flows still name, of backends that are gone
        self._resting = {
            ident: now() for ident in survey.named_backends(tables.flows) - set(held.backends)
        }

    def read(self) -> TableContents:
        """What the tables hold."""
        return contents.read(self._tables)

    def identities(self, config: Config) -> Identities:
        """The ids that a configuration would get; DataplaneError when a table is full."""
        return self._identities(config, self.read())

    def _identities(self, config: Config, held: TableContents) -> Identities:
        return assign(
            config,
            held,
            frozenset(self._resting),
            lambda: secrets.randbits(32),
        )

    async def run(self, config: Config, around: Surroundings) -> Pass:
        """One pass. What backends may get is said at once: a draw passes over one that went
        down. The rings follow, built in a thread so that nothing waits for them; until they
        are there, the last that a ring leads to stay usable.
        """
        held = self.read()
        ids = self._identities(config, held)
        early = at_once(held, desired_backends(config, ids, around))
        first = self._do(diff(held, early))
        wanted = await asyncio.to_thread(desired, config, ids, around)
        rest = self._do(diff(early, wanted))
        self._applier.hide_gone(wanted)
        return Pass((*first, *rest), ids, wanted)

    def _do(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        for step in steps:
            self._applier.apply(step)
            match step:
                case ClearBackend(ident, _):
                    self._resting[ident] = self._now()
                case PutBackend(ident, _, _):
                    self._resting.pop(ident, None)
        return steps

    async def sweep(self, found: survey.Survey) -> int:
        """Free the expired slots of a survey, and the ids that nothing names any more.

        A million slots at once would hold up everything else for a third of a second.
        """
        freed = 0
        for piece in survey.pieces(found):
            freed += survey.sweep(self._tables, piece)
            await asyncio.sleep(0)  # others have their turn
        if self._resting:
            before = self._now() - REST_S
            named = await asyncio.to_thread(survey.named_backends, self._tables.flows)
            self._resting = {
                ident: at for ident, at in self._resting.items() if ident in named or at > before
            }
        return freed
