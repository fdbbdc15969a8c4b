"""A data plane of plain arrays, a configuration placed in it, and a monitor that asks nobody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from agent.model import BackendRef, Config, Service
from agent.state.identities import Identities, assign
from agent.state.tables import TableContents
from agent.telemetry.asks import Target, Topic
from agent.telemetry.monitor import Key
from agent.telemetry.report import Failure, Report
from tests.unit.dataplane.fakes import CLOCK, FakeTables
from tests.unit.state.world import TABLES

A_REF, B_REF = BackendRef("web", "a"), BackendRef("web", "b")


class FakeMonitor:
    """The newest one made is ``last``; tests answer in the servers' place."""

    last: FakeMonitor

    def __init__(self, on_ask, on_report) -> None:
        FakeMonitor.last = self
        self.on_ask, self.on_report = on_ask, on_report
        self.targets: Mapping[Key, Target] = {}

    def set_targets(self, targets: Mapping[Key, Target]) -> None:
        self.targets = targets

    async def run(self) -> None:
        """There is nothing to do."""

    def asks(self, ref: BackendRef, topic: Topic = Topic.ENGINE) -> None:
        self.on_ask((ref, topic))

    def hears(
        self, ref: BackendRef, report: Report | Failure, at: float, topic=Topic.ENGINE, pace=0.2
    ):
        """A report that was asked for and came at that time."""
        self.on_report((ref, topic), report, at, at, pace)


@dataclass
class Plane:
    """Has of ``Dataplane`` what reports and learning use."""

    tables: FakeTables = field(default_factory=lambda: FakeTables(TABLES))
    clock = CLOCK
    jiffies: int = 1000

    def now_jiffies(self) -> int:
        return self.jiffies


@dataclass
class World:
    """``service`` in force; its backends have loads."""

    service: Service
    plane: Plane = field(default_factory=Plane)

    def __post_init__(self) -> None:
        self.config = Config("test", "eth0", tables=TABLES, services=(self.service,))
        self.ids: Identities = assign(self.config, TableContents(), frozenset(), lambda: 77)

    def ident(self, name: str) -> int:
        (backend,) = (b for b in self.service.backends if b.name == name)
        return self.ids.backend_id(self.service, backend)

    def load(self, name: str) -> np.void:
        return self.plane.tables.backend_load[self.ident(name)]

    def put_load(self, name: str, **words: int) -> None:
        for word, value in words.items():
            self.plane.tables.backend_load[word][self.ident(name)] = value
