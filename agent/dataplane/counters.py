"""Reads the counters, and adds up the rows of all CPUs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from agent.dataplane import abi
from agent.dataplane.tables import SharedTables, Table
from agent.state.roster import Flags, Numbers
from agent.state.snapshot import BackendCounts

_FIELDS = tuple(field.name for field in fields(BackendCounts))
_GONE = tuple(name for name in _FIELDS if f"gone_{name}" in (abi.SERVICE_COUNTERS.names or ()))
_NONE = BackendCounts()
_SYNC = ("untold", "passed_on", "not_passed", "taken", "strangers")


@dataclass(frozen=True, slots=True)
class ServiceCounts:
    """The counters of one service.

    ``gone``: what backends that were removed had counted, except for answers. ``cookies``:
    connections that SYN cookies have begun. ``replied``: packets that the packet path replied to
    itself; ``not_replied``: packets that it would have replied to if there had not been too many.
    """

    drops: dict[str, int]
    passed: dict[str, int]
    not_recorded: int
    replied: int
    not_replied: int
    cookies: int
    gone: BackendCounts


@dataclass(frozen=True, slots=True)
class Readings:
    """All counters at one moment, by id; service 0 has the packets that were for no service."""

    backends: dict[int, BackendCounts]
    services: dict[int, ServiceCounts]

    def of_backend(self, ident: int) -> BackendCounts:
        return self.backends.get(ident, _NONE)


def of_sync(tables: SharedTables) -> dict[str, int]:
    """Return the packet path's counters of the exchange with other balancers, by name."""
    return {name: _sum(tables.sync_count, name) for name in _SYNC}


def _sum(rows: Table, name: str) -> int:
    return int(rows[name].sum())


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """The totals that are read every second, of all backends and services, as arrays.

    They have a column for each backend or service, and a row for each field in ``BACKEND_TOTALS``
    or ``SERVICE_TOTALS``.
    """

    backends: Numbers
    services: Numbers

    def moved(self, before: Totals) -> tuple[Flags, Flags]:
        """Return which backends and which services have other totals than ``before``."""
        return (
            (self.backends != before.backends).any(axis=0),
            (self.services != before.services).any(axis=0),
        )


BACKEND_TOTALS = (
    "packets", "bytes", "opened", "established", "answers", "errors", "hangups", "closed",
)  # fmt: skip
SERVICE_TOTALS = ("drops", "challenged", "verified", "gone_opened", "gone_established")


def totals(tables: SharedTables, backends: Numbers, services: Numbers) -> Totals:
    """Return the totals of these backend and service ids."""
    rows, latencies = tables.backend_count[:, backends], tables.backend_latency
    of_backends = [
        rows[name].sum(axis=0) if name in (rows.dtype.names or ()) else latencies[name][backends]
        for name in BACKEND_TOTALS
    ]
    own = tables.service_count[:, services]
    reasons = own["reason"].sum(axis=0, dtype=np.uint64)
    of_services = [
        reasons[:, abi.FIRST_DROP :].sum(axis=1),
        reasons[:, abi.Reason.CHALLENGED],
        reasons[:, abi.Reason.VERIFIED] + own["cookies"].sum(axis=0),
        own["gone_opened"].sum(axis=0),
        own["gone_established"].sum(axis=0),
    ]
    return Totals(
        np.array(of_backends, np.int64).reshape(len(BACKEND_TOTALS), -1),
        np.array(of_services, np.int64).reshape(len(SERVICE_TOTALS), -1),
    )


def read(tables: SharedTables, backend_ids: list[int], service_ids: list[int]) -> Readings:
    """Return the counters of these ids."""
    backends = {}
    if backend_ids:
        rows = tables.backend_count[:, backend_ids]
        sums = [rows[name].sum(axis=0) for name in _FIELDS]
        backends = {
            ident: BackendCounts(*(int(total[i]) for total in sums))
            for i, ident in enumerate(backend_ids)
        }
    services = {ident: _service(tables.service_count[:, ident]) for ident in service_ids}
    return Readings(backends, services)


def _service(rows: Table) -> ServiceCounts:
    by_reason = rows["reason"].sum(axis=0, dtype=np.uint64)
    drops: dict[str, int] = {}
    passed: dict[str, int] = {}
    for reason in abi.Reason:
        if reason is not abi.Reason.NONE:
            kind = drops if reason >= abi.FIRST_DROP else passed
            kind[reason.label] = int(by_reason[reason])
    gone = BackendCounts(**{name: _sum(rows, f"gone_{name}") for name in _GONE})
    return ServiceCounts(
        drops, passed, _sum(rows, "not_recorded"), _sum(rows, "replied"), _sum(rows, "not_replied"),
        _sum(rows, "cookies"), gone,
    )  # fmt: skip


def add(one: BackendCounts, other: BackendCounts) -> BackendCounts:
    """Return the sum of both."""
    return BackendCounts(
        *(getattr(one, name) + getattr(other, name) for name in _FIELDS),
    )
