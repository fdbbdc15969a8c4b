"""Owns the contexts of a user: agents on other hosts by name, and which of them is meant if none is
given. kubectl and docker have the word for the same.

They are in one file of the user. What a context says is checked where it is used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agent.api.client import Server
from agent.errors import SteelyardError

DEFAULT_PORT = 9443
LOCAL = "local"  # the agent of this host, which is always there
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class ContextError(SteelyardError):
    """A context cannot be used, or the file of contexts cannot."""


@dataclass(frozen=True, slots=True)
class Context:
    """An agent on another host: its address and the files for TLS, as options give them."""

    server: str
    cert: str
    key: str
    ca: str | None = None

    def target(self) -> Server:
        """Return where that is. Raises ContextError."""
        host, port = parse_server(self.server)
        return Server(
            host, port, Path(self.cert), Path(self.key), None if self.ca is None else Path(self.ca)
        )


@dataclass(frozen=True, slots=True)
class Contexts:
    """All contexts of a user; ``current`` is meant if none is given."""

    current: str = LOCAL
    known: Mapping[str, Context] = field(default_factory=dict)

    def target(self, name: str | None = None) -> Server | None:
        """Return where a context is, or the current one; None: this host. Raises ContextError."""
        wanted = name or self.current
        if wanted == LOCAL:
            return None
        return self._named(wanted).target()

    def _named(self, name: str) -> Context:
        found = self.known.get(name)
        if found is None:
            raise ContextError(
                f"there is no context {name}",
                where=str(path()),
                remedy="lbctl context list shows them",
            )
        return found

    def with_context(self, name: str, context: Context) -> Contexts:
        """Return them with one more, or with another one of that name. Raises ContextError."""
        if _NAME.fullmatch(name) is None or name == LOCAL:
            raise ContextError(
                f"{name!r} cannot be the name of a context",
                where="lbctl context",
                remedy=f"use letters, digits, and . _ - after the first, and not {LOCAL}",
            )
        context.target()
        return Contexts(self.current, {**self.known, name: context})

    def without(self, name: str) -> Contexts:
        """Return the others; this host is the current one if that was it. Raises ContextError."""
        self._named(name)
        rest = {other: each for other, each in self.known.items() if other != name}
        return Contexts(LOCAL if self.current == name else self.current, rest)


def parse_server(text: str) -> tuple[str, int]:
    """Return host and port of HOST, HOST:PORT or [IPV6]:PORT. Raises ContextError."""
    match = re.fullmatch(
        r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?", text
    )
    port = DEFAULT_PORT if match is None or match["port"] is None else int(match["port"])
    if match is None or not 0 < port < 65_536:
        raise ContextError(
            f"{text!r} is not a server",
            where="--server",
            remedy="give HOST or HOST:PORT, such as lb1.example.org:9443 or [2001:db8::1]:9443",
        )
    return match["v6"] or match["host"], port


def path() -> Path:
    """Return the file of the user who runs this."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "steelyard" / "contexts.json"


def read() -> Contexts:
    """Return the user's contexts; none if there is no file. Raises ContextError."""
    file = path()
    try:
        text = file.read_text()
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from error
    try:
        match json.loads(text):
            case {"current": str(current), "contexts": dict(listed)}:
                return Contexts(current, {name: Context(**each) for name, each in listed.items()})
    except (ValueError, TypeError) as error:
        raise _unusable(file, str(error)) from error
    raise _unusable(file, "it has not the shape that lbctl writes")


def write(contexts: Contexts) -> None:
    """Keep the contexts. Raises ContextError."""
    file, temporary = path(), path().with_suffix(".new")
    document = {
        "current": contexts.current,
        "contexts": {name: asdict(each) for name, each in contexts.known.items()},
    }
    try:
        file.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        temporary.write_text(json.dumps(document, indent=2) + "\n")
        temporary.replace(file)
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from error


def _unusable(file: Path, why: str) -> ContextError:
    return ContextError(
        f"the contexts cannot be used: {why}",
        where=str(file),
        remedy="correct the file, or remove it and make them again: lbctl context add",
    )
