"""Reads the files of ``lists``: text files with a prefix on each line, and CSV files.

These are the forms in which others publish lists. Spamhaus' DROP, FireHOL's netsets and `ipset
save` without its commands are text files. GeoLite2's and IPinfo's tables are CSV files that have
the prefix in the column ``network``, or else in the first column.
"""

from __future__ import annotations

import csv
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.errors import ConfigError
from agent.model import AddressList
from agent.state.addresstree import Prefix, Prefixes, prefix_of

_NETWORK = "network"
_COMMENT = ("#", ";", "//")
_BITS = {4: 32, 6: 128}


def read(each: AddressList) -> Prefixes:
    """Return all prefixes of a list.

    Raises ConfigError with the file and line of the first entry that is not a prefix. Callers run
    this in a thread, because files may be large.
    """
    found = Prefixes()
    for network in each.prefixes:
        found.add(network.version, prefix_of(network))
    for path in each.files:
        try:
            _refuse_cut_off(path, each.name)
            with path.open(encoding="utf-8-sig", newline="") as lines:
                if each.column is None:
                    _read_text(path, lines, found)
                else:
                    _read_csv(path, lines, each, found)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(
                f"list {each.name} cannot be read: {why}",
                where=str(path),
                remedy="make it a UTF-8 file that the agent may read, or remove it from the list",
            ) from error
    return found


def _refuse_cut_off(path: Path, name: str) -> None:
    """Raise ConfigError if the last line of a file does not end with a line feed.

    10.0.0.0/16 without its last digit is another prefix, and a far larger one.
    """
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            raise ConfigError(
                f"list {name}: the last line does not end, so the file may have been cut off",
                where=str(path),
                remedy="end it with a line feed",
            )


def _read_text(path: Path, lines: Iterable[str], found: Prefixes) -> None:
    for number, line in enumerate(lines, 1):
        words = line.split(None, 1)
        if words and not words[0].startswith(_COMMENT):
            found.add(*_parsed(words[0].rstrip(";,"), path, number))


def _read_csv(path: Path, lines: Iterable[str], each: AddressList, found: Prefixes) -> None:
    rows = csv.reader(lines)
    heading = next(rows, [])
    if each.column not in heading:
        raise ConfigError(
            f"list {each.name}: there is no column {each.column!r}",
            where=f"{path}:1",
            remedy=f"use one of {', '.join(heading) or 'a heading, which the file lacks'}",
        )
    column = heading.index(each.column)
    network = heading.index(_NETWORK) if _NETWORK in heading else 0
    wanted = frozenset(each.values)
    for row in _whole(rows, max(column, network)):
        if row[column] in wanted:
            found.add(*_parsed(row[network], path, rows.line_num))


def _whole(rows: Iterator[list[str]], last: int) -> Iterator[list[str]]:
    return (row for row in rows if len(row) > last)


def _parsed(text: str, path: Path, line: int) -> tuple[int, Prefix]:
    """Return the IP version and the prefix (bits and length) that a text stands for.

    This does not use ``ipaddress``, which takes ten times as long.
    """
    address, slash, bits = text.partition("/")
    version = 6 if ":" in address else 4
    width = _BITS[version]
    try:
        raw = socket.inet_pton(socket.AF_INET6 if version == 6 else socket.AF_INET, address)
        length = int(bits) if slash else width
        if not 0 <= length <= width:
            raise ValueError(text)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{text[:60]!r} is neither an address nor a prefix",
            where=f"{path}:{line}",
            remedy="write an address or a prefix at the start of each line, and comments after #",
        ) from error
    spare = width - length
    return version, (int.from_bytes(raw) >> spare << spare, length)
