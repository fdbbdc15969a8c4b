"""Names below /sys/fs/bpf."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.dataplane import pins
from agent.dataplane.abi import ABI_VERSION
from agent.errors import DataplaneError


def test_an_instance_has_a_folder_of_its_own_by_abi(tmp_path: Path):
    found = pins.pins_of("edge-1", tmp_path)
    assert found.folder == tmp_path / "steelyard" / "edge-1" / f"abi{ABI_VERSION}"
    assert {found.program, found.next_program, found.table("flows")} == {
        found.folder / "program",
        found.folder / "program_next",
        found.folder / "flows",
    }


def test_removing_takes_the_empty_folders_above_too(tmp_path: Path):
    one = pins.pins_of("one", tmp_path)
    one.folder.mkdir(parents=True)
    one.program.touch()
    pins.remove(one)
    assert list(tmp_path.iterdir()) == []
    pins.remove(one)


def test_removing_leaves_other_instances_and_other_abis(tmp_path: Path):
    one, two = pins.pins_of("one", tmp_path), pins.pins_of("two", tmp_path)
    for each in (one, two):
        each.folder.mkdir(parents=True)
        each.program.touch()
    older = one.folder.parent / "abi0"
    older.mkdir()
    pins.remove(one)
    assert not one.folder.exists()
    assert older.exists()
    assert two.program.exists()


def test_folders_are_made_for_root_alone(tmp_path: Path):
    one = pins.pins_of("one", tmp_path)
    before = os.umask(0)
    try:
        pins.make(one)
        pins.make(one)
    finally:
        os.umask(before)
    for folder in (one.folder, one.folder.parent, one.folder.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def let_all_write(folder: Path) -> None:
    folder.chmod(0o777)


def let_a_group_write(folder: Path) -> None:
    os.chown(folder, -1, 65534)
    folder.chmod(0o770)


def give_away(folder: Path) -> None:
    os.chown(folder, 65534, -1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize("befalls", [link, let_all_write, let_a_group_write, give_away])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_folders_of_others_and_links_are_refused(
    tmp_path: Path, befalls: Callable[[Path], None], level: int
):
    """A link that came while the agent started had it delete what was in the folder behind."""
    one = pins.pins_of("one", tmp_path)
    pins.make(one)
    befalls([one.folder, *one.folder.parents][level])
    for act in (pins.make, pins.check_owner):
        with pytest.raises(DataplaneError, match="not root's alone") as caught:
            act(one)
        assert "ls -ld" in caught.value.remedy


def test_what_is_not_there_yet_is_nobodys(tmp_path: Path):
    pins.check_owner(pins.pins_of("one", tmp_path))
