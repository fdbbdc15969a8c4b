"""Owns what homes are worth: remembers which backend has answered which client, and tells the
packet path by how much a client's home may have more to do than another backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agent.dataplane.tables import SharedTables
from agent.model import Config, Service
from agent.state.identities import Identities
from agent.state.loads import has_homes
from agent.state.snapshot import Home
from agent.weights.affinity import Answers, Client, Memory, Worth, worth
from agent.weights.learn import Samples


@dataclass(slots=True)
class _Watched:
    """One service whose clients have homes."""

    ident: int
    service: Service
    adopted: bool  # the table has what an earlier agent found, which holds until more is known
    worth: Worth
    memory: Memory = field(default_factory=Memory)
    answers: Answers = field(default_factory=Answers)


class Homes:
    """The homes of all services; give it every sample, and call ``follow`` every few seconds."""

    def __init__(self, tables: SharedTables, usual_bytes: Callable[[str], float]) -> None:
        """``usual_bytes`` returns the size of a service's usual request."""
        self._tables = tables
        self._usual_bytes = usual_bytes
        self._watched: dict[str, _Watched] = {}

    def place(self, config: Config, ids: Identities) -> None:
        """Note after a pass where the services are. A service with another id starts anew."""
        before, self._watched = self._watched, {}
        for service in filter(has_homes, config.services):
            ident = ids.service_id(service)
            watched = before.get(service.name)
            if watched is None or watched.ident != ident:
                found = int(self._tables.service_load["escape"][ident])
                usual = Worth(usual_bytes=self._usual_bytes(service.name))
                watched = _Watched(ident, service, adopted=found > 0, worth=usual)
            elif watched.service.affinity != service.affinity:
                watched.adopted = False
            watched.service = service
            self._watched[service.name] = watched
            self._write(watched)

    def take(self, service: str, backend: int, samples: Samples, sources: np.ndarray) -> Samples:
        """Take new samples of a backend and the hashes of their clients.

        Return the samples that show how fast the backend is: if the service's clients have homes,
        only those of clients that are new to the backend, as its cache speeds up the others.
        """
        watched = self._watched.get(service)
        if watched is None or not len(sources):
            return samples
        clients = watched.memory.clients(backend, sources)
        watched.answers = watched.answers.then(samples, clients)
        return samples.where(clients == Client.NEW)

    def follow(self, bytes_per_connection: Callable[[Service], float]) -> None:
        """Determine anew what homes are worth, and write that for the packet path."""
        for name, watched in self._watched.items():
            per_connection = bytes_per_connection(watched.service)
            watched.worth = worth(watched.answers, self._usual_bytes(name), per_connection)
            watched.adopted &= watched.worth.known_s is None
            self._write(watched)

    def _write(self, watched: _Watched) -> None:
        configured = watched.service.affinity.escape_bytes
        if configured is None and watched.adopted:
            return
        escape = watched.worth.bytes if configured is None else configured
        self._tables.service_load["escape"][watched.ident] = escape

    def home(self, service: Service) -> Home | None:
        """Return what is shown about the service's homes; None: its clients have no homes."""
        watched = self._watched.get(service.name)
        if watched is None:
            return None
        found = watched.worth
        return Home(
            escape_bytes=int(self._tables.service_load["escape"][watched.ident]),
            known_share=found.known_share,
            new_s=found.new_s,
            known_s=found.known_s,
        )
