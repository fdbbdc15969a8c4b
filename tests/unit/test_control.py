"""What the API may change in a running agent, and what open flows keep from being changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent.config.edit import Edit, EditOp
from agent.config.plan import Change
from agent.config.store import RunningStore
from agent.control import AgentControl
from agent.core import Core
from agent.errors import ConfigError, ConflictError
from agent.metrics.observer import AgentFacts
from agent.model import Config, Forward
from agent.notify import Notifier
from agent.state.snapshot import FailoverView

TEXT = """\
interface: eth0
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    backends: [{name: gpu-1, address: 10.0.0.21}, {name: gpu-2, address: 10.0.0.22}]
"""
TO_NAT = Edit(EditOp.SERVICE_SET, "chat", None, {"forward": "nat"})


class FakeCore:
    """A core without a data plane: ``flows`` open flows at each backend, once it has looked."""

    def __init__(self, config: Config, flows: int) -> None:
        self.config = config
        self.taken: list[Config] = []
        self.now = SimpleNamespace(contents=None, situation=None)
        self.problem = ""
        self.observer = self
        self.pair = SimpleNamespace(view=FailoverView)
        self._flows, self._seen = flows, 0

    async def look_at_flows(self) -> None:
        self._seen = self._flows

    def refreshed(self) -> None:
        return None

    def snapshot(self, *_: object) -> SimpleNamespace:
        views = [
            SimpleNamespace(
                service=service, backends=[SimpleNamespace(flows=self._seen) for _ in range(2)]
            )
            for service in self.config.services
        ]
        return SimpleNamespace(services=views)

    def identities(self, config: Config) -> None:
        pass

    async def take(self, config: Config, changes: tuple[Change, ...]) -> None:
        self.taken.append(config)
        self.config = config


type Make = Callable[[int], tuple[AgentControl, FakeCore, Path]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr("agent.control.status_line", lambda _: "")

    def control(flows: int) -> tuple[AgentControl, FakeCore, Path]:
        path = tmp_path / "agent.yaml"
        path.write_text(TEXT)
        store = RunningStore(tmp_path, "default")
        loaded = store.load(TEXT)
        core = FakeCore(loaded.config, flows)
        facts = AgentFacts("1", "default", 1, 0.0, str(path), "veth")
        return AgentControl(cast("Core", core), path, loaded, store, facts, Notifier()), core, path

    return control


def test_without_open_flows_forwarding_changes(make: Make) -> None:
    control, core, _ = make(0)
    asyncio.run(control.edit(TO_NAT, dry_run=False))
    assert [config.services[0].forward for config in core.taken] == [Forward.NAT]


@pytest.mark.parametrize("dry_run", [True, False])
def test_open_flows_keep_the_way_they_are_forwarded(make: Make, dry_run: bool) -> None:
    control, core, path = make(3)
    with pytest.raises(ConflictError, match="forward: 6 open flows could not go on"):
        asyncio.run(control.edit(TO_NAT, dry_run))
    assert core.taken == []
    assert list(path.parent.glob("*.running.yaml")) == []


def test_open_flows_go_on_in_a_tunnel(make: Make) -> None:
    control, core, _ = make(3)
    asyncio.run(control.edit(Edit(EditOp.SERVICE_SET, "chat", None, {"forward": "gue"}), False))
    assert core.config.services[0].forward is Forward.GUE


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("nat: {ports: 20000-30000}", "carried over"),
        ("tables: {flows: 2048}", "carried over"),
        ("gue: {port: 6081}", "restart the agent"),
    ],
)
def test_what_a_reload_cannot_change_has_its_remedy(make: Make, key: str, remedy: str) -> None:
    control, core, path = make(0)
    path.write_text(f"{TEXT}{key}\n")
    with pytest.raises(ConfigError, match="a reload cannot change") as caught:
        asyncio.run(control.reload())
    assert remedy in caught.value.remedy
    assert core.taken == []


def test_a_reload_that_would_cut_open_flows_is_refused(make: Make) -> None:
    control, core, path = make(3)
    path.write_text(TEXT.replace("port: 80", "port: 80\n    forward: fullnat"))
    with pytest.raises(ConflictError, match="from dsr to fullnat"):
        asyncio.run(control.reload())
    assert core.taken == []
    path.write_text(TEXT.replace("port: 80", "port: 80\n    forward: ipip"))
    asyncio.run(control.reload())
    assert core.config.services[0].forward is Forward.IPIP
