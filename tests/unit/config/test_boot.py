"""What a start runs with when the file is good, broken, or not there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.config.boot import boot
from agent.config.edit import Edit, EditOp, apply_edit
from agent.config.plan import plan
from agent.control import settle
from agent.errors import ConfigError
from agent.failover.process.reading import orders_in

GOOD = """\
name: edge-1
interface: eth0
state_dir: {folder}  # its own
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    down_flows: keep
    backends:
      - {{name: gpu-1, address: 10.0.0.21}}
"""
BROKEN = [b"interface: eth0\nservices: [", b"", b"interface: eth0", b"\xff\xfe\x00", b"no: 1\n"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("agent.config.boot._USUAL_FOLDER", tmp_path)
    (tmp_path / "agent.yaml").write_text(GOOD.format(folder=tmp_path))
    return tmp_path / "agent.yaml"


def start(path: Path) -> None:
    begun = boot(path)
    asyncio.run(settle(begun.store, begun.loaded))


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_gives_way_to_the_last_good_one(path: Path, broken: bytes) -> None:
    good = boot(path).loaded.config
    start(path)
    path.write_bytes(broken)
    found = boot(path).loaded
    assert found.config == good
    assert "the last good configuration runs, because the file cannot be used" in found.file_problem
    assert str(path) in found.file_problem
    start(path)
    assert boot(path).loaded.config == good, "after a second start, too"
    with pytest.raises(ConfigError):
        boot(path, fall_back=False)


def test_a_file_that_others_can_change_gives_way_to_the_last_good_one(path: Path) -> None:
    start(path)
    path.chmod(0o666)
    found = boot(path).loaded
    assert found.config.services[0].name == "chat"
    assert "other users can change the file (mode 0666)" in found.file_problem
    with pytest.raises(ConfigError, match="other users can change the file") as caught:
        boot(path, fall_back=False)
    assert caught.value.remedy == f"chmod go-w {path}"


def test_runtime_changes_are_part_of_what_was_good(path: Path) -> None:
    start(path)
    begun = boot(path)
    drained = apply_edit(
        begun.loaded.config, Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"state": "drain"})
    )
    changes = plan(begun.loaded.file_config, drained)
    begun.store.save(drained, begun.loaded.file_digest, changes)
    text = path.read_text()
    path.write_text("broken")
    assert boot(path).loaded.config == drained
    path.write_text(text)
    assert boot(path).loaded.changes == changes, "the file is as it was, so they still count"


def test_another_folder_is_found_by_what_is_left_of_the_file(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "else where"
    path.write_text(GOOD.format(folder=f'"{folder}"'))
    start(path)
    path.write_text(path.read_text()[:-20])
    assert boot(path).loaded.config.state_dir == folder


def test_nothing_was_good_for_a_file_of_another_name(path: Path) -> None:
    start(path)
    other = path.with_name("other.yaml")
    other.write_text("broken")
    with pytest.raises(ConfigError):
        boot(other)


def test_who_removes_the_file_wants_nothing_to_run(path: Path) -> None:
    start(path)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        boot(path)


def test_the_newest_that_is_whole_counts(path: Path) -> None:
    start(path)
    path.write_text(path.read_text().replace("edge-1", "edge-2"))
    start(path)
    path.write_text("broken")
    assert boot(path).loaded.config.name == "edge-2"
    newest = boot(path).store.path
    newest.write_text(newest.read_text()[:-3])
    assert boot(path).loaded.config.name == "edge-1"
    (path.parent / "edge-1.running.yaml").write_text("no")
    with pytest.raises(ConfigError, match=r"agent\.yaml"):
        boot(path)


def test_what_was_kept_does_not_push_aside_what_an_operator_changed(path: Path) -> None:
    """Only a running configuration with changes is worth keeping as the former one."""
    begun = boot(path)
    drained = apply_edit(
        begun.loaded.config, Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"state": "drain"})
    )
    changes = plan(begun.loaded.file_config, drained)
    begun.store.save(drained, begun.loaded.file_digest, changes)
    for port in (81, 82):
        path.write_text(path.read_text().replace("port: 8", f"port: {port}"))
        start(path)
    assert "state active" in begun.store.previous_path.read_text()
    assert boot(path).loaded.changes == ()


def test_without_changes_the_file_alone_counts(path: Path) -> None:
    """What was saved leaves defaults out, and another release may have others."""
    start(path)
    begun = boot(path)
    other = apply_edit(
        begun.loaded.config, Edit(EditOp.SERVICE_SET, "chat", None, {"down_flows": "reroute"})
    )
    begun.store.save(other, begun.loaded.file_digest)
    assert boot(path).loaded.config == begun.loaded.file_config


def test_the_failover_process_takes_the_last_good_one_only_at_its_start(path: Path) -> None:
    start(path)
    path.write_text("broken")
    orders = orders_in(path, at_start=True)
    assert (orders.name, orders.state_dir) == ("edge-1", path.parent)
    assert "the last good configuration runs" in orders.problem
    with pytest.raises(ConfigError):
        orders_in(path)
