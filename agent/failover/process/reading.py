"""Reads the configuration for the failover process in a child process.

Reading takes tens of milliseconds, and in this process no advert could be sent meanwhile.
``python -m agent.failover.process.reading FILE`` writes the result, pickled, to its output.
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
    """The part of the configuration that the failover process needs."""

    name: str
    interfaces: tuple[str, ...]  # those with the agent's program
    socket: Path
    socket_group: str | None
    state_dir: Path
    plan: FailoverPlan
    key: bytes | None = None
    problem: str = ""  # why runtime changes are not included


# The fields of what is pickled. A child of another version may have other fields, and its values
# would end up in the wrong ones.
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
    """Have a child read the orders in a file; raises ConfigError.

    ``at_once``: this is for a start, so the child runs in real time as this process does.
    """
    # -P: modules are imported from where this one is, not from the working folder.
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
            f"the process that reads it ended with status {child.returncode}",
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
    """Read the orders in a file in this process; raises ConfigError.

    ``at_start``: if the file cannot be used, return those of the last good configuration.
    """
    # Imported here because only the child needs it, and it takes longer than all other imports.
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
    """Return the key for adverts, or None if no instance uses HMAC.

    Flow sync needs the key file too, but it runs in the agent, and without it VRRP goes on.
    """
    from agent.failover.secret import read_secret

    by_hmac = any(i.authentication is Authentication.HMAC for i in failover.instances)
    if failover.key_file is None or not by_hmac:
        return None
    return read_secret(failover.key_file)


def _main() -> None:
    at_start = sys.argv[2:] == ["at-once"]
    if not at_start:
        be_ordinary(niceness=-10)  # better than ordinary, because somebody waits for the reload
    found: Orders | list[tuple[str, str, str]]
    try:
        found = orders_in(Path(sys.argv[1]), at_start=at_start)
    except SteelyardError as error:
        problems = error.problems if isinstance(error, ConfigError) else (error,)
        found = [(each.message, each.where, each.remedy) for each in problems]
    sys.stdout.buffer.write(pickle.dumps((_SHAPE, pickle.dumps(found))))


if __name__ == "__main__":
    # Imported by its name, not run as __main__, so that the parent can unpickle the class.
    from agent.failover.process import reading

    reading._main()
