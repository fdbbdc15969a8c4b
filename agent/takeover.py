"""Moves what an instance has left under its former name to its new name."""

from __future__ import annotations

from pathlib import Path

from agent.dataplane import instance
from agent.dataplane.pins import BPFFS, Pins, pins_of
from agent.errors import DataplaneError
from agent.lock import InstanceLocks
from agent.model import Config
from agent.network.guard import put_guard, remove_guard

_STATE = (
    "running.yaml",
    "running.yaml.previous",
    "running.yaml.damaged",
    "states.json",
    "versions",
    "events",
    "events.1",
    "failover.json",
)


def take_over(config: Config, former: str) -> None:
    """Move the program, its tables with the recorded flows, the guard and the state files.

    Nothing changes for packets. Raises SteelyardError if an agent runs, or if the new name has
    tables already.
    """
    own = InstanceLocks(config.name, *config.interfaces)
    try:
        other = InstanceLocks(former)
        try:
            move_tables(former, config.name)
            put_guard(config)
            remove_guard(former)
            _move_state(config.state_dir, former, config.name)
        finally:
            other.release()
    finally:
        own.release()


def move_tables(former: str, name: str, root: Path = BPFFS) -> None:
    """Move all that an instance has pinned, of any ABI, and give its programs the new name."""
    source, target = (pins_of(one, root).folder.parent for one in (former, name))
    if not source.is_dir():
        names = ", ".join(sorted(folder.name for folder in source.parent.glob("*/"))) or "none"
        raise DataplaneError(
            f"no instance {former!r} has left anything on this host",
            where=str(source),
            remedy=f"choose one of: {names}",
        )
    if target.exists():
        raise DataplaneError(
            f"the instance {name!r} already has tables of its own",
            where=str(target),
            remedy="`lb-agent detach` removes them, with their recorded flows",
        )
    source.rename(target)
    for folder in target.glob("abi*/"):
        instance.write_name(Pins(folder), name)


def _move_state(folder: Path, former: str, name: str) -> None:
    for suffix in _STATE:
        source, target = folder / f"{former}.{suffix}", folder / f"{name}.{suffix}"
        if source.exists() and not target.exists():
            source.rename(target)
