"""``lbctl audit log`` and ``lbctl audit verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.state.auditlog import Head, sealed
from tests.cli.conftest import FakeAgent, Run

AT = "2026-01-02T03:04:05.000Z"


def record(number: int, kind: str, **about: Any) -> dict[str, Any]:
    place = {"number": number, "previous": "0" * 64, "hash": "1" * 64}
    return {"kind": kind, "at": AT, **place, **about}


def order(number: int, change: str, **about: Any) -> dict[str, Any]:
    who = {"by": "alice", "uid": 1001, "role": "operator", "what": "POST /v1/edit"}
    return record(number, "order", change=change, **who, **about)


def outcome(number: int, change: str, what: str, effect: str) -> dict[str, Any]:
    return record(number, "outcome", change=change, outcome=what, effect=effect)


RECORDS = [
    outcome(1, "z", "failed", "it was broken off"),
    record(2, "begin"),
    record(3, "start", version="0.1.0", configuration="2" * 64),
    order(4, "a", request={"message": "new driver"}),
    order(5, "b", request={}),
    outcome(6, "b", "refused", "chat: it has open flows"),
    outcome(7, "a", "ok", "change backend chat/gpu-1: state active → drain"),
    order(8, "c", request={}),
    record(9, "denied", by="eve\x1b[31m", role="viewer", what="POST /v1/reload", left_out=7),
    record(10, "lost", count=3),
    record(11, "order", change="d", by="SIGHUP", what="reload"),
    outcome(12, "d", "ok", "nothing changed"),
]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


@pytest.fixture
def log(agent: FakeAgent) -> FakeAgent:
    agent.audit = {
        "file": "/x", "problem": "", "head": {"number": 12, "hash": "1" * 64}, "records": RECORDS,
    }  # fmt: skip
    return agent


def test_each_change_is_a_line_with_its_outcome(log: FakeAgent, run: Run) -> None:
    header, *lines = run("audit", "log").out.splitlines()
    assert header.split() == ["RECORD", "TIME", "BY", "ROLE", "WHAT", "OUTCOME", "EFFECT"]
    found = {line.split()[0]: line for line in lines}
    assert list(found) == ["1", "3", "4", "5", "8", "9", "10", "11"]
    drained = "“new driver” change backend chat/gpu-1: state active → drain"
    assert found["4"].endswith(drained)
    assert [word in found["4"] for word in ("alice", "operator", "POST /v1/edit", "ok")] == [
        True
    ] * 4
    assert "refused" in found["5"]
    assert found["5"].endswith("chat: it has open flows")
    assert "no outcome is recorded" in found["8"]
    assert found["9"].endswith("denied   7 more before are not recorded")
    assert "\x1b" not in found["9"]
    assert "3 records could not be written" in found["10"]
    assert "SIGHUP" in found["11"]
    assert "it was broken off" in found["1"], "its order was before the first record"
    assert log.queries[-1] == ("/v1/audit", {"limit": "50"})


def test_the_records_are_asked_for_as_the_options_say(log: FakeAgent, run: Run) -> None:
    run("audit", "log", "--since", "1h")
    assert log.queries[-1][1] == {"since_s": "3600", "limit": "10000"}
    run("audit", "log", "-n", "5")
    assert log.queries[-1][1] == {"limit": "5"}
    assert run("audit", "log", "-o", "json").json["records"] == RECORDS


def test_a_log_that_is_not_written_is_told_of(log: FakeAgent, run: Run) -> None:
    log.audit |= {"problem": "/x: No space left on device", "records": []}
    done = run("audit", "log")
    assert done.out == "no changes\n"
    assert "not recorded now: /x: No space left" in done.err


def test_the_options_of_the_audit_of_practices_still_work(
    log: FakeAgent, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a subcommand does not compare anything."""
    monkeypatch.setattr("lbctl.commands.audit._compare", lambda *given: told.append(given[1:]))
    told: list[Any] = []
    run("audit", "log")
    assert told == []
    assert run("audit", "--broken", "--practice", "ai", "--strict").code == 0
    assert told == [(True, ("ai",), True)]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"op": "backend.set", "service": "chat", "backend": "a"}, "backend.set chat/a"),
        ({"op": "service.remove", "service": "chat"}, "service.remove chat"),
        ({"edits": [{"op": "backend.set", "service": "chat"}, {}]}, "backend.set chat, and 1 more"),
        ({"edits": []}, ""),
        ({"prefixes": ["192.0.2.7", "192.0.2.8"]}, "192.0.2.7, 192.0.2.8"),
        ({"prefixes": 7, "edits": [7], "service": ["x"]}, ""),
        ({"bytes": 9999, "sha256": "0"}, ""),
    ],
)
def test_what_was_denied_is_said(
    log: FakeAgent, run: Run, request_: dict[str, Any], text: str
) -> None:
    log.audit["records"] = [
        record(1, "denied", by="eve", role="viewer", what="POST /v1/edit", request=request_)
    ]
    line = run("audit", "log").out.splitlines()[-1]
    assert line.partition("denied")[2].strip() == text


@pytest.fixture
def written(log: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A log on disk, and no system's log."""
    head, lines = Head(), []
    for kind in ("begin", "order", "outcome", "order", "outcome"):
        line, head = sealed({"kind": kind, "at": AT}, head)
        lines.append(line)
    path = tmp_path / "edge.audit"
    path.write_bytes(b"".join(lines))
    log.audit |= {"file": str(path), "head": {"number": 5, "hash": head.hash}}
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return lines


def test_verify_finds_a_whole_log_whole(written: list[bytes], tmp_path: Path, run: Run) -> None:
    done = run("audit", "verify")
    assert done.code == 0
    assert "5, from number 1" in done.out
    assert "with 1 head noted elsewhere" in done.out
    assert done.out.endswith("the log is as it was written\n")
    assert "the system's log cannot be read" in done.err


def test_verify_names_what_is_wrong_and_exits_with_1(
    written: list[bytes], tmp_path: Path, run: Run
) -> None:
    path = tmp_path / "edge.audit"
    path.write_bytes(b"".join(written[:2] + written[3:]))
    done = run("audit", "verify", "-o", "json")
    assert done.code == 1
    assert done.json["flaws"] == [
        {"file": str(path), "line": 3, "text": "record 3 is missing before this line"}
    ]
    path.write_bytes(b"".join(written[:3]))
    done = run("audit", "verify")
    assert done.code == 1
    assert f"{path}, line 3: records 4 to 5 are missing after this line: the running" in done.out


def test_verify_needs_no_agent_if_a_file_is_named(
    written: list[bytes], tmp_path: Path, run: Run
) -> None:
    path = tmp_path / "edge.audit"
    older = tmp_path / "edge.audit.1"
    older.write_bytes(path.read_bytes())
    line, head = sealed({"kind": "begin", "at": AT}, Head(5, json.loads(written[-1])["hash"]))
    path.write_bytes(line)
    nowhere = {"socket": tmp_path / "none.sock"}
    done = run("audit", "verify", "--file", str(path), **nowhere)
    assert (done.code, "6, from number 1" in done.out) == (0, True)
    assert "with nothing noted elsewhere" in done.out
    assert run("audit", "verify", "--file", str(path), "--head", head.hash, **nowhere).code == 0
    done = run("audit", "verify", "--file", str(older), "--head", head.hash.upper(), **nowhere)
    assert (done.code, "no record has the hash" in done.out) == (1, True)
    done = run("audit", "verify", "--file", str(path), "--head", f"5:{head.hash}", **nowhere)
    assert (done.code, "64 hexadecimal digits" in done.err) == (2, True)
    done = run("audit", "verify", "--file", str(tmp_path / "nothing"), **nowhere)
    assert (done.code, "cannot be read" in done.err, "sudo" in done.err) == (1, True, True)


def test_verify_waits_for_a_line_that_is_being_written(
    written: list[bytes], tmp_path: Path, run: Run
) -> None:
    path = tmp_path / "edge.audit"
    path.write_bytes(b"".join(written)[:-5])
    done = run("audit", "verify", sleep=lambda _: path.write_bytes(b"".join(written)))
    assert done.code == 0


def test_verify_compares_with_the_systems_log(
    written: list[bytes], tmp_path: Path, run: Run
) -> None:
    """Heads of other instances, and other lines of the log, say nothing about this one."""
    path = tmp_path / "edge.audit"
    records = [json.loads(line) for line in written]
    noted = [
        {"event": "ready", "hash": "x", "number": 9, "path": str(path)},
        {"event": "audit log head", "hash": records[2]["hash"], "number": 3, "path": str(path)},
        {"event": "audit log head", "hash": "5" * 64, "number": 77, "path": "/other.audit"},
        {"event": "audit log head", "number": 77},
    ]
    lines = [*map(json.dumps, noted), "audit log head {", "7"]
    (tmp_path / "bin").mkdir()
    journal = tmp_path / "bin" / "journalctl"
    text = "\n".join(lines)
    journal.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{text}\nEND\n")
    journal.chmod(0o755)
    done = run("audit", "verify")
    assert done.code == 0, done.out
    assert "with 2 heads noted elsewhere" in done.out
    journal.write_text(journal.read_text().replace(records[2]["hash"], "4" * 64))
    done = run("audit", "verify")
    assert done.code == 1
    text = "record 3 is not the one that the system's log has noted: it was made anew"
    assert f"{path}, line 3: {text}" in done.out
