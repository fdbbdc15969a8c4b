"""What the API may change in a running agent, and what open flows keep from being changed."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
import threading
from collections.abc import Callable
from dataclasses import astuple
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.auditlog import AuditLog
from agent.config import store as store_module
from agent.config.edit import Edit, EditOp
from agent.config.render import document
from agent.config.reverts import Revert
from agent.config.store import RunningStore
from agent.config.versions import Author
from agent.control import AgentControl
from agent.core import Core
from agent.daemon import _reload_on
from agent.discovery.run import Found
from agent.errors import (
    ConfigError,
    ConflictError,
    DataplaneError,
    NotFoundError,
    UnconfirmedError,
)
from agent.files import write_atomically
from agent.journal import Journal
from agent.metrics.observer import AgentFacts
from agent.model import AdminState, BackendRef, Config, Forward, Target
from agent.notify import Notifier
from agent.reverting import Reverting
from agent.state.guardview import Guarded
from agent.state.queries import FlowQuery
from agent.state.snapshot import FailoverView
from agent.state.sources import Placed

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
        self.problem, self.link_problems = "", ()
        self.watch = SimpleNamespace(problems=tuple)
        self.passes = SimpleNamespace(defects=0)
        self.reset: dict[BackendRef, int] = {}
        self.observer = self
        self.pair = SimpleNamespace(view=FailoverView)
        self.guarding = SimpleNamespace(
            prepare=self.can_be_read, view=lambda _config: Guarded(), unsaved=""
        )
        self.limiting = SimpleNamespace(view=lambda _config, _ids: ())
        self.unreadable = ""  # why the files of a list cannot be read
        self._flows = flows

    async def can_be_read(self, _config: Config) -> None:
        if self.unreadable:
            raise ConfigError(self.unreadable, where="/etc/steelyard/drop.txt")

    @property
    def now(self) -> SimpleNamespace:
        refs = tuple(BackendRef(s.name, b.name) for s in self.config.services for b in s.backends)
        known = SimpleNamespace(refs=refs, ids=np.arange(len(refs)))
        return SimpleNamespace(contents=None, situation=SimpleNamespace(ids=None, roster=known))

    async def look_at_flows(self) -> SimpleNamespace:
        return SimpleNamespace(live=np.full(100, self._flows))

    def refreshed(self) -> None:
        return None

    def snapshot(self, *_: object) -> SimpleNamespace:
        return SimpleNamespace(services=())

    def identities(self, config: Config) -> None:
        pass

    def emptied(self, config: Config) -> frozenset[str]:
        """Those of which nobody is active."""
        return frozenset(
            service.name
            for service in config.services
            if all(backend.admin is not AdminState.ACTIVE for backend in service.backends)
        )

    async def take(self, config: Config) -> dict[BackendRef, int]:
        self.taken.append(config)
        self.config = config
        return self.reset


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
        journal = Journal(tmp_path, "default")
        audit = AuditLog(tmp_path, "default", lambda: False)
        made = AgentControl(cast("Core", core), path, loaded, store, facts, Notifier(), journal,
                            {}, audit)  # fmt: skip
        return made, core, path

    return control


def test_without_open_flows_forwarding_changes(make: Make) -> None:
    control, core, _ = make(0)
    asyncio.run(control.edit(TO_NAT))
    assert [config.services[0].forward for config in core.taken] == [Forward.NAT]


@pytest.mark.parametrize("dry_run", [True, False])
def test_open_flows_keep_the_way_they_are_forwarded(make: Make, dry_run: bool) -> None:
    control, core, path = make(3)
    with pytest.raises(ConflictError, match="forward: 6 open flows could not continue"):
        asyncio.run(control.edit(TO_NAT, dry_run=dry_run))
    assert core.taken == []
    assert list(path.parent.glob("*.running.yaml")) == []


def test_open_flows_go_on_in_a_tunnel(make: Make) -> None:
    control, core, _ = make(3)
    asyncio.run(control.edit(Edit(EditOp.SERVICE_SET, "chat", None, {"forward": "gue"})))
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


def test_a_file_that_others_can_change_is_not_taken_over(make: Make) -> None:
    control, core, path = make(0)
    path.write_text(f"{TEXT}hash_seed: 7\n")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="other users can change the file"):
        asyncio.run(control.reload())
    assert core.taken == []
    path.chmod(0o600)
    asyncio.run(control.reload())
    assert core.config.hash_seed == 7


def test_the_commands_of_checks_run_as_another_user_from_a_reload_on(make: Make) -> None:
    control, core, path = make(0)
    check = "    health: {type: exec, command: /bin/true}\n"
    path.write_text(TEXT.replace("    vip:", f"{check}    vip:", 1))
    asyncio.run(control.reload())
    assert core.config.services[0].health.run_as is None
    path.write_text(path.read_text() + "script_user: nobody\n")
    (change,) = asyncio.run(control.reload())
    assert str(change) == "change settings: script_user (default) → nobody"
    assert core.config.services[0].health.run_as == "nobody"


def test_a_reload_says_which_settings_it_has_taken_over(make: Make) -> None:
    """And tells nothing of what is in them: a section may hold a password, and the seed is one."""
    control, core, path = make(0)
    lists = "lists: {office: [198.51.100.0/24]}"
    path.write_text(f"{TEXT}hash_seed: 7\ncompanion: {{port: 9999}}\n{lists}\n")
    (change,) = asyncio.run(control.reload())
    assert str(change) == "change settings: companion.port 9120 → 9999"
    assert change.effect == "taken over while it runs: hash_seed, lists"
    assert core.config.hash_seed == 7
    assert asyncio.run(control.reload()) == ()


def audited(control: AgentControl) -> list[tuple[str, ...]]:
    """By whom, what and the effect of the changes that are in the audit log."""
    records = control._audit.read(0.0, 1000)
    effects = {each["change"]: each["effect"] for each in records if each["kind"] == "outcome"}
    return [
        (each["by"], each["what"], effects[each["change"]])
        for each in records
        if each["kind"] == "order"
    ]


def test_a_reload_by_a_signal_is_in_the_audit_log_and_one_by_the_api_is_not(make: Make) -> None:
    """The API has recorded its own already, with the user."""
    control, _, path = make(0)
    path.write_text(TEXT.replace("weight: 1", "").replace("10.0.0.22}", "10.0.0.22, weight: 7}"))
    asyncio.run(control.reload(author=Author("alice")))
    assert audited(control) == []
    path.write_text(TEXT)
    asyncio.run(control.reload())
    path.write_text("interface: [")
    with pytest.raises(ConfigError):
        asyncio.run(control.reload())
    (good, bad) = audited(control)
    assert good == ("SIGHUP", "reload", "change backend chat/gpu-2: weight 7 → 100")
    assert bad[:2] == ("SIGHUP", "reload")
    assert bad[2].endswith("it is invalid")


def test_a_reload_with_a_group_that_does_not_exist_is_refused(make: Make) -> None:
    control, core, path = make(0)
    path.write_text(f"{TEXT}socket_roles:\n  viewer: [root]\n")
    asyncio.run(control.reload(author=Author("alice")))
    assert core.config.socket_roles.viewer == ("root",)
    path.write_text(f"{TEXT}socket_roles:\n  viewer: [root, no-such-group]\n")
    with pytest.raises(ConfigError, match="no group 'no-such-group'") as caught:
        asyncio.run(control.reload(author=Author("alice")))
    assert caught.value.where == f"{path}:8"
    assert core.config.socket_roles.viewer == ("root",)


def test_the_garbage_collector_is_off_during_a_change_only(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, core, path = make(0)
    take, seen = core.take, list[bool]()

    async def taken(config: Config) -> dict[BackendRef, int]:
        seen.append(gc.isenabled())
        return await take(config)

    monkeypatch.setattr(core, "take", taken)
    path.write_text(TEXT.replace("port: 80", "port: 81"))
    asyncio.run(control.reload())
    asyncio.run(control.edit(TO_NAT))
    assert seen == [False, False]
    path.write_text("services: 1")
    with pytest.raises(ConfigError):
        asyncio.run(control.reload())
    assert gc.isenabled()


def test_a_reload_that_would_cut_open_flows_is_refused(make: Make) -> None:
    control, core, path = make(3)
    path.write_text(TEXT.replace("port: 80", "port: 80\n    forward: fullnat"))
    with pytest.raises(ConflictError, match="from dsr to fullnat"):
        asyncio.run(control.reload())
    assert core.taken == []
    path.write_text(TEXT.replace("port: 80", "port: 80\n    forward: ipip"))
    asyncio.run(control.reload())
    assert core.config.services[0].forward is Forward.IPIP


def test_a_reload_whose_lists_cannot_be_read_is_refused(make: Make) -> None:
    control, core, path = make(0)
    core.unreadable = "list drop cannot be read"
    path.write_text(TEXT.replace("port: 80", "port: 80\n    scheduler: source"))
    with pytest.raises(ConfigError, match="list drop cannot be read"):
        asyncio.run(control.reload())
    assert core.taken == []


CHAT_AND_WEB = f"""\
{TEXT}\
  - name: web
    vip: 10.0.0.11
    port: 80
    backends:
      - {{name: web-1, address: 10.0.0.31}}
      - {{name: web-2, address: 10.0.0.32}}
      - {{name: web-3, address: 10.0.0.33}}
"""
CUTS = [
    (TEXT, "the service at tcp://10.0.0.11:80 and cuts 9 open flows"),
    (CHAT_AND_WEB.rsplit("      - ", 2)[0], "2 of its 3 backends and cuts 6 open flows"),
]


def _with_web(make: Make, flows: int) -> tuple[AgentControl, FakeCore, Path]:
    control, core, path = make(flows)
    path.write_text(CHAT_AND_WEB)
    asyncio.run(control.reload())
    core.taken.clear()
    return control, core, path


@pytest.mark.parametrize(("text", "said"), CUTS)
def test_a_reload_that_takes_away_what_has_flows_must_be_confirmed(
    make: Make, text: str, said: str
) -> None:
    """As after a file that was cut off at the end of a line."""
    control, core, path = _with_web(make, 3)
    path.write_text(text)
    with pytest.raises(UnconfirmedError, match=f"removes {said}") as caught:
        asyncio.run(control.reload())
    assert (caught.value.where, core.taken) == ("service web", [])
    assert "lbctl reload --yes" in caught.value.remedy
    assert [str(change) for change in asyncio.run(control.reload(dry_run=True))]
    assert core.taken == []
    asyncio.run(control.reload(confirmed=True))
    assert len(core.taken) == 1


@pytest.mark.parametrize("text", [text for text, _ in CUTS])
def test_without_open_flows_a_reload_takes_away_what_it_likes(make: Make, text: str) -> None:
    control, core, path = _with_web(make, 0)
    path.write_text(text)
    asyncio.run(control.reload())
    assert len(core.taken) == 1


def test_less_than_half_of_the_backends_and_new_names_need_no_confirmation(make: Make) -> None:
    control, core, path = _with_web(make, 3)
    named_anew = CHAT_AND_WEB.replace("web-", "node-").replace("name: web", "name: www")
    for text in (CHAT_AND_WEB.rsplit("      - ", 1)[0], CHAT_AND_WEB, named_anew):
        path.write_text(text)
        asyncio.run(control.reload())
    assert len(core.taken) == 3


def test_an_apply_that_takes_away_a_service_with_flows_must_be_confirmed(make: Make) -> None:
    control, core, _ = _with_web(make, 3)
    services = document(core.config)["services"]
    assert isinstance(services, list)
    edit = Edit(EditOp.SERVICES_APPLY, None, None, {"services": services[:1]})
    assert asyncio.run(control.edit(edit, dry_run=True))
    with pytest.raises(UnconfirmedError, match="cuts 9 open flows"):
        asyncio.run(control.edit(edit))
    assert core.taken == []
    asyncio.run(control.edit(edit, dry_run=False, confirmed=True))
    assert [service.name for service in core.config.services] == ["chat"]


def test_a_service_that_is_removed_by_name_is_meant(make: Make) -> None:
    control, core, _ = _with_web(make, 3)
    asyncio.run(control.edit(Edit(EditOp.SERVICE_REMOVE, "web", None, {}), dry_run=False))
    assert [service.name for service in core.config.services] == ["chat"]


def test_files_are_written_and_flows_looked_for_beside_the_loop(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may take seconds for a sync, and a million flows take their time: health checks,
    passes and the API go on meanwhile.
    """
    control, core, path = make(0)
    on_loop, synced = threading.get_ident(), []
    monkeypatch.setattr("os.fsync", lambda _: synced.append(threading.get_ident()))
    asyncio.run(control.edit(Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"weight": 7})))
    path.write_text(TEXT.replace("gpu-2", "gpu-3"))
    asyncio.run(control.reload())
    assert len(core.taken) == 2
    assert synced
    assert on_loop not in synced

    looked: list[int] = []
    monkeypatch.setattr("agent.control.names_of", lambda _: None)
    monkeypatch.setattr(
        "agent.control.query_flows", lambda *_: looked.append(threading.get_ident())
    )
    core.dataplane = SimpleNamespace(tables=0, keys=0, clock=0, now_jiffies=lambda: 0)
    asyncio.run(control.flows(FlowQuery()))
    assert looked
    assert on_loop not in looked


def test_a_defect_in_a_reload_is_said_and_counted_and_what_ran_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, core, _ = make(0)
    met: asyncio.Queue[Exception] = asyncio.Queue()
    core.passes.defect = lambda _what, error: met.put_nowait(error)
    monkeypatch.setattr("agent.control.plan", lambda *_: [][0])

    async def story() -> None:
        hangup = asyncio.Event()
        task = asyncio.create_task(_reload_on(hangup, control))
        for _ in range(2):
            hangup.set()
            error = await asyncio.wait_for(met.get(), 60)
            assert isinstance(error, IndexError)
            assert not task.done()
        task.cancel()

    asyncio.run(story())
    assert core.taken == []
    assert "IndexError" in control._facts.config_problem


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Full while ``full`` is true."""
    state = {"full": True}

    def write(path: Path, text: str) -> None:
        if state["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, text)

    monkeypatch.setattr(store_module, "write_atomically", write)
    return state


DRAIN = Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"state": "drain"})


def _admin(core: FakeCore) -> AdminState:
    return core.config.services[0].backends[0].admin


def test_a_full_disk_keeps_nobody_from_draining(make: Make, disk: dict[str, bool]) -> None:
    control, core, _ = make(0)
    asyncio.run(control.edit(DRAIN))
    assert _admin(core) is AdminState.DRAIN
    assert "No space left" in control.unsaved()


def test_a_reload_keeps_what_is_in_memory_only(make: Make, disk: dict[str, bool]) -> None:
    control, core, _ = make(0)
    asyncio.run(control.edit(DRAIN))
    asyncio.run(control.reload())
    assert _admin(core) is AdminState.DRAIN
    assert control.unsaved()


def test_what_was_in_memory_only_is_saved_when_there_is_room(
    make: Make, disk: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    control, core, path = make(0)
    asyncio.run(control.edit(DRAIN))
    monkeypatch.setattr("agent.control.SAVE_AGAIN_S", 0.001)

    async def until_saved() -> None:
        saving = asyncio.create_task(control.keep_saved())
        await asyncio.sleep(0.01)
        assert control.unsaved()
        disk["full"] = False
        async with asyncio.timeout(60):
            while control.unsaved():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        saving.cancel()

    asyncio.run(until_saved())
    anew = RunningStore(path.parent, "default").load(TEXT)
    assert anew.config == core.config


def test_another_change_saves_the_one_before(make: Make, disk: dict[str, bool]) -> None:
    control, core, path = make(0)
    asyncio.run(control.edit(DRAIN))
    disk["full"] = False
    edit = Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"weight": 7})
    asyncio.run(control.edit(edit))
    assert control.unsaved() == ""
    assert RunningStore(path.parent, "default").load(TEXT).config == core.config


def test_a_removal_says_how_many_connections_were_reset(make: Make) -> None:
    control, core, _ = make(0)
    remove = Edit(EditOp.BACKEND_REMOVE, "chat", "gpu-1", {})
    (planned,) = asyncio.run(control.edit(remove, dry_run=True))
    assert "reset" not in planned.effect
    core.reset = {BackendRef("chat", "gpu-1"): 3, BackendRef("embed", "gpu-1"): 7}
    (made,) = asyncio.run(control.edit(remove, dry_run=False))
    assert made.effect == f"{planned.effect}; 3 open connections were reset"


WEIGHT = Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"weight": 7})
ALICE = Author("alice as root", "too slow")


def test_a_change_is_said_and_kept_with_whoever_made_it(make: Make) -> None:
    control, _, _ = make(0)
    with capture_logs() as said:
        asyncio.run(control.edit(WEIGHT, author=ALICE))
    (line,) = [line for line in said if line["event"] == "change"]
    assert (line["backend"], line["by"], line["message"]) == ("chat/gpu-1", *astuple(ALICE))
    assert (line["change"], line["version"]) == ("change backend chat/gpu-1: weight 100 → 7", 1)
    (version,) = asyncio.run(control.versions())
    assert (version.how, version.who, version.message) == ("edit", *astuple(ALICE))


def test_of_a_change_with_many_lines_the_first_are_said(make: Make) -> None:
    control, core, path = make(0)
    more = ", ".join(f"{{name: x{n}, address: 10.1.0.{n}}}" for n in range(1, 81))
    path.write_text(TEXT.replace("10.0.0.22}", f"10.0.0.22}}, {more}"))
    with capture_logs() as said:
        asyncio.run(control.reload(author=ALICE))
    assert len(core.config.services[0].backends) == 82
    assert [line["event"] for line in said].count("change") == 50
    (rest,) = [line for line in said if line["event"] == "more changes"]
    assert rest["count"] == 30
    assert asyncio.run(control.versions())[0].changes_count == 80


def test_a_version_runs_again_as_a_new_one(make: Make) -> None:
    control, core, _ = make(0)
    for edit in (WEIGHT, DRAIN):
        asyncio.run(control.edit(edit, author=ALICE))
    assert [str(each) for each in asyncio.run(control.diff(1, None))] == [
        "change backend chat/gpu-1: state active → drain"
    ]
    planned = asyncio.run(control.rollback(1, None, True, author=ALICE))
    assert _admin(core) is AdminState.DRAIN
    assert asyncio.run(control.rollback(1, None, False, author=ALICE)) == planned
    assert (_admin(core), core.config.services[0].backends[0].weight) == (AdminState.ACTIVE, 7)
    hows = [each.how for each in asyncio.run(control.versions())]
    assert hows == ["edit", "edit", "rollback to 1"]
    assert asyncio.run(control.diff(1, 3)) == ()


def test_a_rollback_that_takes_away_what_has_flows_must_be_confirmed(make: Make) -> None:
    control, core, _ = make(0)
    asyncio.run(control.edit(WEIGHT, author=ALICE))
    added = {"vip": "10.0.0.12", "port": 80, "backends": [{"name": "a", "address": "10.0.0.21"}]}
    asyncio.run(control.edit(Edit(EditOp.SERVICE_ADD, "new", None, added)))
    core._flows = 3
    with pytest.raises(UnconfirmedError) as refused:
        asyncio.run(control.rollback(1, None, False, author=ALICE))
    assert "lbctl history rollback 1 --yes" in refused.value.remedy
    asyncio.run(control.rollback(1, None, False, confirmed=True, author=ALICE))
    assert [service.name for service in core.config.services] == ["chat"]


def test_a_version_that_is_not_there_changes_nothing(make: Make) -> None:
    control, core, _ = make(0)
    with pytest.raises(NotFoundError, match="none is kept yet"):
        asyncio.run(control.rollback(1, None, False, author=ALICE))
    assert core.taken == []


def test_edits_are_made_together_or_not_at_all(make: Make) -> None:
    control, core, _ = make(0)
    other = Edit(EditOp.BACKEND_SET, "chat", "gpu-2", {"state": "drain"})
    first, second = asyncio.run(control.edit(DRAIN, other, dry_run=True))
    assert "as things are, no healthy backend of chat is left" in second.effect
    assert "no healthy backend of chat is left" not in first.effect
    nobody = Edit(EditOp.BACKEND_SET, "chat", "gpu-9", {"state": "drain"})
    with pytest.raises(NotFoundError):
        asyncio.run(control.edit(DRAIN, nobody))
    assert core.taken == []
    assert len(asyncio.run(control.edit(DRAIN, other))) == 2
    assert len(core.taken) == 1
    (version,) = asyncio.run(control.versions())
    assert version.changes_count == 2


def test_a_reload_that_changes_nothing_is_said_too(make: Make) -> None:
    control, _, _ = make(0)
    with capture_logs() as said:
        asyncio.run(control.reload(author=ALICE))
    (line,) = [line for line in said if line["event"] == "reload"]
    assert (line["why"], line["by"]) == ("nothing has changed", "alice as root")


DISCOVERS = TEXT.replace("port: 80", "port: 80\n    discover: {file: /etc/gpu.yaml}")


def found(*numbers: int) -> Found:
    return {"chat": tuple(Placed(Target(ip_address(f"10.0.0.{n}"))) for n in numbers)}


def names(core: FakeCore) -> list[str]:
    return [backend.name for backend in core.config.services[0].backends]


@pytest.fixture
def discovering(make: Make) -> tuple[AgentControl, FakeCore, Path]:
    """A service that has a source, which has named two servers."""
    control, core, path = make(0)
    path.write_text(DISCOVERS)
    asyncio.run(control.reload())
    asyncio.run(control.discovery._apply(found(40, 41)))
    return control, core, path


def test_what_a_source_names_is_served_and_belongs_to_no_version(discovering, tmp_path) -> None:
    control, core, _ = discovering
    assert names(core) == ["gpu-1", "gpu-2", "10.0.0.40", "10.0.0.41"]
    added = "add backend chat/10.0.0.40; add backend chat/10.0.0.41"
    assert audited(control)[1:] == [("lb-agent", "discovery", added)]
    assert control.file_changes() == ()
    saved = (tmp_path / "default.running.yaml").read_text()
    assert "10.0.0.40" not in saved
    assert len(asyncio.run(control.versions())) == 1


@pytest.mark.parametrize("how", ["edit", "reload", "rollback", "apply"])
def test_whatever_else_changes_keeps_the_targets(discovering, how: str) -> None:
    control, core, path = discovering
    if how == "edit":
        asyncio.run(control.edit(Edit(EditOp.SERVICE_SET, "chat", None, {"scheduler": "source"})))
    elif how == "reload":
        path.write_text(DISCOVERS + "hash_seed: 7\n")
        asyncio.run(control.reload())
        assert core.config.hash_seed == 7
    elif how == "apply":
        services = document(core.config)["services"]
        apply = Edit(EditOp.SERVICES_APPLY, values={"services": services})
        asyncio.run(control.edit(apply, confirmed=True))
    else:
        asyncio.run(control.edit(Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"weight": 5})))
        asyncio.run(control.rollback(1, None, dry_run=False, confirmed=True))
    assert names(core) == ["gpu-1", "gpu-2", "10.0.0.40", "10.0.0.41"]


def test_a_service_with_another_name_keeps_its_targets(discovering) -> None:
    """Else its connections to them would be cut."""
    control, core, _ = discovering
    (service,) = document(core.config)["services"]
    apply = Edit(EditOp.SERVICES_APPLY, values={"services": [service | {"name": "talk"}]})
    asyncio.run(control.edit(apply, confirmed=True))
    assert core.config.services[0].name == "talk"
    assert names(core) == ["gpu-1", "gpu-2", "10.0.0.40", "10.0.0.41"]


def test_a_drained_target_stays_drained_when_its_source_forgets_and_names_it(discovering) -> None:
    control, core, _ = discovering
    drain = Edit(EditOp.BACKEND_SET, "chat", "10.0.0.41", {"state": "drain"})
    changes = asyncio.run(control.edit(drain))
    assert [change.backend for change in changes] == [None, "10.0.0.41"]
    for numbers in ((40,), (40, 41)):
        asyncio.run(control.discovery._apply(found(*numbers)))
    assert core.config.services[0].backends[-1].admin is AdminState.DRAIN
    asyncio.run(control.edit(Edit(EditOp.BACKEND_SET, "chat", "10.0.0.41", {"state": None})))
    assert core.config.services[0].backends[-1].admin is AdminState.ACTIVE
    assert control.file_changes() == ()


def test_targets_that_do_not_fit_change_nothing(discovering, monkeypatch) -> None:
    control, core, _ = discovering

    def full(_config: Config) -> None:
        raise ConfigError("5 backends do not fit into a table of 4")

    monkeypatch.setattr(core, "identities", full)
    with pytest.raises(ConfigError, match="do not fit"):
        asyncio.run(control.discovery._apply(found(40, 41, 42)))
    monkeypatch.undo()
    asyncio.run(control.edit(Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"weight": 5})))
    assert names(core) == ["gpu-1", "gpu-2", "10.0.0.40", "10.0.0.41"]


def test_how_many_flows_a_target_has_is_known_by_its_backend(make: Make) -> None:
    control, _, path = make(3)
    path.write_text(DISCOVERS)
    asyncio.run(control.reload())
    asyncio.run(control.discovery._apply(found(40)))
    flows = asyncio.run(control.discovery._flows())
    seen = (flows("chat", Target(ip_address(f"10.0.0.{n}"))) for n in (40, 9))
    assert tuple(seen) == (3, 0)


def reverting(tmp_path: Path) -> Reverting:
    """What the next agent reads."""

    async def refuses(_edit: Edit, _why: str) -> None:
        raise AssertionError

    empty = Config("default", "eth0")
    return Reverting(tmp_path / "default.reverts.json", lambda: empty, refuses)


DRAIN = Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"state": "drain"})


def test_a_change_for_a_time_ends_by_itself_also_after_a_restart(
    make: Make, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("agent.reverting.LOOK_S", 0.005)
    control, core, _ = make(0)
    asyncio.run(control.edit(DRAIN, for_s=3600.0))
    (revert,) = control.reverts()
    assert reverting(tmp_path).pending == (revert,)
    control.reverting.pending = (dataclasses.replace(revert, at=0.0),)

    async def ends() -> None:
        task = asyncio.create_task(control.reverting.run())
        async with asyncio.timeout(30):
            # It is written to disk after that, in a thread, and so is its outcome.
            while control.reverts() or reverting(tmp_path).pending or is_open():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        task.cancel()

    def is_open() -> bool:
        return control._audit.head.number < 3  # begin, order, outcome

    with capture_logs() as logs:
        asyncio.run(ends())
    assert core.config.services[0].backends[0].admin is AdminState.ACTIVE
    (change,) = (log for log in logs if log["event"] == "change")
    assert (change["by"], change["message"]) == ("lb-agent", "state of gpu-1: the time is over")
    assert audited(control) == [
        ("lb-agent", "the end of a change for a time", "state of gpu-1: the time is over")
    ]


def test_an_agent_that_dies_in_a_change_for_a_time_or_at_its_end_leaves_nothing_for_ever(
    make: Make, monkeypatch, tmp_path: Path
) -> None:
    """What the next agent would read is looked at while the change is being made."""
    control, core, _ = make(0)
    found: list[tuple[Revert, ...]] = []
    take = core.take

    async def looks(config: Config) -> dict[BackendRef, int]:
        found.append(reverting(tmp_path).pending)
        return await take(config)

    monkeypatch.setattr(core, "take", looks)
    asyncio.run(control.edit(DRAIN, for_s=60.0))
    (revert,) = control.reverts()
    assert found == [(revert,)]
    weight = dataclasses.replace(DRAIN, values={"state": "maintenance"})
    asyncio.run(control.edit(weight, for_s=60.0))
    (other,) = control.reverts()
    assert found[1] == (revert, other), "one of them is of what runs"
    assert (revert.set_to, other.set_to, other.back) == ("drain", "maintenance", "active")
    asyncio.run(control.reverting._end(other))
    assert found[2] == (other,), "until it is undone"
    assert control.reverts() == reverting(tmp_path).pending == ()


def test_a_change_for_a_time_that_is_refused_ends_nothing(make: Make, monkeypatch) -> None:
    control, core, _ = make(0)
    asyncio.run(control.edit(DRAIN, for_s=60.0))
    before = control.reverts()

    async def refuses(_config: Config) -> None:
        raise ConfigError("the list cannot be read")

    monkeypatch.setattr(core.guarding, "prepare", refuses)
    other = Edit(EditOp.BACKEND_SET, "chat", "gpu-2", {"weight": 5})
    for edit in (other, dataclasses.replace(DRAIN, values={"state": "active"})):
        with pytest.raises(ConfigError):
            asyncio.run(control.edit(edit, for_s=9.0))
        assert control.reverts() == before


def test_a_dry_run_ends_nothing(make: Make) -> None:
    control, _, _ = make(0)
    asyncio.run(control.edit(DRAIN, for_s=60.0, dry_run=True))
    assert control.reverts() == ()


def test_a_change_that_the_kernel_refuses_at_first_ends_all_the_same(
    make: Make, monkeypatch
) -> None:
    """It is kept, and tried again."""
    control, core, _ = make(0)

    async def refuses(_config: Config) -> None:
        raise DataplaneError("no memory")

    monkeypatch.setattr(core, "take", refuses)
    with pytest.raises(DataplaneError):
        asyncio.run(control.edit(DRAIN, for_s=60.0))
    assert [each.back for each in control.reverts()] == ["active"]


@pytest.mark.parametrize("error", [ConfigError("the list cannot be read"), ZeroDivisionError()])
def test_a_change_that_cannot_be_undone_yet_is_tried_again(
    make: Make, monkeypatch, error: Exception
) -> None:
    control, core, _ = make(0)
    asyncio.run(control.edit(DRAIN, for_s=1.0))
    (revert,) = control.reverts()

    async def refuses(_config: Config) -> None:
        raise error

    monkeypatch.setattr(core.guarding, "prepare", refuses)
    with capture_logs() as logs:
        asyncio.run(control.reverting._end(revert))
    assert logs[0]["event"].startswith("a change cannot be undone")
    (later,) = control.reverts()
    assert later.at > revert.at


def test_a_change_that_comes_while_another_one_ends_is_not_forgotten(make: Make) -> None:
    control, core, _ = make(0)
    asyncio.run(control.edit(DRAIN, for_s=1.0))
    (revert,) = control.reverts()
    other = Edit(EditOp.BACKEND_SET, "chat", "gpu-2", {"weight": 5})

    async def meanwhile() -> None:
        await asyncio.gather(control.edit(other, for_s=60.0), control.reverting._end(revert))

    asyncio.run(meanwhile())
    assert [each.backend for each in control.reverts()] == ["gpu-2"]
    assert core.config.services[0].backends[0].admin is AdminState.ACTIVE


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '[{"service": "chat"}]', "\0"])
def test_reverts_that_cannot_be_read_are_logged(tmp_path: Path, text: str) -> None:
    (tmp_path / "default.reverts.json").write_text(text)
    with capture_logs() as logs:
        assert reverting(tmp_path).pending == ()
    assert logs[0]["log_level"] == "error"
