"""The audit log on disk: what is written and when, over restarts, with damage, and a full disk."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import auditlog as module
from agent.auditlog import AuditLog, paths_of
from agent.errors import AuditError, ConfigError, ConflictError, DataplaneError
from agent.state.auditlog import HEAD_EVENT, MOST_FILES, PEER_EVENT, Verdict, verify


def of(folder: Path, *, required: bool = False) -> AuditLog:
    """The log as the next agent finds it."""
    return AuditLog(folder, "edge", lambda: required)


def records(log: AuditLog) -> list[Any]:
    return list(log.read(0.0, 10_000))


def kinds(log: AuditLog) -> list[str]:
    return [record["kind"] for record in records(log)]


def checked(log: AuditLog) -> Verdict:
    paths = [path for path in reversed(log.paths()) if path.exists()]
    return verify([(path.name, path.read_bytes()) for path in paths])


async def ordered(log: AuditLog, what: str = "POST /v1/edit") -> str:
    change = await log.order(by="alice", uid=1001, role="operator", what=what, request={})
    await log.outcome(change, "ok", "done")
    return change


def test_an_order_is_on_disk_before_it_is_carried_out(tmp_path: Path) -> None:
    async def story() -> None:
        log = of(tmp_path)
        change = await log.order(by="alice", uid=1001, role="operator", what="POST /v1/edit")
        assert kinds(of(tmp_path)) == ["begin", "order"]
        await log.outcome(change, "ok", "change backend chat/gpu-1: state active → drain")
        order, outcome = records(log)[1:]
        assert (order["by"], order["uid"], order["change"]) == ("alice", 1001, change)
        assert (outcome["change"], outcome["outcome"]) == (change, "ok")
        assert checked(log).head == log.head
        assert (checked(log).records, checked(log).flaws) == (3, ())

    asyncio.run(story())


def test_each_record_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(file: int) -> None:
        if stat.S_ISREG(os.fstat(file).st_mode):
            synced.append(os.fstat(file).st_size)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    log = of(tmp_path)
    asyncio.run(ordered(log))
    assert len(synced) == 3
    assert synced[-1] == log.path.stat().st_size


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    log = of(tmp_path / "made")
    asyncio.run(ordered(log))
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_it_follows_no_link(tmp_path: Path) -> None:
    log = of(tmp_path)
    log.path.symlink_to(tmp_path / "elsewhere")
    asyncio.run(ordered(log))
    assert log.problem
    assert not (tmp_path / "elsewhere").exists()


def test_the_next_agent_continues_the_chain(tmp_path: Path) -> None:
    asyncio.run(ordered(of(tmp_path)))
    second = of(tmp_path)
    asyncio.run(second.started(version="1", configuration="abc"))
    assert [record["number"] for record in records(second)] == [1, 2, 3, 4]
    assert records(second)[-1]["configuration"] == "abc"
    assert checked(second).flaws == ()


@pytest.mark.parametrize("left", [b'{"number":4,"at":"20', b"x", b'{"a":1}'])
def test_half_of_a_record_at_the_end_is_removed(tmp_path: Path, left: bytes) -> None:
    """A crash has left it: its change was not made."""
    asyncio.run(ordered(of(tmp_path)))
    with of(tmp_path).path.open("ab") as file:
        file.write(left)
    log = of(tmp_path)
    with capture_logs() as logged:
        asyncio.run(ordered(log))
    assert [line["event"] for line in logged] == ["the audit log ended with half of a record"]
    assert checked(log).flaws == ()


def test_a_record_that_lacks_only_the_end_of_its_line_is_removed_too(tmp_path: Path) -> None:
    log = of(tmp_path)
    asyncio.run(ordered(log))
    log.path.write_bytes(log.path.read_bytes()[:-1])
    log = of(tmp_path)
    asyncio.run(ordered(log))
    assert [record["number"] for record in records(log)] == [1, 2, 3, 4]
    assert checked(log).flaws == ()


def test_no_record_is_long(tmp_path: Path) -> None:
    """Some text quotes what a client has sent, which may be megabytes."""
    log = of(tmp_path)

    async def story() -> None:
        change = await log.order(by="alice", what="POST /" + "x" * 100_000)
        await log.outcome(change, "refused", "there is no backend " + "x" * 1_000_000)

    asyncio.run(story())
    assert log.path.stat().st_size < 3000
    assert records(log)[2]["effect"].endswith("x…")


def test_lines_that_are_no_records_are_kept_for_verify(tmp_path: Path) -> None:
    asyncio.run(ordered(of(tmp_path)))
    with of(tmp_path).path.open("ab") as file:
        file.write(b"not a record\n[]\n")
    log = of(tmp_path)
    asyncio.run(ordered(log))
    assert [str(flaw).partition(":")[0] for flaw in checked(log).flaws] == [
        "edge.audit, line 4",
        "edge.audit, line 5",
    ]


def test_a_file_that_somebody_else_changes_is_told_of(tmp_path: Path) -> None:
    log = of(tmp_path)
    asyncio.run(ordered(log))
    log.path.write_bytes(log.path.read_bytes().splitlines(keepends=True)[0])
    with capture_logs() as logged:
        asyncio.run(ordered(log))
    told = [line for line in logged if line["log_level"] == "error"]
    assert [line["event"] for line in told] == ["the audit log was changed by something else"]
    assert str(checked(log).flaws[0]).endswith("records 2 to 3 are missing before this line")


def test_a_file_that_is_removed_begins_anew_and_shows_that(tmp_path: Path) -> None:
    log = of(tmp_path)
    asyncio.run(ordered(log))
    log.path.unlink()
    asyncio.run(ordered(log))
    assert [record["number"] for record in records(log)] == [4, 5, 6]
    (flaw,) = checked(log).flaws
    assert flaw.text == "the records before number 4 are missing"


def test_full_files_are_set_aside_and_the_oldest_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 600)
    log = of(tmp_path)

    async def story() -> None:
        for _ in range(30):
            await ordered(log)

    asyncio.run(story())
    there = [path for path in paths_of(log.path) if path.exists()]
    assert len(there) == MOST_FILES == len(list(tmp_path.iterdir()))
    found = checked(log)
    assert found.flaws == ()
    assert found.first > 1
    assert found.head == log.head == of(tmp_path).head
    there[-1].unlink()
    assert len(checked(log).flaws) == 1, "one more was removed"


def test_the_newest_records_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 600)
    times = itertools.count(1_700_000_000)
    monkeypatch.setattr(module.time, "time", lambda: float(next(times)))
    log = of(tmp_path)

    async def story() -> None:
        for _ in range(4):
            await ordered(log)

    asyncio.run(story())
    numbers = [record["number"] for record in records(log)]
    assert numbers == sorted(numbers)
    assert [record["number"] for record in log.read(0.0, 3)] == numbers[-3:]
    newest = records(log)[-2:]
    assert newest[0]["at"] < newest[1]["at"]
    since = float(next(times)) - 2
    assert [record["number"] for record in log.read(since, 100)] == numbers[-1:]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Makes the disk full, after half of a line, or gives it room again."""
    real, is_full = os.write, False

    def write(file: int, content: bytes) -> int:
        if is_full and stat.S_ISREG(os.fstat(file).st_mode):
            if len(content) > 20:
                return real(file, content[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, content)

    def set_full(value: bool) -> None:
        nonlocal is_full
        is_full = value

    monkeypatch.setattr(os, "write", write)
    yield set_full
    set_full(False)


def test_on_a_full_disk_changes_are_made_and_recorded_later(
    tmp_path: Path, full: Callable[[bool], None]
) -> None:
    async def story() -> None:
        log = of(tmp_path)
        await ordered(log)
        full(True)
        with capture_logs() as logged:
            await ordered(log)
            await ordered(log)
        assert [line["event"] for line in logged] == [
            "changes are not recorded in the audit log"
        ], "once"
        assert log.problem == f"{log.path}: No space left on device"
        assert kinds(log) == ["begin", "order", "outcome"]
        assert checked(log).flaws == (), "no half of a line is left"
        full(False)
        await asyncio.to_thread(log._retry)
        assert log.problem == ""
        assert kinds(log) == ["begin", *["order", "outcome"] * 3]
        assert checked(log).flaws == ()

    asyncio.run(story())


def test_where_it_is_required_a_change_that_cannot_be_recorded_is_refused(
    tmp_path: Path, full: Callable[[bool], None]
) -> None:
    async def story() -> None:
        log = of(tmp_path, required=True)
        await ordered(log)
        full(True)
        with pytest.raises(AuditError, match="No space left on device") as caught:
            await ordered(log)
        assert "audit_log" in caught.value.remedy
        async with log.inside("lb-agent", "discovery"):
            pass  # what comes from the agent itself is made in any case
        full(False)
        await ordered(log, "POST /v1/reload")
        assert log.problem == ""
        what = [record["what"] for record in records(log) if record["kind"] == "order"]
        assert what == ["POST /v1/edit", "discovery", "POST /v1/reload"], "no change, no record"

    asyncio.run(story())


def test_records_that_memory_has_no_room_for_are_counted(
    tmp_path: Path, full: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)

    async def story() -> None:
        log = of(tmp_path)
        full(True)
        for _ in range(4):
            await ordered(log)
        full(False)
        await log.started(version="1")
        assert kinds(log) == ["begin", "lost", "order", "outcome", "start"]
        assert records(log)[1]["count"] == 6
        assert checked(log).flaws == ()

    asyncio.run(story())


def test_a_folder_that_cannot_be_read_is_a_problem_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = of(tmp_path / "file")
    asyncio.run(ordered(log))
    assert "file/edge.audit" in log.problem


def test_a_change_from_the_inside_says_what_became_of_it(tmp_path: Path) -> None:
    log = of(tmp_path)

    async def one(error: BaseException | None, effect: str = "") -> None:
        async with log.inside("lb-agent", "discovery", effect):
            if error is not None:
                raise error

    async def story() -> None:
        await one(None, "add backend chat/a")
        await one(None)
        for error in (
            ConflictError("it is taken", where="chat"),
            ConfigError("'hunter2' is no rate", where="agent.yaml:3"),
            DataplaneError("no memory"),
            OSError("a disk"),
            asyncio.CancelledError(),
        ):
            with pytest.raises(type(error)):
                await one(error)

    asyncio.run(story())
    found = [(r["outcome"], r["effect"]) for r in records(log) if r["kind"] == "outcome"]
    assert found == [
        ("ok", "add backend chat/a"),
        ("ok", "done"),
        ("refused", "chat: it is taken"),
        ("refused", "agent.yaml:3: it is invalid"),
        ("refused", "no memory"),
        ("failed", "it was broken off"),
        ("failed", "it was broken off"),
    ]


def test_denied_requests_cannot_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = of(tmp_path)

    async def story() -> None:
        for _ in range(500):
            await log.denied(by="eve", uid=1, role="viewer", what="POST /v1/reload")
        assert len(records(log)) == 21
        now = module.time.monotonic()
        monkeypatch.setattr(module.time, "monotonic", lambda: now + 61)
        await log.denied(by="eve", uid=1, role="viewer", what="POST /v1/reload")

    with capture_logs() as logged:
        asyncio.run(story())
    assert records(log)[-1]["left_out"] == 480
    assert "left_out" not in records(log)[1]
    assert len([line for line in logged if line["event"] == "denied"]) == 21


def test_the_head_is_noted_in_the_systems_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many records, after a while, and at the end; not if nothing has changed."""
    monkeypatch.setattr(module, "ANCHOR_RECORDS", 10)
    monkeypatch.setattr(module, "TICK_S", 0.001)

    async def story() -> None:
        log = of(tmp_path)
        for _ in range(5):
            await ordered(log)
        monkeypatch.setattr(module, "ANCHOR_S", 0.01)
        keeping = asyncio.create_task(log.keep())
        async with asyncio.timeout(30):
            while len(noted(logged)) < 2:  # noqa: ASYNC110 (it has no event)
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert len(noted(logged)) == 2
        monkeypatch.setattr(module, "ANCHOR_S", 1000.0)
        await ordered(log)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    with capture_logs() as logged:
        asyncio.run(story())
    found = {record["number"]: record["hash"] for record in records(of(tmp_path))}
    assert [line["number"] for line in noted(logged)] == [10, 11, 13]
    assert all(found[line["number"]] == line["hash"] for line in noted(logged))
    assert {line["path"] for line in noted(logged)} == {str(tmp_path / "edge.audit")}


def test_heads_of_other_balancers_are_noted_when_they_change(tmp_path: Path) -> None:
    log = of(tmp_path)
    asyncio.run(ordered(log))
    heads: dict[str, str] = {}
    log.peers = lambda: heads
    found: list[tuple[str, int, str]] = []
    for now in ({}, {"10.0.0.2": "7:aa"}, {"10.0.0.2": "7:aa"}, {}, {"10.0.0.2": "7:aa"},
                {"10.0.0.2": "8:bb", "10.0.0.3": "1:cc"}):  # fmt: skip
        heads.clear()
        heads.update(now)
        with capture_logs() as logged:
            log._note()
        found += [
            (line["peer"], line["number"], line["hash"])
            for line in logged
            if line["event"] == PEER_EVENT
        ]
    assert found == [("10.0.0.2", 7, "aa"), ("10.0.0.2", 8, "bb"), ("10.0.0.3", 1, "cc")]


def noted(logged: list[Any]) -> list[Any]:
    return [line for line in logged if line["event"] == HEAD_EVENT]


def test_what_could_not_be_written_is_written_by_itself(
    tmp_path: Path, full: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.001)

    async def story() -> None:
        log = of(tmp_path)
        full(True)
        await ordered(log)
        keeping = asyncio.create_task(log.keep())
        full(False)
        async with asyncio.timeout(30):
            while log.problem:  # noqa: ASYNC110 (it has no event)
                await asyncio.sleep(0.001)
        assert kinds(log) == ["begin", "order", "outcome"]
        monkeypatch.setattr(module, "TICK_S", 1000.0)
        await asyncio.sleep(0.05)
        full(True)
        await ordered(log)
        full(False)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert kinds(log) == ["begin", *["order", "outcome"] * 2], "at the end, too"

    asyncio.run(story())


def test_many_at_once_are_one_chain(tmp_path: Path) -> None:
    log = of(tmp_path)

    async def story() -> None:
        await asyncio.gather(*(ordered(log) for _ in range(50)))

    asyncio.run(story())
    assert checked(log).flaws == ()
    assert len(records(log)) == 101
