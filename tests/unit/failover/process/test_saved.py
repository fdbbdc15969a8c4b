"""What the failover process keeps over a restart."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.failover.model import Mode
from agent.failover.process import saved
from agent.failover.process.saved import Saved, SavedFile

COUNTERS = {"web": {ip_address("10.0.0.2"): 2**60, ip_address("fe80::2"): 7}}
EVERYTHING = Saved({"web": Mode.PROMOTED}, False, "detached", frozenset({"eth0"}), COUNTERS)


def keep(folder: Path, what: Saved) -> None:
    asyncio.run(SavedFile(folder, "lb").save(what))


def test_modes_and_the_agents_word_outlive_the_process(tmp_path: Path) -> None:
    keep(tmp_path / "made", EVERYTHING)
    assert SavedFile(tmp_path / "made", "lb").load() == EVERYTHING


def test_nothing_is_known_at_the_first_start(tmp_path: Path) -> None:
    assert SavedFile(tmp_path, "lb").load() == Saved()


def test_the_word_of_another_boot_is_void_and_the_modes_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, EVERYTHING)
    monkeypatch.setattr(saved, "_boot_id", lambda: "another")
    assert SavedFile(tmp_path, "lb").load() == Saved({"web": Mode.PROMOTED}, counters=COUNTERS)


def test_a_file_of_before_counters_were_saved_is_good(tmp_path: Path) -> None:
    text = '{"modes": {"web": "promoted"}, "boot": "", "attached": null, "why": "", "programs": []}'
    (tmp_path / "lb.failover.json").write_text(text)
    assert SavedFile(tmp_path, "lb").load() == Saved({"web": Mode.PROMOTED})


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"modes": {"web": "king"}, "boot": ""}', "\xff"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "lb.failover.json").write_text(text, encoding="latin-1")
    assert SavedFile(tmp_path, "lb").load() == Saved()


def test_what_is_not_news_is_not_written(tmp_path: Path) -> None:
    async def twice() -> None:
        file = SavedFile(tmp_path, "lb")
        await file.save(EVERYTHING)
        (tmp_path / "lb.failover.json").unlink()
        await file.save(EVERYTHING)

    asyncio.run(twice())
    assert not (tmp_path / "lb.failover.json").exists()


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    keep(tmp_path / "file", EVERYTHING)
    assert SavedFile(tmp_path / "file", "lb").load() == Saved()
