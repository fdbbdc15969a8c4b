"""``lbctl audit log`` and ``lbctl audit verify``: show the audit log, and check its chain."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.errors import SteelyardError
from lbctl.environment import Environment, pass_environment
from lbctl.options import DURATION, agent_options
from lbctl.output import emit, facts

if TYPE_CHECKING:
    from agent.state.auditlog import Anchor, Verdict

type Record = Mapping[str, Any]

_HASH = re.compile(r"[0-9a-f]{64}")
_USUAL = 50
_MOST = 10_000
_JOURNAL_S = 60.0
_AGAIN_S = 0.2
_STYLES = {"refused": "yellow", "failed": "bold red", "denied": "yellow", "none": "bold red"}


@click.command("log")
@click.option(
    "--since",
    "since_s",
    type=DURATION,
    metavar="DURATION",
    help="Changes of the last 30s, 15m, 2h or 7d.",
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, _MOST),
    metavar="N",
    help=f"The newest N records.  [default: {_USUAL}; with --since: all]",
)
@agent_options
@pass_environment
def log(env: Environment, since_s: float | None, count: int | None) -> None:
    """Show who changed what, and with which outcome; the newest come last.

    The agent records every change before it makes it. `-o json` shows the records as they are,
    with a record for an order and another one for its outcome.

    \b
    Examples:
      lbctl audit log --since 1h
      lbctl audit log -n 10 -o json
    """
    usual = _USUAL if since_s is None else _MOST
    query = {"since_s": None if since_s is None else math.ceil(since_s), "limit": count or usual}
    answer = env.agent().get("/v1/audit", query)
    emit(env, answer, lambda data: _table(data["records"]))
    if answer["problem"]:
        env.note(f"changes are not recorded now: {answer['problem']}")


def _table(records: list[Record]) -> list[object]:
    from lbctl.commands.events import local_time
    from lbctl.layout import Cell, Column, Table

    outcomes = {each["change"]: each for each in records if each["kind"] == "outcome"}
    orders = {each["change"] for each in records if each["kind"] == "order"}
    rows = []
    for each in records:
        if each["kind"] == "begin" or (each["kind"] == "outcome" and each["change"] in orders):
            continue
        outcome, text = _outcome(each, outcomes)
        rows.append(
            (
                Cell(str(each["number"])),
                Cell(local_time(each["at"])),
                Cell(_printable(each.get("by", "-"))),
                Cell(each.get("role", "-")),
                Cell(_printable(each.get("what", each["kind"]))),
                Cell(outcome, _STYLES.get(outcome, "")),
                Cell(_printable(text)),
            )
        )
    if not rows:
        return ["no changes"]
    columns = (
        Column("RECORD", right=True, drop=2),
        Column("TIME"),
        Column("BY"),
        Column("ROLE", drop=1),
        Column("WHAT"),
        Column("OUTCOME"),
        Column("EFFECT", prose=True),
    )
    return [Table(columns, tuple(rows), prose_under="TIME")]


def _outcome(record: Record, outcomes: Mapping[str, Record]) -> tuple[str, str]:
    """Return the outcome of a request, and its effect."""
    match record["kind"]:
        case "order":
            found = outcomes.get(record["change"])
            if found is None:
                return "none", "no outcome is recorded: the agent may have been killed meanwhile"
            message = record.get("request", {}).get("message") or ""
            return found["outcome"], f"“{message}” {found['effect']}" if message else found[
                "effect"
            ]
        case "outcome":
            return record["outcome"], record["effect"]
        case "denied":
            more = record.get("left_out", 0)
            others = f"{more} more before are not recorded" if more else ""
            return "denied", "; ".join(filter(None, (_asked(record.get("request", {})), others)))
        case "lost":
            return "-", f"{record['count']} records could not be written"
    return "-", f"version {record['version']}" if "version" in record else ""


def _asked(request: Mapping[str, Any]) -> str:
    """Return what a request asked for, as far as it is recorded."""
    edits = [each for each in request.get("edits") or [request] if isinstance(each, Mapping)]
    first = edits[0] if edits else {}
    names = "/".join(str(first[key]) for key in ("service", "backend") if first.get(key))
    more = f", and {len(edits) - 1} more" if len(edits) > 1 else ""
    prefixes = request.get("prefixes")
    shown = ", ".join(map(str, prefixes[:3])) if isinstance(prefixes, list) else ""
    return " ".join(filter(None, (str(first.get("op") or ""), names, shown))) + more


def _printable(text: str) -> str:
    """Return a text without control characters, which a terminal could obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


@click.command("verify")
@click.option(
    "--head", metavar="HASH", help="A hash that this command has shown before: a record has it."
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The newest file of the log; older ones are beside it.  [default: the agent's]",
)
@agent_options
@pass_environment
def verify(env: Environment, head: str | None, file: Path | None) -> None:
    """Find out whether the audit log was edited, reordered or cut.

    It reads the files itself, so it needs root, and with `--file` no agent. Each record holds the
    hash of the one before. Whether the last records were cut off, or all were made anew, can only
    be seen by comparing with a hash that was noted elsewhere: by the agent in its memory, in the
    system's log every minute, or by you (`--head`). Exits with 1 if something is wrong.

    \b
    Examples:
      sudo lbctl audit verify
      lbctl audit verify --file /mnt/backup/default.audit --head 3f0c…
    """
    from agent.state.auditlog import Anchor
    from agent.state.auditlog import verify as checked

    if head is not None and not _HASH.fullmatch(head := head.strip().lower()):
        raise click.BadParameter("a hash has 64 hexadecimal digits", param_hint="'--head'")
    anchors: list[Anchor] = []
    if file is None:
        env.need_this_host("audit verify")
        # The agent's head is asked for before the files are read, so they have that record.
        answer = env.agent().get("/v1/audit", {"limit": 1})
        file = Path(answer["file"])
        if answer["head"]["number"]:
            anchors.append(
                Anchor(answer["head"]["hash"], "the running agent", answer["head"]["number"])
            )
        anchors += _noted(env, file)
    if head is not None:
        anchors.append(Anchor(head, "--head"))
    verdict = checked(_files(env, file), anchors)
    data = {
        "file": str(file),
        "records": verdict.records,
        "first": verdict.first,
        "head": {"number": verdict.head.number, "hash": verdict.head.hash},
        "anchors": len(anchors),
        "flaws": [
            {"file": each.file, "line": each.line, "text": each.text} for each in verdict.flaws
        ],
    }
    emit(env, data, lambda _: _shown(env, verdict, anchors))
    if verdict.flaws:
        raise click.exceptions.Exit(1)


def _files(env: Environment, path: Path) -> list[tuple[str, bytes]]:
    """Return the names and contents of the files of a log, the oldest first."""
    from agent.state.auditlog import MOST_FILES

    older = (path.with_name(f"{path.name}.{each}") for each in range(MOST_FILES - 1, 0, -1))
    try:
        found = [(str(each), each.read_bytes()) for each in older if each.exists()]
        newest = path.read_bytes()
        if newest and not newest.endswith(b"\n"):  # the agent may be writing
            env.sleep(_AGAIN_S)
            newest = path.read_bytes()
    except OSError as error:
        raise SteelyardError(
            f"the audit log cannot be read: {error.strerror}",
            where=str(error.filename),
            remedy="use sudo; --file names another file",
        ) from error
    return [*found, (str(path), newest)]


def _noted(env: Environment, file: Path) -> list[Anchor]:
    """Return the heads that the agent has noted in the system's log."""
    command = ("journalctl", "--no-pager", "-o", "cat", "-u", "lb-agent")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=True,
            timeout=_JOURNAL_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        env.note("the system's log cannot be read, so its heads are not compared")
        return []
    return list(heads_in(done.stdout.splitlines(), file))


def heads_in(lines: Iterable[str], file: Path) -> Iterator[Anchor]:
    """Yield the heads of one audit log that lines of the agent's log note."""
    from agent.state.auditlog import HEAD_EVENT, Anchor

    for line in lines:
        if HEAD_EVENT not in line:
            continue
        try:
            entry = json.loads(line)
            if entry["event"] == HEAD_EVENT and entry["path"] == str(file):
                yield Anchor(str(entry["hash"]), "the system's log", int(entry["number"]))
        except (ValueError, KeyError, TypeError):
            continue


def _shown(env: Environment, verdict: Verdict, anchors: list[Anchor]) -> list[object]:
    from rich.text import Text

    from agent.humanise import plural

    compared = f"with {plural(len(anchors), 'head')} noted elsewhere"
    result: list[object] = [
        *facts(
            env,
            [
                ("records", f"{verdict.records}, from number {verdict.first}"),
                ("head", f"{verdict.head.hash} (number {verdict.head.number})"),
                ("compared", compared if anchors else "with nothing noted elsewhere"),
            ],
        ),
        "",
    ]
    result += [Text(str(flaw), "bold red") for flaw in verdict.flaws]
    if not verdict.flaws:
        result.append(Text("the log is as it was written", "green"))
    return result
