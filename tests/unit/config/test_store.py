"""The running configuration on disk: when it counts, and that it is never half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agent.config import store as store_module
from agent.config.edit import Edit, EditOp, apply_edit
from agent.config.plan import plan
from agent.config.render import document
from agent.config.store import LoadedRunning, RunningStore, file_digest
from agent.errors import ConfigError
from agent.model import AdminState, Service

FILE = """\
interface: eth0
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    backends: [{name: gpu-1, address: 10.0.0.21}]
"""


@pytest.fixture
def store(tmp_path: Path) -> RunningStore:
    return RunningStore(tmp_path / "state", "edge-1")


def drain_and_save(store: RunningStore, loaded: LoadedRunning) -> None:
    values = {"state": "drain"}
    config = apply_edit(loaded.config, Edit(EditOp.BACKEND_SET, "chat", "gpu-1", values))
    store.save(config, loaded.file_digest, plan(loaded.file_config, config))


def test_without_a_running_configuration_the_file_is_used(store: RunningStore) -> None:
    loaded = store.load(FILE)
    assert loaded.config == loaded.file_config
    assert (loaded.changes, loaded.dropped, loaded.problem) == ((), (), "")
    assert loaded.file_digest == file_digest(FILE)
    assert store.last_good("") is None


def test_runtime_changes_stand_while_the_file_is_the_same(store: RunningStore) -> None:
    drain_and_save(store, store.load(FILE))
    loaded = store.load(FILE)
    assert [str(change) for change in loaded.changes] == [
        "change backend chat/gpu-1: state active → drain"
    ]
    found = store.last_good("why")
    assert found is not None
    assert (found.config, found.file_problem) == (loaded.config, "why")


def test_a_changed_file_wins_and_the_dropped_changes_are_named_and_kept(
    store: RunningStore,
) -> None:
    drain_and_save(store, store.load(FILE))
    saved = store.path.read_text()
    loaded = store.load(FILE + "# touched\n")
    assert loaded.config == loaded.file_config
    assert loaded.dropped == ("change backend chat/gpu-1: state active → drain",)
    store.settle(loaded)
    assert store.previous_path.read_text() == saved
    assert store.load(FILE + "# touched\n").dropped == ()


def test_a_changed_file_that_is_not_taken_over_drops_nothing(store: RunningStore) -> None:
    drain_and_save(store, store.load(FILE))
    assert store.load(FILE + "# touched\n").dropped
    assert store.load(FILE).changes


def test_a_save_for_another_file_keeps_the_previous_one(store: RunningStore) -> None:
    drain_and_save(store, store.load(FILE))
    saved = store.path.read_text()
    drain_and_save(store, store.load(FILE + "# touched\n"))
    assert store.previous_path.read_text() == saved


def test_what_stands_is_not_put_aside(store: RunningStore) -> None:
    drain_and_save(store, store.load(FILE))
    store.settle(store.load(FILE))
    assert store.load(FILE).changes
    assert not store.previous_path.exists()


def test_a_bad_file_is_refused_and_the_running_configuration_left_alone(
    store: RunningStore,
) -> None:
    drain_and_save(store, store.load(FILE))
    saved = store.path.read_text()
    with pytest.raises(ConfigError) as caught:
        store.load("interfaec: eth0", "agent.yaml")
    assert caught.value.where == "agent.yaml:1"
    assert store.path.read_text() == saved


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_running_configuration_is_reported_and_the_file_used(
    store: RunningStore, share: float
) -> None:
    drain_and_save(store, store.load(FILE))
    whole = store.path.read_bytes()
    part = whole[: int(len(whole) * share)]
    store.path.write_bytes(part)
    loaded = store.load(FILE)
    assert loaded.config == loaded.file_config
    assert "cannot be used" in loaded.problem
    assert str(store.path) in loaded.problem
    store.settle(loaded)
    assert store.damaged_path.read_bytes() == part
    assert store.load(FILE).problem == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("drain", "dra1n"),
        lambda text: text.replace("format: 1", "format: 2"),
        lambda text: text + "x: 1\n",
        lambda text: "\0" * len(text),
    ],
)
def test_a_damaged_running_configuration_is_never_run(store: RunningStore, damage: object) -> None:
    drain_and_save(store, store.load(FILE))
    assert callable(damage)
    store.path.write_text(damage(store.path.read_text()))
    with pytest.raises(ConfigError):
        store.last_good("")
    assert store.load(FILE).problem


def test_bytes_that_are_not_text_are_damage(store: RunningStore) -> None:
    drain_and_save(store, store.load(FILE))
    store.path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be used" in store.load(FILE).problem


def test_a_failed_save_leaves_the_old_one_and_says_what_to_do(
    store: RunningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = store.load(FILE)
    drain_and_save(store, loaded)
    saved = store.path.read_text()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ConfigError) as caught:
        store.save(loaded.config, loaded.file_digest)
    assert "No space left on device" in caught.value.message
    assert caught.value.where == str(store.path)
    assert store.path.read_text() == saved
    assert [path.name for path in store.path.parent.iterdir()] == [store.path.name]


_WRITER = """
import sys
from pathlib import Path
from agent.config.load import parse
from agent.config.plan import plan
from agent.config.store import RunningStore, file_digest
text = Path(sys.argv[2]).read_text()
store = RunningStore(Path(sys.argv[1]), "edge-1")
configs = [parse(text.replace("21", str(n)), "f") for n in (21, 22)]
while True:
    for config in configs:
        store.save(config, file_digest(text), plan(configs[0], config))
        print(flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_running_configuration(
    store: RunningStore, tmp_path: Path
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(FILE)
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(store.path.parent), str(file)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(attempt * 0.0074)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
        loaded = store.load(FILE)
        assert loaded.problem == ""
        found = store.last_good("")
        assert (found.config if found else loaded.file_config) == loaded.config


def test_only_services_that_changed_are_written_anew_and_the_text_is_the_same(
    store: RunningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = store.load(FILE + SECOND)
    written: list[str] = []
    once = store_module._text_of

    def text_of(service: Service) -> str:
        written.append(service.name)
        return once(service)

    monkeypatch.setattr(store_module, "_text_of", text_of)
    config = loaded.config
    for weight in (7, 8):
        config = apply_edit(config, Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"weight": weight}))
        store.save(config, loaded.file_digest, plan(loaded.file_config, config))
    assert written == ["chat", "two", "chat"]
    data = yaml.safe_load(store.path.read_text())
    assert data["config"] == document(config)
    assert store.load(FILE + SECOND).config == config
    store.save(replace(config, services=()), loaded.file_digest, ["all are gone"])
    assert store.load(FILE + SECOND).config.services == ()


def test_what_was_written_is_not_read_again_unless_somebody_has_touched_it(
    store: RunningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain_and_save(store, store.load(FILE))
    with monkeypatch.context() as patch:
        patch.setattr(store, "_verified", None)  # it must not be called
        assert store.load(FILE).config.services[0].backends[0].admin is AdminState.DRAIN
    text = store.path.read_text()
    store.path.write_text(text.replace("drain", "drxin"))
    assert store.load(FILE).problem
    store.path.unlink()
    assert store.load(FILE).config == store.load(FILE).file_config


SECOND = """\
  - name: two
    vip: 10.0.0.11
    port: 80
    health: {type: tcp, send: "a: b #c\\n - d", expect: "null"}
    backends: [{name: gpu-1, address: 10.0.0.21}]
"""
