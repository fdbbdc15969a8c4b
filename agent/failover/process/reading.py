"""Reads the configuration for the failover process: in a child, because it takes tens of
milliseconds, in which no advert would go out.

``python -m agent.failover.process.reading FILE`` writes what it made of the file to its output.
"""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from agent.errors import ConfigError, SteelyardError
from agent.failover.model import (
    Announcements,
    Authentication,
    Failover,
    Instance,
    Track,
    TrackedInterface,
    TrackedScript,
    socket_of,
)
from agent.failover.plan import FailoverPlan, VirtualRouter, plan
from agent.failover.process.realtime import be_ordinary, start_child
from agent.failover.times import READING_S


@dataclass(frozen=True, slots=True)
class Orders:
    """What the failover process has to know of the configuration."""

    name: str
    interfaces: tuple[str, ...]  # those that have the agent's program
    socket: Path
    socket_group: str | None
    state_dir: Path
    plan: FailoverPlan
    key: bytes | None = None
    problem: str = ""  # why runtime changes are not in it


# What a child of another version would write otherwise: its values would come into wrong fields.
_SHAPE = repr(
    [
        (made.__name__, [field.name for field in fields(made)])
        for made in (
            *(Orders, FailoverPlan, VirtualRouter, Instance),
            *(Track, TrackedInterface, TrackedScript, Announcements),
        )
    ]
)


async def read_orders(path: Path, *, at_once: bool = False) -> Orders:
    """The orders in a file; raises ConfigError. ``at_once``: for a start, in real time,
    as this process is.
    """
    # -P: modules come from where this one does, not from the working folder.
    command: tuple[str, ...] = (
        sys.executable,
        "-P",
        "-m",
        "agent.failover.process.reading",
        str(path),
    )
    command += ("at-once",) if at_once else ()
    child = start_child(command, stdout=subprocess.PIPE)
    try:
        answer, _ = await asyncio.to_thread(child.communicate, timeout=READING_S)
    except subprocess.TimeoutExpired as error:
        child.kill()
        raise ConfigError(f"reading takes more than {READING_S:g} s", where=str(path)) from error
    try:
        shape, found = pickle.loads(answer)  # noqa: S301 (our own child's)
        if shape == _SHAPE:
            found = pickle.loads(found)  # noqa: S301
    except (EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"its reader ended with status {child.returncode}",
            where=str(path),
            remedy="see the log: journalctl -u lb-agent-failover",
        ) from error
    if shape != _SHAPE:
        raise ConfigError(
            "the program was replaced by another version since this process started",
            where=str(path),
            remedy="restart lb-agent-failover: another node takes over meanwhile",
        )
    if isinstance(found, Orders):
        return found
    problems = tuple(ConfigError(message, where=w, remedy=r) for message, w, r in found)
    first = problems[0]
    raise ConfigError(first.message, where=first.where, remedy=first.remedy, problems=problems)


def orders_in(path: Path, *, at_start: bool = False) -> Orders:
    """The orders in a file, read here and now; raises ConfigError.

    ``at_start``: where the file cannot be used, those of the last good configuration.
    """
    # Only the child needs these: they take longer to import than all the rest.
    from agent.config.boot import boot

    loaded = boot(path, fall_back=at_start).loaded
    config = loaded.config
    return Orders(
        name=config.name,
        interfaces=config.interfaces,
        socket=socket_of(config.failover, config.socket),
        socket_group=config.socket_group,
        state_dir=config.state_dir,
        plan=plan(config),
        key=_key(config.failover),
        problem=loaded.file_problem or loaded.problem,
    )


def _key(failover: Failover) -> bytes | None:
    """For adverts. Flow sync needs it too, but is the agent's: without it, VRRP goes on."""
    from agent.failover.secret import read_secret

    by_hmac = any(i.authentication is Authentication.HMAC for i in failover.instances)
    if failover.key_file is None or not by_hmac:
        return None
    return read_secret(failover.key_file)


def _main() -> None:
    at_start = sys.argv[2:] == ["at-once"]
    if not at_start:
        be_ordinary(niceness=-10)  # somebody waits for it
    found: Orders | list[tuple[str, str, str]]
    try:
        found = orders_in(Path(sys.argv[1]), at_start=at_start)
    except SteelyardError as error:
        problems = error.problems if isinstance(error, ConfigError) else (error,)
        found = [(each.message, each.where, each.remedy) for each in problems]
    sys.stdout.buffer.write(pickle.dumps((_SHAPE, pickle.dumps(found))))


if __name__ == "__main__":
    # Not as __main__: the parent has to know the class by its module's name.
    from agent.failover.process import reading

    reading._main()
