"""Owns the passes that make the shared tables what they should be.

They are level-triggered: every pass reads the tables, decides what they should hold, and applies
the difference. A pass can run at any time, and again after any failure.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.config.plan import part_of
from agent.dataplane import contents, survey
from agent.dataplane.tables import SharedTables
from agent.model import Config, Forward
from agent.reconcile.apply import Applier
from agent.reconcile.diff import ClearBackend, PutBackend, Step, at_once, diff
from agent.reconcile.passes import Scope
from agent.state.desired import (
    Surroundings,
    desired_backends,
    desired_lookups,
    desired_services,
    same_lookups,
)
from agent.state.identities import Identities, assign, slot_of
from agent.state.rings import KeptRings
from agent.state.tables import TableContents

REST_S = 1.0  # a packet that drew a backend just before it was removed may still record it


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: what it did, and what the tables hold now."""

    steps: tuple[Step, ...]
    ids: Identities
    contents: TableContents


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last pass has left in the tables, and the configuration that it was for."""

    config: Config
    ids: Identities
    contents: TableContents


@dataclass(frozen=True, slots=True)
class _Foreseen:
    """The ids that a configuration would get; they are needed before it takes effect."""

    config: Config
    after: _Known | None
    ids: Identities


class Reconciler:
    """Runs the passes of one instance, one at a time."""

    def __init__(self, tables: SharedTables, now: Callable[[], float]) -> None:
        self._tables = tables
        self._applier = Applier(tables)
        self._now = now
        held = contents.read(tables)
        # the ids of removed backends that flows still name
        self._resting = {
            ident: now() for ident in survey.named_backends(tables.flows) - set(held.backends)
        }
        self._rings = KeptRings()
        self._foreseen: _Foreseen | None = None
        self._known: _Known | None = None  # None: a pass has failed, or there was none

    def read(self) -> TableContents:
        """Return what the tables hold."""
        return contents.read(self._tables)

    def identities(self, config: Config) -> Identities:
        """Return the ids that a configuration would get; DataplaneError when a table is full."""
        known = self._known
        return self._identities(config, known.contents if known else self.read(), known)

    def _identities(
        self, config: Config, held: TableContents, known: _Known | None = None
    ) -> Identities:
        foreseen = self._foreseen
        if foreseen and foreseen.config is config and foreseen.after is known is not None:
            return foreseen.ids
        last = (known.config, known.ids) if known else None
        resting = frozenset(self._resting)
        ids = assign(config, held, resting, lambda: secrets.randbits(32), last)
        self._foreseen = _Foreseen(config, known, ids)
        return ids

    async def run(self, config: Config, around: Surroundings, scope: Scope = None) -> Pass:
        """Run one pass, over all services or those in ``scope``.

        For services that are left out, nothing has changed that this agent knows of. What another
        process may have written is seen only where the tables are read back.

        Which backends may get flows is written at once: a draw passes over one that went down. The
        rings follow, built in a thread so that nothing waits for them. Until they are in place, the
        last usable backends that a ring leads to stay usable.
        """
        try:
            if scope is None or self._known is None:
                done = await self._pass_over_all(config, around)
            else:
                done = await self._pass_over(self._known, config, around, scope)
        except BaseException:
            self._known = None
            raise
        self._known = _Known(config, done.ids, done.contents)
        return done

    async def _pass_over_all(self, config: Config, around: Surroundings) -> Pass:
        held = self.read()
        ids = self._identities(config, held)
        wanted = desired_lookups(config, ids, around)
        steps, wanted = await self._converge(held, wanted, config, ids, around)
        self._applier.hide_gone(wanted)
        self._rings.forget({ident for ident, _ in ids.services.values()})
        return Pass(steps, ids, wanted)

    async def _pass_over(
        self, known: _Known, config: Config, around: Surroundings, scope: frozenset[str]
    ) -> Pass:
        """Run a pass over some services, reading back only what they had in the tables."""
        whole, ids, lookups = known.contents, known.ids, TableContents()
        before = _part(whole, known.config, known.ids, scope)
        held = contents.read_part(self._tables, before)
        if known.config is not config:
            ids = self._identities(config, whole, known)
        # The addresses that fullnat sends from depend on the next hops.
        uses_hops = any(service.forward is Forward.FULLNAT for service in config.services)
        renews = uses_hops or not same_lookups(known.config, config)
        if renews:
            ids = self._identities(config, whole, known)
            lookups = desired_lookups(config, ids, around)
            held = replace(whole, **_of_services(held))
        part = part_of(config, scope)
        steps, wanted = await self._converge(held, lookups, part, ids, around)
        if renews:
            whole = replace(lookups, **_of_services(whole))
            self._applier.hide_gone(whole)
        after = {
            name: _less(getattr(whole, name), getattr(before, name)) | getattr(wanted, name)
            for name in _BY_SERVICE
        }
        return Pass(steps, ids, replace(whole, **after))

    async def _converge(
        self,
        held: TableContents,
        lookups: TableContents,
        config: Config,
        ids: Identities,
        around: Surroundings,
    ) -> tuple[tuple[Step, ...], TableContents]:
        """Apply the steps from what is held to what is wanted; return the steps, and what is
        wanted.
        """
        backends = desired_backends(config, ids, around)
        early = at_once(held, backends)
        first = self._do(diff(held, early))
        services = await asyncio.to_thread(desired_services, config, ids, around, self._rings)
        wanted = replace(lookups, backends=backends, **services)
        rest = self._do(diff(early, wanted))
        return (*first, *rest), wanted

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
        """Free the expired slots of a survey, and the ids that nothing names any more; return the
        number of slots.

        It works in pieces: a million slots at once would hold up everything else for a third of a
        second.
        """
        freed = 0
        for piece in survey.pieces(found):
            freed += survey.sweep(self._tables, piece)
            await asyncio.sleep(0)  # let other tasks run
        if self._resting:
            before = self._now() - REST_S
            named = await asyncio.to_thread(survey.named_backends, self._tables.flows)
            self._resting = {
                ident: at for ident, at in self._resting.items() if ident in named or at > before
            }
        return freed


_BY_SERVICE = ("backends", "services", "zone_rings")  # the tables in which each service has a part


def _of_services(contents: TableContents) -> dict[str, Any]:
    return {name: getattr(contents, name) for name in _BY_SERVICE}


def _part(
    whole: TableContents, config: Config, ids: Identities, scope: frozenset[str]
) -> TableContents:
    """Return what these services have in the tables, if they are in the configuration."""
    services = [service for service in config.services if service.name in scope]
    backends = (ident for service in services for ident in ids.backend_ids(service))
    own = {ids.service_id(service) for service in services}
    return TableContents(
        backends={ident: whole.backends[ident] for ident in backends},
        services={slot: whole.services[slot] for slot in (slot_of(s.key) for s in services)},
        zone_rings={key: r for key, r in whole.zone_rings.items() if key.service_id in own},
    )


def _less[Key, Value](values: Mapping[Key, Value], gone: Container[Key]) -> dict[Key, Value]:
    return {key: value for key, value in values.items() if key not in gone}
