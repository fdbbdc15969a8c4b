"""The history of the configuration: every version, whoever made it, and none too many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.config import versions as versions_module
from agent.config.edit import Edit, EditOp, apply_edit, rollback_edit
from agent.config.plan import plan
from agent.config.store import RunningStore
from agent.config.versions import Act, Author
from agent.errors import ConfigError, NotFoundError
from agent.model import AdminState, Config

FILE = """\
interface: eth0
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    backends: [{name: gpu-1, address: 10.0.0.21}, {name: gpu-2, address: 10.0.0.22}]
  - name: embed
    vip: 10.0.0.11
    port: 80
    backends: [{name: gpu-1, address: 10.0.0.21}]
"""
ME = Author("alice as root", "too slow")


@pytest.fixture
def store(tmp_path: Path) -> RunningStore:
    return RunningStore(tmp_path / "state", "edge-1")


def edited(config: Config, weight: int) -> Config:
    return apply_edit(config, Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"weight": weight}))


def edit_and_keep(store: RunningStore, *weights: int) -> Config:
    """Start, and make these edits, one after the other."""
    loaded = store.load(FILE)
    config = loaded.config
    store.keep(config, loaded.file_digest, (), Act("start", Author("lb-agent")))
    for weight in weights:
        before, config = config, edited(config, weight)
        act = Act("edit", ME, tuple(map(str, plan(before, config))))
        assert store.keep(config, loaded.file_digest, plan(loaded.config, config), act) == ""
    return config


def test_each_change_is_a_version_with_who_made_it_and_what(store: RunningStore) -> None:
    edit_and_keep(store, 50, 60)
    first, second, third = store.versions.all()
    assert (first.number, first.how, first.who, first.changes) == (1, "start", "lb-agent", ())
    assert (second.who, second.message) == ("alice as root", "too slow")
    assert second.changes == ("change backend chat/gpu-1: weight 100 → 50",)
    assert third.changes == ("change backend chat/gpu-1: weight 50 → 60",)
    assert [store.version(n).services[0].backends[0].weight for n in (1, 2, 3)] == [100, 50, 60]


def test_versions_outlive_the_agent_and_a_start_with_the_same_is_none(store: RunningStore) -> None:
    config = edit_and_keep(store, 50)
    anew = RunningStore(store.path.parent, "edge-1")
    loaded = anew.load(FILE)
    assert loaded.config == config
    anew.keep(loaded.config, loaded.file_digest, loaded.changes, Act("start", Author("lb-agent")))
    assert [version.number for version in anew.versions.all()] == [1, 2]


def test_back_to_what_was_before_is_a_version_too(store: RunningStore) -> None:
    edit_and_keep(store, 50, 100)
    assert [version.number for version in store.versions.all()] == [1, 2, 3]
    assert store.version(1) == store.version(3)


def test_a_version_costs_no_copy(store: RunningStore) -> None:
    edit_and_keep(store, 50)
    newest = store.path.parent / "edge-1.versions" / "2.yaml"
    assert newest.stat().st_ino == store.path.stat().st_ino


def test_without_hard_links_it_is_copied(
    store: RunningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(_self: Path, _target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", link)
    edit_and_keep(store, 50)
    assert store.version(1).services[0].backends[0].weight == 100


def test_the_oldest_go_when_they_are_too_many(
    store: RunningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions_module, "MOST", 3)
    edit_and_keep(store, *range(1, 8))
    assert [version.number for version in store.versions.all()] == [6, 7, 8]
    files = {path.name for path in (store.path.parent / "edge-1.versions").iterdir()}
    assert files == {f"{n}.{kind}" for n in (6, 7, 8) for kind in ("json", "yaml")}
    with pytest.raises(NotFoundError, match="versions 6 to 8 are kept"):
        store.version(5)


def test_or_too_much_but_some_stay_however_large(
    store: RunningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions_module, "MOST_BYTES", 1)
    monkeypatch.setattr(versions_module, "LEAST", 2)
    edit_and_keep(store, 1, 2, 3)
    assert [version.number for version in store.versions.all()] == [3, 4]


def test_what_a_full_disk_kept_out_is_in_the_next_version(
    store: RunningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, digest = edit_and_keep(store), store.load(FILE).file_digest
    real = os.fsync

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    for weight in (7, 8):
        config = edited(config, weight)
        assert store.keep(config, digest, (), Act("edit", ME, (f"weight {weight}",)))
    monkeypatch.setattr(os, "fsync", real)
    assert store.write_held()
    version = store.versions.all()[-1]
    assert version.changes == ("weight 7", "weight 8")
    assert store.version(version.number) == config


def test_a_history_that_cannot_be_written_hurts_no_change(store: RunningStore) -> None:
    loaded = store.load(FILE)
    store.path.parent.mkdir()
    (store.path.parent / "edge-1.versions").write_text("somebody's")
    assert store.keep(loaded.config, loaded.file_digest) == ""
    assert store.history_problem
    assert store.load(FILE).problem == ""


@pytest.mark.parametrize("damage", ["", "not a version", None])
def test_a_damaged_version_is_never_run(store: RunningStore, damage: str | None) -> None:
    edit_and_keep(store, 50)
    path = store.path.parent / "edge-1.versions" / "1.yaml"
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace("gpu-2", "gpu-3") if damage is None else damage)
    with pytest.raises(ConfigError, match="this version cannot be used"):
        store.version(1)


def test_what_is_told_about_a_version_and_is_damaged_is_as_if_it_were_not_there(
    store: RunningStore,
) -> None:
    edit_and_keep(store, 50, 60)
    (store.path.parent / "edge-1.versions" / "2.json").write_text("{")
    anew = RunningStore(store.path.parent, "edge-1")
    assert [version.number for version in anew.versions.all()] == [1, 3]


def test_back_to_a_version_of_all_services_or_of_one() -> None:
    old = RunningStore(Path("/nowhere"), "x").load(FILE).config
    drain = Edit(EditOp.BACKEND_SET, "embed", "gpu-1", {"state": "drain"})
    now = apply_edit(edited(old, 50), drain)
    assert apply_edit(now, rollback_edit(now, old, None)).services == old.services
    one = apply_edit(now, rollback_edit(now, old, "chat"))
    assert one.services[0] == old.services[0]
    assert one.services[1].backends[0].admin is AdminState.DRAIN


def test_back_to_a_version_without_a_service_removes_it_and_one_that_had_it_puts_it_back() -> None:
    old = RunningStore(Path("/nowhere"), "x").load(FILE).config
    without = apply_edit(old, Edit(EditOp.SERVICE_REMOVE, "chat"))
    assert [s.name for s in apply_edit(old, rollback_edit(old, without, "chat")).services] == [
        "embed"
    ]
    again = apply_edit(without, rollback_edit(without, old, "chat"))
    assert {s.name: s for s in again.services} == {s.name: s for s in old.services}
    with pytest.raises(NotFoundError, match="neither now nor in that version"):
        rollback_edit(old, without, "chta")
