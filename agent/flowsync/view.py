"""Describes one set of tables as far as sending and taking flows needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, survey
from agent.dataplane.constants import Clock, HashKeys, Sizes
from agent.dataplane.flowhash import ServiceKeys
from agent.dataplane.survey import Slots
from agent.dataplane.tables import Table
from agent.flowsync.identity import Identities, identities_of
from agent.flowsync.natplaces import NatPlaces, nat_places
from agent.state.tables import TableContents


class FlowTables(Protocol):
    """The tables that hold flows and what belongs to them, of this ABI or an older one."""

    size: Sizes
    flows: Slots
    flows_cold: Table
    flows_warm: Table
    nat_slots: Table
    backends: Table

    @property
    def ident(self) -> str:
        """A name that distinguishes these tables from all others."""

    def nat_sources_of(self, nat: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers of the source addresses that these NAT slots' ports belong to."""


@dataclass(frozen=True, slots=True)
class View:
    """The tables of one node, and what the ids in them mean."""

    tables: FlowTables
    keys: ServiceKeys
    clock: Clock
    ids: Identities
    nat_places: NatPlaces


def view_of(tables: FlowTables, held: TableContents, keys: HashKeys, clock: Clock) -> View:
    """Return the view of tables whose contents are ``held`` now."""
    salts = {entry.id: entry.salt for entry in held.services.values()}
    prefixes = [entry.id for entry in held.services.values() if entry.vip_bits is not None]
    ids = identities_of(held, tables.ident, len(tables.flows))
    places = nat_places(held, len(tables.backends))
    return View(tables, ServiceKeys.of(keys, salts, prefixes), clock, ids, places)


def takes_flows(tables: FlowTables) -> npt.NDArray[np.bool_]:
    """Return, by backend id, whether recorded flows go to the backend. They do not if it is gone,
    in maintenance or unreachable.
    """
    alive: npt.NDArray[np.bool_] = tables.backends["flags"] & abi.BACKEND_F_ALIVE != 0
    return alive


def limits_of(
    tables: FlowTables, backend: npt.NDArray[np.int64], state: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return how many ticks a flow in such a state may be idle; -1 if its backend is gone."""
    known = np.where(backend < len(tables.backends), backend, 0)
    alive = tables.backends["flags"][known] & abi.BACKEND_F_ALIVE != 0
    ticks = tables.backends["timeout_ticks"][known, state].astype(np.int64)
    return np.where(alive & (known != 0), ticks, -1)


def over(tables: FlowTables, words: Slots, now: int) -> npt.NDArray[np.bool_]:
    """Return which slots a new flow may take by the packet path's rules: those of flows that are
    idle past their timeout, whose backend is gone, or that closed at least CLOSING_TICKS ago. Free
    slots are not among them.
    """
    state = survey.state_of(words)
    idle = survey.idle_ticks(words, now).astype(np.int64)
    is_over: npt.NDArray[np.bool_] = idle > limits_of(tables, survey.backend_of(words), state)
    is_over |= (state == abi.FlowState.CLOSING) & (idle >= abi.CLOSING_TICKS)
    is_over &= state != abi.FlowState.FREE
    return is_over
