"""Owns the file of a tier's keys: who may ask, and how much.

Each line has a name and the SHA-256 of a key, and may have limits of its own::

    alice 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 requests_per_minute=600

The keys themselves are nowhere: whoever reads the file cannot ask in anybody's name. They are
random and long, so a plain hash of them cannot be searched.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from agent.errors import ConfigError, NotFoundError
from agent.files import read_private, write_atomically

MOST_KEYS = 100_000
_MOST_BYTES = 32 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may ask for. None: what the tier says; 0: anything."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


LIMITS = tuple(each.name for each in fields(Limits))


@dataclass(frozen=True, slots=True)
class Key:
    """One key, by its hash, and the limits of its own."""

    name: str
    sha256: str
    limits: Limits = Limits()


def made(name: str) -> tuple[str, Key]:
    """Return a new key, with 256 random bits, and what the file holds of it."""
    text = f"sk-{secrets.token_urlsafe(32)}"
    return text, Key(name, hashlib.sha256(text.encode()).hexdigest())


def read(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file. Raises ConfigError."""
    data = read_private(path, "the keys of the tier", _MOST_BYTES, make="lbctl tier keys add NAME")
    return parse(data.decode("utf-8", "replace"), str(path))


def parse(text: str, where: str) -> tuple[Key, ...]:
    """Return the keys in a text. Raises ConfigError, with the line."""
    keys: list[Key] = []
    names: dict[str, int] = {}
    hashes: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        key = _key(words, f"{where}:{number}")
        for what, value, seen in (("name", key.name, names), ("key", key.sha256, hashes)):
            if value in seen:
                raise ConfigError(
                    f"the {what} of line {seen[value]} is here again", where=f"{where}:{number}",
                    remedy="remove one of the two lines",
                )  # fmt: skip
            seen[value] = number
        keys.append(key)
    if len(keys) > MOST_KEYS:
        raise ConfigError(
            f"{len(keys)} keys are too many", where=where, remedy=f"keep at most {MOST_KEYS}"
        )
    return tuple(keys)


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:70]!r} is not a name of a key",
            where=where,
            remedy="use at most 64 letters, digits, and . _ @ - after the first",
        )


def _key(words: list[str], where: str) -> Key:
    name, sha256 = words[0], words[1] if len(words) > 1 else ""
    _check_name(name, where)
    if not _HASH.fullmatch(sha256):
        raise ConfigError(
            f"the second word for {name} is not a SHA-256 in 64 hexadecimal digits", where=where,
            remedy=f"make a key, and its line: lbctl tier keys add {name}",
        )  # fmt: skip
    limits: dict[str, int] = {}
    for word in words[2:]:
        what, _, value = word.partition("=")
        if what not in LIMITS or not re.fullmatch(r"[0-9]{1,10}|none", value):
            raise ConfigError(
                f"{word[:70]!r} is not a limit", where=where,
                remedy=f"write {', '.join(f'{each}=N' for each in LIMITS)}, or none for N",
            )  # fmt: skip
        limits[what] = 0 if value == "none" else int(value)
        if limits[what] > _MOST or (value != "none" and not limits[what]):
            raise ConfigError(
                f"{word} is out of range", where=where, remedy=f"give 1 to {_MOST}, or none"
            )
    return Key(name, sha256, Limits(**limits))


def written(keys: Iterable[Key]) -> str:
    """Return the text that ``parse`` reads as these keys."""
    return "".join(f"{_line(key)}\n" for key in keys)


def _line(key: Key) -> str:
    limits = ((each, getattr(key.limits, each)) for each in LIMITS)
    words = (f"{each}={value or 'none'}" for each, value in limits if value is not None)
    return " ".join((key.name, key.sha256, *words))


def add(path: Path, name: str, limits: Limits) -> str:
    """Make a key, write what the file holds of it, and return the key. Raises ConfigError."""
    _check_name(name, "NAME")
    before = read(path) if path.exists() else ()
    if any(key.name == name for key in before):
        raise ConfigError(
            f"there is a key of {name} already", where=str(path),
            remedy=f"remove it first: lbctl tier keys remove {name}",
        )  # fmt: skip
    text, key = made(name)
    key = replace(key, limits=limits)
    _append(path, _line(key))
    return text


def _append(path: Path, line: str) -> None:
    """Add a line, and keep the file's comments."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    write_atomically(path, f"{before}{line}\n")


def remove(path: Path, name: str) -> None:
    """Remove a key from the file, and keep everything else. Raises ConfigError."""
    if all(key.name != name for key in read(path)):
        raise NotFoundError(
            f"there is no key of {name}", where=str(path), remedy="lbctl tier keys lists them"
        )
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    write_atomically(path, "".join(line for line in lines if line.split()[:1] != [name]))
