"""The journal on disk: over restarts, with damage, a full disk, and too much to say."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from agent import journal as journal_module
from agent.journal import ENTRIES_AT_ONCE, Journal
from agent.logs import log_listener
from agent.state.journal import Entry, Query


def of(folder: Path) -> Journal:
    """The journal as the next agent finds it."""
    found = Journal(folder, "edge")
    found.load()
    return found


def words(journal: Journal, query: Query | None = None) -> list[str]:
    return [entry.event for entry in journal.find(query or Query())]


def test_what_was_said_outlives_a_restart_and_numbers_go_on(tmp_path: Path):
    first = of(tmp_path)
    first.take("info", "one", {"backend": "chat/a"})
    first.take("warning", "two", {})
    first.write()
    second = of(tmp_path)
    second.take("error", "three", {})
    entries = second.find(Query())
    assert [(e.number, e.level.value, e.event) for e in entries] == [
        (1, "info", "one"),
        (2, "warning", "two"),
        (3, "error", "three"),
    ]
    assert entries[0].fields == {"backend": "chat/a"}
    assert second.counts == {("three", "error"): 1}, "counters begin with the agent"
    last = second.last("one", "two")
    assert last is not None
    assert last.event == "two"
    assert second.last("never") is None


def test_the_file_is_for_its_owner_alone(tmp_path: Path):
    journal = of(tmp_path)
    journal.take("info", "one", {})
    journal.write()
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b'{"number": 2, "at": 1', b"\xff\xfe\n", b"[]\n", b"{}\n"])
def test_a_line_that_is_none_is_passed_over(tmp_path: Path, damage: bytes):
    first = of(tmp_path)
    first.take("info", "one", {})
    first.write()
    with (tmp_path / "edge.events").open("ab") as file:
        file.write(damage)
    second = of(tmp_path)
    second.take("info", "two", {})
    second.write()
    assert words(of(tmp_path)) == ["one", "two"]


def test_two_files_are_kept_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal_module, "FILE_BYTES", 500)
    journal = of(tmp_path)
    for number in range(40):
        journal.take("info", f"event {number}", {})
        journal.write()
    assert {path.name for path in tmp_path.iterdir()} <= {"edge.events", "edge.events.1"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1300
    kept = of(tmp_path).find(Query())
    assert [e.number for e in kept] == list(range(kept[0].number, 41))
    assert 5 <= len(kept) < 20


def test_a_full_disk_is_said_once_and_nothing_is_lost_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal, is_full = of(tmp_path), [True]
    real = os.open

    def open_(path: str, flags: int, mode: int = 0o777) -> int:
        if is_full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, mode)

    monkeypatch.setattr(journal_module.os, "open", open_)
    with capture_logs() as said:
        for event in ("one", "two"):
            journal.take("info", event, {})
            journal.write()
    assert [line["problem"] for line in said] == ["No space left on device"]
    is_full[0] = False
    journal.take("info", "three", {})
    journal.write()
    assert words(of(tmp_path)) == ["one", "two", "three"]


def test_entries_that_a_full_disk_took_twice_are_one(tmp_path: Path):
    journal = of(tmp_path)
    journal.take("info", "one", {})
    journal.write()
    path = tmp_path / "edge.events"
    path.write_bytes(path.read_bytes() * 2)
    assert words(of(tmp_path)) == ["one"]


def test_what_fails_all_the_time_does_not_take_all_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: 1000.0)
    journal = of(tmp_path)
    for _ in range(int(ENTRIES_AT_ONCE) + 1000):
        journal.take("warning", "noise", {})
    journal._budget.left = 5.0  # some time later
    journal.take("error", "service", {"service": "chat"})
    *_, left_out, last = journal.find(Query())
    assert left_out.event == "entries left out: too many a second"
    assert int(left_out.fields["count"]) >= 900
    assert last.event == "service"
    assert journal.counts["noise", "warning"] == ENTRIES_AT_ONCE + 1000


def test_it_is_written_beside_the_loop_and_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(journal_module, "KEEP_S", 0.001)
    journal = of(tmp_path)

    async def story() -> None:
        keeping = asyncio.create_task(journal.keep())
        journal.take("info", "one", {})
        async with asyncio.timeout(60):
            while not (tmp_path / "edge.events").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        journal.take("info", "two", {})
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping

    asyncio.run(story())
    assert words(of(tmp_path)) == ["one", "two"]


def test_what_is_logged_is_in_it(tmp_path: Path):
    journal = of(tmp_path)
    with log_listener(journal.take):
        structlog.get_logger().warning("backend", backend="chat/a", new="down")
    (entry,) = journal.find(Query(backend="chat/a"))
    assert (entry.level.value, entry.fields["new"]) == ("warning", "down")


def test_whatever_goes_wrong_with_it_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(journal_module, "KEEP_S", 0.001)
    journal, real = of(tmp_path), journal_module._line
    broken = [True]

    def line(entry: Entry) -> str:
        if broken.pop() if broken else False:
            raise ValueError("of ours")
        return real(entry)

    monkeypatch.setattr(journal_module, "_line", line)

    async def story() -> None:
        keeping = asyncio.create_task(journal.keep())
        journal.take("info", "one", {})
        async with asyncio.timeout(60):
            while broken:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        journal.take("info", "two", {})
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(story())
    assert "two" in words(of(tmp_path))
