"""Defines the audit log: records of changes, each chained to the one before it, and their check.

A record is one line: a JSON object in canonical form (sorted keys, no spaces, ASCII only). It holds
its number, the hash of the record before it (``previous``), and its own ``hash``: the SHA-256 of
the canonical form without that key. So no record can be edited, removed or moved without breaking
the chain, unless all later records are made anew. An anchor, which is a hash that was noted
elsewhere, reveals that as well, and reveals that the last records were cut off. Pure.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_FILES = 10  # the current one included
FIRST = "0" * 64  # what the first record has as ``previous``
# The lines of the system's log that note a head: of this log, and of another balancer's.
HEAD_EVENT, PEER_EVENT = "audit log head", "audit log head of another balancer"
MAX_BODY = 2000  # bytes of a request that are kept; of a longer one, only its digest is
MAX_TEXT = 500  # characters of any other text, which may quote what a client has sent
# Fields of requests that hold no secrets. Services can hold some, such as what a check sends.
_PLAIN = (
    "op", "service", "backend", "version", "prefixes", "for_s", "why", "confirmed", "message",
    "instance", "force",
)  # fmt: skip
_PLAIN_VALUES = frozenset(
    {"address", "port", "weight", "state", "backup", "priority", "zone", "name"}
)

type Record = Mapping[str, Any]


class Kind(enum.Enum):
    """What a record is about."""

    BEGIN = "begin"  # a file begins
    START = "start"  # the agent has started
    ORDER = "order"  # a change is about to be made
    OUTCOME = "outcome"  # the result of an order
    DENIED = "denied"  # a request for which the caller's role does not suffice
    LOST = "lost"  # records could not be written


@dataclass(frozen=True, slots=True)
class Head:
    """The number and the hash of the last record."""

    number: int = 0
    hash: str = FIRST

    def __str__(self) -> str:
        """Return the head as it is announced to other balancers."""
        return f"{self.number}:{self.hash}"


def canonical(record: Record) -> bytes:
    """Return a record in the form that is hashed and written."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def sealed(content: Record, head: Head) -> tuple[bytes, Head]:
    """Return the line of a record that follows ``head``, and the new head."""
    record = {**content, "number": head.number + 1, "previous": head.hash}
    digest = hashlib.sha256(canonical(record)).hexdigest()
    return canonical(record | {"hash": digest}) + b"\n", Head(head.number + 1, digest)


def parsed(line: bytes) -> Record | None:
    """Return the record in a line; None: there is none. Its hash is not checked."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = (
        isinstance(record, dict)
        and type(record.get("number")) is int
        and isinstance(record.get("hash"), str)
        and isinstance(record.get("previous"), str)
        and isinstance(record.get("at"), str)
    )
    return record if is_record else None


def head_of(lines: Iterable[bytes]) -> Head:
    """Return the head that the last readable record says; ``lines`` are the last one first."""
    for line in lines:
        record = parsed(line)
        if record is not None:
            return Head(record["number"], record["hash"])
    return Head()


def request_of(body: Mapping[str, object], raw: bytes) -> dict[str, object]:
    """Return what is recorded of a request: its plain fields, and the digest of all of it.

    Of values that could hold a secret only the names of their keys are kept.
    """
    kept = _plain(body)
    if isinstance(edits := body.get("edits"), list):
        kept["edits"] = [_plain(each) for each in edits if isinstance(each, Mapping)]
    if len(json.dumps(kept)) > MAX_BODY:
        kept = {"bytes": len(raw)}
    return kept | ({"sha256": hashlib.sha256(raw).hexdigest()} if raw else {})


def _plain(body: Mapping[str, object]) -> dict[str, object]:
    kept = {key: _flat(body[key]) for key in _PLAIN if body.get(key) is not None}
    values = body.get("values")
    if isinstance(values, Mapping) and values:
        is_plain = body.get("backend") is not None and _PLAIN_VALUES.issuperset(values)
        told = {str(key): _flat(value) for key, value in values.items()}
        kept["values"] = told if is_plain else sorted(told)
    return kept


def _flat(value: object) -> object:
    """Return a simple value, or a list of simple values.

    Others are replaced: no field takes them, and they could be nested too deeply to be written.
    """
    if isinstance(value, list):
        return [each if isinstance(each, str | int | float) else "…" for each in value]
    return value if value is None or isinstance(value, str | int | float) else "…"


def shortened(text: str) -> str:
    """Return a text that a record can hold."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def effect_of(status: int, answer: Mapping[str, Any]) -> tuple[str, str]:
    """Return the outcome of a request, and its effect in a sentence, from the API's answer."""
    if "error" in answer:
        error = answer["error"]
        # The message about an invalid value quotes it, and it could be a secret.
        why = error["message"] if status not in (400, 500) else "it is invalid"
        why = why if status != 500 else "an internal error"
        where = f"{error['where']}: " if error.get("where") else ""
        return ("refused" if status < 500 else "failed"), f"{where}{why}"
    if "changes" in answer:
        return "ok", changes_text(answer["changes"])
    if "blocked" in answer:
        return "ok", f"{len(answer['blocked'])} blocked, {answer['flows_ended']} flows ended"
    if "unblocked" in answer:
        return "ok", f"{len(answer['unblocked'])} served again"
    return "ok", str(answer.get("text", "done"))


def changes_text(changes: Sequence[Mapping[str, Any]], most: int = 5) -> str:
    """Return which services and backends changed, without values that could hold a secret."""
    told = [_change_text(each) for each in changes[:most]]
    more = len(changes) - most
    return "; ".join([*told, *([f"and {more} more"] if more > 0 else [])]) or "nothing changed"


def _change_text(change: Mapping[str, Any]) -> str:
    name = "/".join(filter(None, (change["service"], change["backend"])))
    head = f"{change['action']} {change['kind']} {name}".rstrip()
    if change["action"] != "change":
        return head
    fields = []
    for field in change["fields"]:
        name = str(field["field"])
        is_plain = change["kind"] == "backend" and name in _PLAIN_VALUES
        is_plain = is_plain or name.startswith(("socket_roles.", "api.", "audit_log."))
        fields.append(f"{name} {field['old']} → {field['new']}" if is_plain else name)
    return f"{head}: {', '.join(fields)}" if fields else head


@dataclass(frozen=True, slots=True)
class Anchor:
    """A hash that was noted outside of the log, in ``place``. ``number``: of which record."""

    hash: str
    place: str
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Flaw:
    """A place where the log is not as it was written."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found: the range of the records, the head, and every flaw."""

    first: int
    head: Head
    records: int
    flaws: tuple[Flaw, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    file: str
    number: int  # from 1
    raw: bytes
    begins: bool  # the first line of its file
    record: Record | None


def verify(
    files: Sequence[tuple[str, bytes]], anchors: Sequence[Anchor] = (), *, most: int = MOST_FILES
) -> Verdict:
    """Check a log. ``files``: names and contents, the oldest first; ``most``: as many are kept."""
    lines = [
        _Line(name, number, raw, number == 1, parsed(raw))
        for name, content in files
        for number, raw in enumerate(content.splitlines(keepends=True), 1)
    ]
    records = [line.record for line in lines if line.record is not None]
    known = {record["number"] for record in records}
    head = Head(records[-1]["number"], records[-1]["hash"]) if records else Head()
    first = min(known, default=0)
    flaws = list(_chain(lines, known))
    if lines and first > 1 and len(files) < most:
        text = f"the records before number {first} are missing"
        flaws.insert(0, Flaw(lines[0].file, 1, text))
    flaws += _anchored(lines, anchors, head, first)
    return Verdict(first, head, len(records), tuple(flaws))


def _chain(lines: Sequence[_Line], known: set[int]) -> Iterator[Flaw]:
    """Yield the flaws of the lines by themselves, and of each beside the one before it."""
    before: Head | None = None
    for line in lines:
        text, record = _own_flaw(line), line.record
        if record is None:
            yield Flaw(line.file, line.number, text)
            continue
        if not text and before is not None:
            text = _order_flaw(record, before, known)
        if not text and before is None and record["number"] == 1 and record["previous"] != FIRST:
            text = "the first record follows another one"
        if text:
            yield Flaw(line.file, line.number, text)
        before = Head(record["number"], record["hash"])


def _own_flaw(line: _Line) -> str:
    """Return what is wrong with a line by itself; empty: nothing."""
    record = line.record
    if not line.raw.endswith(b"\n"):
        return "the line breaks off: the agent was stopped while it wrote, or the line was cut"
    if record is None:
        return "this is no record: the line was edited or is damaged"
    content = {key: value for key, value in record.items() if key != "hash"}
    digest = hashlib.sha256(canonical(content)).hexdigest()
    if digest != record["hash"] or canonical(record) + b"\n" != line.raw:
        return f"record {record['number']} was edited: it does not have its hash"
    if line.begins and record.get("kind") != Kind.BEGIN.value:
        return "the file does not begin here: lines before this one are missing"
    return ""


def _order_flaw(record: Record, before: Head, known: set[int]) -> str:
    """Return what is wrong with a record after the one with the head ``before``; empty: nothing."""
    number, due = record["number"], before.number + 1
    if number > due:
        if due in known:
            return f"record {due} should be here, and is elsewhere: the lines were reordered"
        missing = f"record {due} is" if number == due + 1 else f"records {due} to {number - 1} are"
        return f"{missing} missing before this line"
    if number < due:
        return f"record {number} is out of its place, or is here twice"
    if record["previous"] != before.hash:
        return f"record {number} does not follow the line before it: one of the two was replaced"
    return ""


def _anchored(
    lines: Sequence[_Line], anchors: Sequence[Anchor], head: Head, first: int
) -> Iterator[Flaw]:
    """Yield the anchors that the log does not agree with, one flaw for each kind."""
    hashes = {line.record["hash"]: line for line in lines if line.record is not None}
    by_number = {line.record["number"]: line for line in lines if line.record is not None}
    last = lines[-1] if lines else None
    cut: Anchor | None = None
    for anchor in anchors:
        if anchor.hash in hashes or (anchor.number is not None and anchor.number < first):
            continue
        here = None if anchor.number is None else by_number.get(anchor.number)
        if here is not None:
            text = f"record {anchor.number} is not the one that {anchor.place} has noted"
            yield Flaw(here.file, here.number, f"{text}: it was made anew")
        elif anchor.number is not None and anchor.number > head.number:
            cut = anchor if cut is None or anchor.number > (cut.number or 0) else cut
        elif anchor.number is None:
            text = f"no record has the hash {anchor.hash[:16]}… of {anchor.place}: the records at "
            yield _at_end(last, f"{text}the end were cut off or made anew")
    if cut is not None:
        text = f"records {head.number + 1} to {cut.number} are missing after this line: {cut.place}"
        yield _at_end(last, f"{text} has noted record {cut.number}")


def _at_end(last: _Line | None, text: str) -> Flaw:
    return Flaw("", 0, text) if last is None else Flaw(last.file, last.number, text)
