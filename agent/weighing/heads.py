"""Owns what is known about the heads of services' answers: reads the packet path's notes, and
writes the sizes that are heads back to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agent.dataplane import abi
from agent.dataplane.tables import SharedTables
from agent.logs import get_logger
from agent.model import Config, Service
from agent.state.identities import Identities
from agent.state.loads import counts_waiting
from agent.weights.heads import KNOWN_FROM, NO_NOTES, FirstByte, Judged, Notes, judged

log = get_logger()

_PROBE_EACH = 4  # while there are suspects, one request in so many is probed to see what follows


@dataclass(slots=True)
class _Watched:
    """One service, and up to where its notes have been read."""

    name: str
    ident: int
    read: int
    notes: Notes = NO_NOTES
    judged: Judged = field(default_factory=Judged)


class Heads:
    """The heads of all services; call ``sample`` about once a second."""

    def __init__(self, tables: SharedTables, hz: int) -> None:
        self._tables = tables
        self._hz = hz
        self._watched: dict[str, _Watched] = {}
        # The same as arrays, to find quickly which services have new notes.
        self._order: tuple[_Watched, ...] = ()
        self._idents = self._reads = np.empty(0, np.int64)

    def place(self, config: Config, ids: Identities) -> None:
        """Note after a pass where the services are. What an earlier agent found stays valid."""
        before, self._watched = self._watched, {}
        for service in filter(counts_waiting, config.services):
            ident = ids.service_id(service)
            watched = before.get(service.name)
            if watched is None or watched.ident != ident:
                row = self._tables.service_heads[ident]
                watched = _Watched(service.name, ident, int(row["samples"]))
                if row["is_known"]:
                    watched.judged = Judged(first_byte=FirstByte.TOKEN)
            self._watched[service.name] = watched
        self._order = tuple(self._watched.values())
        idents = (watched.ident for watched in self._order)
        self._idents = np.fromiter(idents, np.int64, len(self._order))
        reads = (watched.read for watched in self._order)
        self._reads = np.fromiter(reads, np.int64, len(self._order))

    def first_byte(self, service: Service) -> FirstByte | None:
        """Return what the service's times to the first byte measure; None: it has no such times."""
        watched = self._watched.get(service.name)
        if watched is None:
            return None
        known = watched.judged.first_byte
        if known is FirstByte.UNKNOWN and service.forward.is_nat and not len(watched.notes):
            return FirstByte.TOKEN  # the packet path could read all answers so far
        return known

    def sample(self) -> None:
        """Read the notes of the last second."""
        counts = self._tables.service_heads["samples"][self._idents].astype(np.int64)
        grown = np.flatnonzero(counts != self._reads).tolist()
        self._reads = counts
        for watched in (self._order[n] for n in grown):
            more = self._new_notes(watched)
            if not len(more):
                continue
            watched.notes = watched.notes.then(more)
            found = judged(watched.notes, abi.HEAD_RANGES)
            before = watched.judged
            if len(watched.notes) < KNOWN_FROM and before.first_byte is not FirstByte.UNKNOWN:
                continue  # keep what an earlier agent found
            if found != before:
                watched.judged = found
                self._write(watched)
            if found.first_byte is not before.first_byte:
                log.info(
                    "what the first bytes of answers are",
                    service=watched.name,
                    old=before.first_byte.value,
                    new=found.first_byte.value,
                    heads=[*found.later, *found.first],
                )

    def _write(self, watched: _Watched) -> None:
        row = self._tables.service_heads[watched.ident : watched.ident + 1]
        for name, found in (("later", watched.judged.later), ("first", watched.judged.first)):
            held = np.zeros(abi.HEAD_RANGES, dtype=abi.HEAD_RANGE)
            for i, ends in enumerate(found):
                held[i] = ends
            row[name].view("u4")[:] = held.view("u4")  # writes both ends of a range at once
        row["is_known"] = watched.judged.first_byte is FirstByte.TOKEN
        row["probe_mask"] = _PROBE_EACH - 1
        row["probes"] = watched.judged.suspects

    def _new_notes(self, watched: _Watched) -> Notes:
        """Return the notes since the last call, as far as they still exist, oldest first."""
        row = self._tables.service_heads[watched.ident]
        count = int(row["samples"])
        fresh = min(max(count - watched.read, 0), abi.HEAD_SAMPLES)
        watched.read = count
        rows = row["sample"][np.arange(count - fresh, count) % abi.HEAD_SAMPLES]
        rows = rows[rows["kind"] != abi.HeadKind.UNWRITTEN]
        pause_s = rows["pause"] / self._hz
        return Notes(
            size=rows["bytes"].astype(np.int64),
            upto=rows["upto"].astype(np.int64),
            is_first=rows["is_first"] != 0,
            is_head=rows["kind"] != abi.HeadKind.NONE,
            is_followed=rows["kind"] == abi.HeadKind.FOLLOWED,
            before_s=np.maximum(rows["us"] / 1e6 - pause_s, 0.0),
            pause_s=pause_s,
        )
