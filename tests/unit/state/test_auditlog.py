"""The chain of the audit log: whatever is done to a line is found, and the line is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.state import auditlog
from agent.state.auditlog import FIRST, Anchor, Head, Verdict, canonical, sealed, verify


def made(count: int, start: Head | None = None) -> tuple[list[bytes], list[Head]]:
    """The lines of a file with so many records, the first one included, and their heads."""
    head, lines, heads = start or Head(), [], []
    for number in range(count):
        kind = "order" if number else "begin"
        content = {"kind": kind, "at": f"2026-01-01T00:00:{number:02}.000Z", "by": "alice"}
        line, head = sealed(content, head)
        lines.append(line)
        heads.append(head)
    return lines, heads


LINES, HEADS = made(9)


def check(lines: list[bytes], *anchors: Anchor) -> Verdict:
    return verify([("f", b"".join(lines))], anchors)


def flaws(lines: list[bytes], *anchors: Anchor) -> list[str]:
    return [str(flaw) for flaw in check(lines, *anchors).flaws]


def test_a_log_that_nobody_touched_is_whole() -> None:
    found = check(LINES)
    assert (found.first, found.records, found.head, found.flaws) == (1, 9, HEADS[-1], ())
    assert check([]).head == Head(0, FIRST)
    assert json.loads(LINES[0])["previous"] == FIRST


def test_the_hash_can_be_computed_elsewhere() -> None:
    """With sha256sum, say: it is that of the line without its hash."""
    import hashlib
    import re

    line = LINES[3].decode().strip()
    bare, count = re.subn(r'"hash":"([0-9a-f]{64})",', "", line)
    assert count == 1
    assert hashlib.sha256(bare.encode()).hexdigest() == HEADS[3].hash


def test_an_edited_line_is_found() -> None:
    lines = [*LINES]
    lines[4] = lines[4].replace(b"alice", b"bobby")
    assert flaws(lines) == ["f, line 5: record 5 was edited: it does not have its hash"]
    lines[4] = LINES[4].replace(b",", b", ")
    assert "line 5: record 5 was edited" in flaws(lines)[0], "other bytes, the same JSON"
    lines[4] = b"what\n"
    assert flaws(lines) == [
        "f, line 5: this is no record: the line was edited or is damaged",
        "f, line 6: record 5 is missing before this line",
    ]


def test_an_edited_line_with_a_hash_of_its_own_is_found() -> None:
    record = json.loads(LINES[4]) | {"by": "bob"}
    del record["hash"], record["previous"], record["number"]
    lines = [*LINES]
    lines[4], _ = sealed(record, HEADS[3])
    assert flaws(lines) == [
        "f, line 6: record 6 does not follow the line before it: one of the two was replaced"
    ]


def test_removed_lines_are_found() -> None:
    assert flaws(LINES[:4] + LINES[5:]) == ["f, line 5: record 5 is missing before this line"]
    assert flaws(LINES[:4] + LINES[7:]) == [
        "f, line 5: records 5 to 7 are missing before this line"
    ]
    assert flaws(LINES[1:])[0] == "f, line 1: the records before number 2 are missing"


def test_reordered_and_repeated_lines_are_found() -> None:
    lines = [*LINES]
    lines[4], lines[5] = lines[5], lines[4]
    found = flaws(lines)
    assert (
        found[0] == "f, line 5: record 5 should be here, and is elsewhere: the lines were reordered"
    )
    assert found[1] == "f, line 6: record 5 is out of its place, or is here twice"
    assert flaws([*LINES[:5], LINES[4], *LINES[5:]])[0].startswith("f, line 6: record 5 is out of")


def test_a_cut_tail_is_found_beside_an_anchor_only() -> None:
    cut = LINES[:6]
    assert flaws(cut) == []
    assert flaws(cut, Anchor(HEADS[2].hash, "the system's log", 3)) == []
    assert flaws(cut, Anchor(HEADS[6].hash, "x", 7), Anchor(HEADS[8].hash, "y", 9)) == [
        "f, line 6: records 7 to 9 are missing after this line: y has noted record 9"
    ]
    assert "f, line 6: no record has the hash" in flaws(cut, Anchor(HEADS[8].hash, "--head"))[0]
    assert flaws([], Anchor(HEADS[8].hash, "y", 9))[0].endswith("y has noted record 9")


def test_a_line_that_breaks_off_is_named() -> None:
    assert "line 9: the line breaks off" in flaws([*LINES[:8], LINES[8][:20]])[0]
    assert "line 9: the line breaks off" in flaws([*LINES[:8], LINES[8][:-1]])[0]


def test_a_log_that_was_made_anew_is_found_beside_an_anchor_only() -> None:
    other = [line.replace(b"alice", b"mallory") for line in LINES]
    head, forged = Head(), []
    for line in other:
        record = json.loads(line)
        content = {k: v for k, v in record.items() if k not in ("hash", "previous", "number")}
        sealed_line, head = sealed(content, head)
        forged.append(sealed_line)
    assert flaws(forged) == []
    anchor = Anchor(HEADS[4].hash, "the system's log", 5)
    assert flaws(forged, anchor) == [
        "f, line 5: record 5 is not the one that the system's log has noted: it was made anew"
    ]


def files(count: int) -> list[tuple[str, bytes]]:
    head, found = Head(), []
    for number in range(count):
        lines, heads = made(3, head)
        found.append((f"f{number}", b"".join(lines)))
        head = heads[-1]
    return found


def test_several_files_are_one_chain() -> None:
    assert verify(files(3)).flaws == ()
    (flaw,) = verify(files(3)[:1] + files(3)[2:]).flaws
    assert str(flaw) == "f2, line 1: records 4 to 6 are missing before this line"


def test_only_as_many_files_as_are_kept_may_be_gone() -> None:
    assert verify(files(4)[1:], most=3).flaws == (), "the oldest one was removed in its turn"
    (flaw,) = verify(files(4)[2:], most=3).flaws
    assert str(flaw) == "f2, line 1: the records before number 7 are missing"


def test_a_file_whose_first_lines_were_cut_is_found() -> None:
    kept = files(4)[1:]
    first, content = kept[0]
    (flaw,) = verify([(first, content.split(b"\n", 1)[1]), *kept[1:]], most=3).flaws
    assert (
        str(flaw) == "f1, line 1: the file does not begin here: lines before this one are missing"
    )


def test_anchors_of_files_that_are_gone_are_no_flaws() -> None:
    old = Anchor("0" * 64, "the system's log", 2)
    assert verify(files(4)[1:], [old], most=3).flaws == ()


@given(st.data())
def test_no_damage_stays_unseen_beside_the_head(data: st.DataObject) -> None:
    """One byte changed, lines removed, moved or repeated: all of it."""
    lines = [*LINES]
    at = data.draw(st.integers(0, len(lines) - 1))
    match data.draw(st.sampled_from(["byte", "remove", "move", "repeat"])):
        case "byte":
            where = data.draw(st.integers(0, len(lines[at]) - 1))
            other = data.draw(st.integers(1, 255))
            line = bytearray(lines[at])
            line[where] ^= other
            lines[at] = bytes(line)
        case "remove":
            del lines[at : at + data.draw(st.integers(1, len(lines) - at))]
        case "move":
            to = data.draw(st.integers(0, len(lines) - 2))
            lines.insert(to if to < at else to + 1, lines.pop(at))
        case "repeat":
            lines.insert(data.draw(st.integers(0, len(lines))), lines[at])
    assert flaws(lines, Anchor(HEADS[-1].hash, "the head", 9))


# -- what is recorded


SECRET = {"type": "tcp", "send": "AUTH hunter2", "path": "/?token=hunter2"}


@pytest.mark.parametrize(
    "body",
    [
        {"op": "service.set", "service": "chat", "values": {"health": SECRET}},
        {"op": "service.add", "values": {"name": "chat", "health": SECRET}},
        {"op": "services.apply", "values": {"services": [{"name": "chat", "health": SECRET}]}},
        {"edits": [{"op": "service.set", "service": "chat", "values": {"health": SECRET}}]},
        {"op": "backend.set", "service": "a", "backend": "b", "values": {"token": "hunter2"}},
        {"password": "hunter2"},
    ],
)
def test_no_secret_is_recorded(body: dict[str, object]) -> None:
    raw = json.dumps(body).encode()
    kept = auditlog.request_of(body, raw)
    assert "hunter2" not in json.dumps(kept)
    assert len(str(kept["sha256"])) == 64


def test_plain_requests_are_recorded_as_they_are() -> None:
    body = {
        "op": "backend.set", "service": "chat", "backend": "gpu-1", "values": {"state": "drain"},
        "message": "new driver", "dry_run": False,
    }  # fmt: skip
    kept = auditlog.request_of(body, b"x")
    del kept["sha256"]
    assert kept == {key: value for key, value in body.items() if key != "dry_run"}
    assert auditlog.request_of({}, b"") == {}


def test_values_that_no_field_can_have_are_left_out() -> None:
    """However deep: the record has to be written, or no later one could be."""
    deep: object = "x"
    for _ in range(900):
        deep = [deep]
    body = {"op": deep, "message": {"a": 1}, "prefixes": ["192.0.2.7", deep], "backend": "b"}
    kept = auditlog.request_of(body | {"values": {"weight": deep, "state": None}}, b"x")
    assert kept["op"] == ["…"]
    assert kept["message"] == "…"
    assert kept["prefixes"] == ["192.0.2.7", "…"]
    assert kept["values"] == {"weight": ["…"], "state": None}
    sealed({"request": kept}, Head())


def test_a_long_request_is_recorded_as_its_digest() -> None:
    kept = auditlog.request_of({"prefixes": ["192.0.2.1"] * 1000}, b"y" * 7)
    assert set(kept) == {"bytes", "sha256"}
    assert kept["bytes"] == 7


CHANGE = {
    "action": "change", "kind": "backend", "service": "chat", "backend": "gpu-1",
    "fields": [{"field": "state", "old": "active", "new": "drain"}], "effect": "…",
}  # fmt: skip
SERVICE = {
    "action": "change", "kind": "service", "service": "chat", "backend": None,
    "fields": [{"field": "health.send", "old": "", "new": "AUTH hunter2"}], "effect": "…",
}  # fmt: skip
SETTINGS = {
    "action": "change", "kind": "settings", "service": "", "backend": None, "effect": "…",
    "fields": [
        {"field": "socket_roles.viewer", "old": [], "new": ["lb-view"]},
        {"field": "companion.key_file", "old": "/a", "new": "/hunter2"},
    ],
}  # fmt: skip
NEW_ROLES = "change settings: socket_roles.viewer [] → ['lb-view'], companion.key_file"


@pytest.mark.parametrize(
    ("status", "answer", "found"),
    [
        (200, {"changes": [CHANGE]}, ("ok", "change backend chat/gpu-1: state active → drain")),
        (200, {"changes": [SERVICE]}, ("ok", "change service chat: health.send")),
        (200, {"changes": [SETTINGS]}, ("ok", NEW_ROLES)),
        (200, {"changes": []}, ("ok", "nothing changed")),
        (200, {"changes": [CHANGE] * 7}, ("ok", None)),
        (200, {"text": "handed over", "flows_sent": 3}, ("ok", "handed over")),
        (200, {"blocked": ["a", "b"], "flows_ended": 3}, ("ok", "2 blocked, 3 flows ended")),
        (200, {"unblocked": ["a"]}, ("ok", "1 served again")),
        (200, {"sources": []}, ("ok", "done")),
        (409, {"error": {"message": "in use", "where": "chat"}}, ("refused", "chat: in use")),
        (
            400,
            {"error": {"message": "'hunter2' is no rate", "where": "chat"}},
            ("refused", "chat: it is invalid"),
        ),
        (503, {"error": {"message": "no memory", "where": ""}}, ("failed", "no memory")),
        (500, {"error": {"message": "a bug", "where": "x"}}, ("failed", "x: an internal error")),
    ],
)  # fmt: skip
def test_the_effect_is_a_sentence_without_secrets(
    status: int, answer: dict[str, object], found: tuple[str, str | None]
) -> None:
    outcome, effect = auditlog.effect_of(status, answer)
    assert outcome == found[0]
    assert effect == found[1] or (found[1] is None and effect.endswith("; and 2 more"))
    assert "hunter2" not in effect


def test_the_canonical_form_is_ascii_on_one_line() -> None:
    line = canonical({"b": "ü\n\x1b[31m\ud800", "a": 1})
    assert line == b'{"a":1,"b":"\\u00fc\\n\\u001b[31m\\ud800"}'
