"""Locks keep others off, also where somebody removes their files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import lock as module
from agent.errors import SteelyardError
from agent.lock import InstanceLocks, _holder_of

NETWORK = f"t{os.getpid()}"  # an interface of nobody else's


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "RUN_FOLDER", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def held() -> Iterator[InstanceLocks]:
    locks = InstanceLocks("one", NETWORK)
    yield locks
    locks.release()


def refused(name: str) -> str:
    with pytest.raises(SteelyardError, match="another agent runs it") as caught:
        InstanceLocks(name, NETWORK)
    assert str(os.getpid()) in caught.value.message
    return caught.value.where


def test_an_instance_and_an_interface_have_one_agent(held: InstanceLocks) -> None:
    assert refused("one") == "instance one"
    assert refused("other") == f"interface {NETWORK}"


@pytest.mark.parametrize("what", ["files", "folder"])
def test_a_second_agent_is_refused_where_the_files_were_removed(
    held: InstanceLocks, folder: Path, what: str
) -> None:
    if what == "folder":
        shutil.rmtree(folder)
    else:
        for path in folder.iterdir():
            path.unlink()
    assert refused("other") == f"interface {NETWORK}"


def test_what_was_removed_is_put_back(held: InstanceLocks, folder: Path) -> None:
    assert held.put_back() == ()
    shutil.rmtree(folder)
    assert len(held.put_back()) == 2
    assert held.put_back() == ()
    assert refused("one") == "instance one"


def test_an_instance_that_somebody_else_has_by_now_is_not_taken_from_it(
    held: InstanceLocks, folder: Path
) -> None:
    shutil.rmtree(folder)
    other = InstanceLocks("one")
    with pytest.raises(SteelyardError, match="another agent runs it"):
        held.put_back()
    held.release()
    with pytest.raises(SteelyardError, match="another agent runs it"):
        InstanceLocks("one")
    other.release()
    assert list(folder.iterdir()) == []


def test_whoever_comes_after_the_release_gets_it(held: InstanceLocks, folder: Path) -> None:
    held.release()
    assert list(folder.iterdir()) == []
    InstanceLocks("one", NETWORK).release()


def test_many_who_ask_are_all_told_by_whom_it_is_taken(held: InstanceLocks) -> None:
    for _ in range(3):
        for _ in range(100):
            assert _holder_of(f"interface-{NETWORK}") == os.getpid()
        held.put_back()


def test_a_name_that_another_user_took_keeps_nobody_off(monkeypatch: pytest.MonkeyPatch) -> None:
    first = InstanceLocks("one", NETWORK)
    monkeypatch.setattr(module, "_holder_of", lambda name: None)  # of no user that counts
    shutil.rmtree(module.RUN_FOLDER)
    second = InstanceLocks("other", NETWORK)
    second.release()
    first.release()


def test_a_file_that_its_last_holder_removed_meanwhile_is_no_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened, then its holder let go and removed it, then it was locked: by that alone a
    second agent could have another file of the same name.
    """
    flock, removed = module.fcntl.flock, []

    def late(fd: int, how: int) -> None:
        flock(fd, how)
        if not removed:
            removed.append(Path(f"/proc/self/fd/{fd}").readlink())
            removed[0].unlink()

    monkeypatch.setattr(module.fcntl, "flock", late)
    locks = InstanceLocks("one", NETWORK)
    assert removed[0].exists(), "made again, and locked"
    assert refused("one") == "instance one"
    locks.release()
