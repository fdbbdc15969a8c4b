"""Names below /sys/fs/bpf."""

from pathlib import Path

from agent.dataplane import pins
from agent.dataplane.abi import ABI_VERSION


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
