"""Owns what a command may touch: the agent, the two output streams, the person at the terminal.

It travels as click's ``ctx.obj``, so that a test can run a command with a different one.
"""

from __future__ import annotations

import enum
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import click

if TYPE_CHECKING:
    from agent.api.client import Server

DEFAULT_SOCKET = Path("/run/steelyard/agent.sock")


class Output(enum.Enum):
    """The formats of the output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Agent(Protocol):
    """The part of ``agent.api.client.Client`` that the commands need."""

    def get(
        self, path: str, params: Mapping[str, str | int | None] | None = None
    ) -> dict[str, Any]: ...

    def post(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]: ...

    def stream(
        self, path: str, params: Mapping[str, str | int | None] | None = None
    ) -> Generator[dict[str, Any]]: ...


CHANGE_TIMEOUT_S = 120.0  # a busy host takes a while to compile a program
_TOLD_AFTER_S = 3.0


class _Patient:
    """An agent that gets enough time for a change; tells the person after a while why it takes
    long.
    """

    def __init__(self, agent: Agent, note: Callable[[str], None]) -> None:
        self._agent, self._note = agent, note

    def get(
        self, path: str, params: Mapping[str, str | int | None] | None = None
    ) -> dict[str, Any]:
        return self._agent.get(path, params)

    def stream(
        self, path: str, params: Mapping[str, str | int | None] | None = None
    ) -> Generator[dict[str, Any]]:
        return self._agent.stream(path, params)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        told = (
            "the agent is still working: a new feature needs a new program, which is being compiled"
        )
        timer = threading.Timer(_TOLD_AFTER_S, self._note, [told])
        timer.daemon = True
        timer.start()
        try:
            return self._agent.post(path, body)
        finally:
            timer.cancel()


def _connect(at: Path | Server, timeout_s: float) -> Agent:
    from agent.api.client import Client  # importing http.client would double the time of --help

    return Client(at, timeout_s)


@dataclass(slots=True)
class Remote:
    """Which agent on another host is meant, as the options say; None: the option is not given."""

    context: str | None = None
    server: str | None = None
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def target(self, *, by_default: bool) -> Server | None:
        """Return it; None: the agent of this host is meant. Raises ContextError.

        ``by_default``: the current context of the user counts.
        """
        if self == Remote() and not by_default:
            return None
        from lbctl import contexts  # as above

        if self.server is None:
            if self.cert or self.key or self.ca:
                raise contexts.ContextError(
                    "--cert, --key and --ca are for a --server",
                    where="lbctl",
                    remedy="give --server HOST[:PORT], too",
                )
            if self.context is None and not contexts.path().exists():
                return None
            return contexts.read().target(self.context)
        if self.cert is None or self.key is None:
            raise contexts.ContextError(
                "--server needs your certificate and its key",
                where="lbctl",
                remedy="give --cert and --key, or name a --context that has them",
            )
        given = contexts.Context(
            self.server, str(self.cert), str(self.key), None if self.ca is None else str(self.ca)
        )
        return given.target()


def _confirm(question: str) -> bool:
    return click.confirm(question, err=True)


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _height() -> int | None:
    return shutil.get_terminal_size().lines if sys.stdout.isatty() else None


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@dataclass(slots=True)
class Environment:
    """``width`` None: there is no terminal, and lines are as long as they need to be.

    ``socket_given``: the socket was named, so the user's current context does not count.
    """

    socket: Path = DEFAULT_SOCKET
    socket_given: bool = False
    remote: Remote = field(default_factory=Remote)
    output: Output = Output.TABLE
    message: str = ""  # why something is changed, for the history
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    stdin: TextIO = field(default_factory=lambda: sys.stdin)
    width: int | None = field(default_factory=_width)
    height: int | None = field(default_factory=_height)  # of the terminal; None as for width
    colour: bool = field(default_factory=_colour)
    interactive: bool = field(default_factory=lambda: sys.stdin.isatty() and sys.stderr.isatty())
    confirm: Callable[[str], bool] = _confirm
    connect: Callable[[Path | Server, float], Agent] = _connect
    sleep: Callable[[float], None] = time.sleep

    def agent(self, timeout_s: float = 10.0) -> Agent:
        """Return the agent behind the socket, or on another host. Raises ContextError."""
        return self.connect(self.server() or self.socket, timeout_s)

    def server(self) -> Server | None:
        """Return which agent on another host is meant; None: that of this host."""
        is_usual = not self.socket_given and self.socket == DEFAULT_SOCKET
        return self.remote.target(by_default=is_usual)

    def need_this_host(self, what: str) -> None:
        """Raise UsageError if an agent on another host is meant; ``what`` looks at this host."""
        if (server := self.server()) is not None:
            raise click.UsageError(
                f"{what} looks at the host on which it runs, and not at {server}: run it there, or "
                "add --context local"
            )

    def agent_to_change(self) -> Agent:
        """Return the agent, with a timeout for orders that may take long."""
        return _Patient(self.agent(CHANGE_TIMEOUT_S), self.note)

    def write(self, text: str) -> None:
        """Write data to standard output."""
        self.stdout.write(text if text.endswith("\n") else f"{text}\n")
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Write a message for the person to standard error; it is never part of the data."""
        self.stderr.write(f"{text}\n")
        self.stderr.flush()


pass_environment = click.make_pass_decorator(Environment, ensure=True)
