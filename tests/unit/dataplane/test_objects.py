"""What is kept of a compiled program, and who may write it."""

from __future__ import annotations

import os
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane import objects
from agent.dataplane.libbpf import MapInfo, ProgramType
from agent.dataplane.objects import Kept, Object, Table, packed, take_apart, unpacked
from agent.errors import DataplaneError

KEYS = {"LB_FLOW_KEY": 0x1234_5678_9ABC_DEF0, "LB_FLOW_MUL0": 2**63 + 1}
OTHER = {"LB_FLOW_KEY": 0xFEDC_BA98_7654_3210, "LB_FLOW_MUL0": 2**40 + 1}


def table(name: str, *, pinned: bool = True) -> Table:
    return Table(MapInfo(2, 0, 4, 64, 16, 0x400, name), pinned)


TABLES = {11: table("flows"), 12: table("scratch", pinned=False)}


def load_64(source: int, value: int) -> bytes:
    """BPF_LD_IMM64 into r1."""
    low, high = value & 0xFFFFFFFF, value >> 32
    return struct.pack("=BBhIBBhI", 0x18, source << 4 | 1, 0, low, 0, 0, 0, high)


def code_of(parts: list[str | int], keys: dict[str, int], fds: list[int]) -> bytes:
    """Machine code: a name loads that key, a small number the descriptor of that table, another
    one itself.
    """
    out = b""
    for part in parts:
        if isinstance(part, str):
            out += load_64(0, keys[part])
        elif part < len(fds):
            out += load_64(1, fds[part])
        else:
            out += load_64(0, part) + struct.pack("=BBhi", 0xB7, 0, 0, part % 2**31)
    return out


parts = st.lists(st.sampled_from(list(KEYS)) | st.integers(0, 1) | st.integers(2, 2**64 - 1))


@given(parts)
def test_an_object_is_the_code_of_every_instance(drawn: list[str | int]):
    used = [*drawn, *KEYS]
    one = take_apart("balancer", code_of(used, KEYS, [11, 12]), TABLES, KEYS, b"btf")
    assert one is not None
    assert one.with_own([11, 12], KEYS) == code_of(used, KEYS, [11, 12])
    assert one.with_own([7, 40], OTHER) == code_of(used, OTHER, [7, 40])
    assert unpacked(packed(one)) == one


def test_no_secret_is_kept():
    one = take_apart("balancer", code_of([*KEYS, 0, 1], KEYS, [11, 12]), TABLES, KEYS, b"")
    assert one is not None
    for value in KEYS.values():
        assert struct.pack("=I", value >> 32) not in one.instructions


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        (code_of(["LB_FLOW_KEY"], KEYS, []), KEYS),  # the other one was not found
        (code_of([*KEYS], KEYS | {"LB_FLOW_KEY": 3}, []), KEYS | {"LB_FLOW_KEY": 3}),
    ],
    ids=["missing", "small"],
)
def test_a_program_whose_secrets_cannot_be_found_is_not_kept(code: bytes, keys: dict[str, int]):
    assert take_apart("balancer", code, TABLES, keys, b"") is None


def test_a_key_tells_all_that_the_code_depends_on_and_nothing_of_an_instance():
    def key(text: str = "int x;", kind: ProgramType = ProgramType.XDP, **definitions: str) -> str:
        return objects.key_of(text, "balancer", definitions, kind)

    assert key() == key()
    assert key(LB_PIN='"/a"', LB_FLOW_KEY="1ULL") == key(LB_PIN='"/b"', LB_FLOW_KEY="2ULL") == key()
    others = {key("int y;"), key(kind=ProgramType.SCHED_CLS), key(LB_IPV6="1"), key(LB_IPV6="0")}
    assert len(others | {key()}) == 5


def test_a_key_does_not_tell_where_the_sources_are():
    texts = [f'#line 1 "{folder}/balancer.c"\nint x;\n' for folder in ("/a", "/b")]
    assert len({objects.key_of(text, "f", {}, ProgramType.XDP) for text in texts}) == 1


ONE = Object("balancer", tuple(TABLES.values()), bytes(16), ((0, 1),), (), b"btf")


def test_what_is_put_is_found_by_who_put_it_alone(tmp_path: Path):
    kept = Kept(tmp_path / "cache" / "programs")
    assert kept.get("a") is None
    kept.put("a", ONE)
    assert kept.get("a") == ONE
    (file,) = (tmp_path / "cache" / "programs").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_who_compiles_the_same_is_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = Kept(tmp_path / "programs")
    with ThreadPoolExecutor(1) as pool:

        def compiled() -> bool:
            with kept.compiling("a") as was_waiting:
                return was_waiting

        with kept.compiling("b"), kept.compiling("a") as was_waiting:
            assert not was_waiting
            monkeypatch.setattr(objects, "PATIENCE_S", 0.1)
            assert pool.submit(compiled).result(), "it may be stopped"
            monkeypatch.setattr(objects, "PATIENCE_S", 60.0)
            waits = pool.submit(compiled)
            with pytest.raises(TimeoutError):
                waits.result(0.3)
        assert waits.result(60)
        assert not pool.submit(compiled).result()
    assert list((tmp_path / "programs").iterdir()) == []


def test_an_error_of_the_compiler_lets_the_next_one_try(tmp_path: Path):
    kept = Kept(tmp_path / "programs")
    with pytest.raises(DataplaneError), kept.compiling("a"):
        raise DataplaneError("it does not compile")
    with kept.compiling("a") as was_waiting:
        assert not was_waiting


@pytest.mark.parametrize("spoilt", [b"", b"junk", packed(ONE)[:-3], packed(ONE)[:9]])
def test_a_spoilt_file_is_as_none_and_is_replaced(tmp_path: Path, spoilt: bytes):
    kept = Kept(tmp_path / "programs")
    kept.put("a", ONE)
    (tmp_path / "programs" / "a").write_bytes(spoilt)
    assert kept.get("a") is None
    kept.put("a", ONE)
    assert kept.get("a") == ONE


def test_links_are_not_followed(tmp_path: Path):
    kept = Kept(tmp_path / "programs")
    kept.put("a", ONE)
    (tmp_path / "programs" / "b").symlink_to(tmp_path / "programs" / "a")
    assert kept.get("b") is None
    (tmp_path / "link").symlink_to(tmp_path / "programs")
    other = Kept(tmp_path / "link")
    assert other.get("a") is None
    other.put("c", ONE)
    assert not (tmp_path / "programs" / "c").exists()


def test_a_folder_in_which_others_write_or_that_is_theirs_is_not_used(tmp_path: Path):
    folder = tmp_path / "programs"
    kept = Kept(folder)
    kept.put("a", ONE)
    for mode in (0o777, 0o770):
        folder.chmod(mode)
        assert kept.get("a") is None
    folder.chmod(0o700)
    assert kept.get("a") == ONE
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        assert kept.get("a") is None
        kept.put("b", ONE)
        assert not (folder / "b").exists()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "programs")
    kept.put("a", ONE)
    assert kept.get("a") is None


def test_the_least_recently_used_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(objects, "MOST", 3)
    folder = tmp_path / "programs"
    kept = Kept(folder)
    for number, name in enumerate("abc"):
        kept.put(name, ONE)
        os.utime(folder / name, (number, number))
    assert kept.get("a") == ONE  # used now
    kept.put("d", ONE)
    assert sorted(file.name for file in folder.iterdir()) == ["a", "c", "d"]
