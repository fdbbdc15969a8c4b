"""Owns what the failover process keeps over a restart.

This is the operator's modes, the agent's last heartbeat, and the counters that protect against
replayed adverts. The heartbeat is about the kernel's tables, so one from an earlier boot is void.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from agent.failover.model import Mode
from agent.files import write_atomically
from agent.logs import get_logger
from agent.model import Address

log = get_logger()

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Saved:
    """What is saved; ``attached`` and ``why`` are from the agent's last heartbeat."""

    modes: Mapping[str, Mode] = field(default_factory=dict)  # by instance, without those NORMAL
    attached: bool | None = None  # None: the agent was not heard since the host booted
    why: str = ""
    programs: frozenset[str] = frozenset()  # interfaces that had an XDP program then
    counters: Mapping[str, Mapping[Address, int]] = field(default_factory=dict)  # by router, sender


class SavedFile:
    """The file ``<name>.failover.json`` in the state folder."""

    def __init__(self, state_dir: Path, name: str) -> None:
        self._path = state_dir / f"{name}.failover.json"
        self._writing = asyncio.Lock()
        self._written: Saved | None = None
        self._problem = ""

    def load(self) -> Saved:
        """Return what was saved. A damaged file is logged, and counts as none."""
        try:
            self._written = _parse(self._path.read_text(encoding="utf-8"), _boot_id())
        except FileNotFoundError:
            return Saved()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "the saved modes cannot be used: all are normal",
                path=str(self._path),
                error=str(error) or type(error).__name__,
            )
            return Saved()
        return self._written

    async def save(self, saved: Saved) -> None:
        """Write it if it has changed.

        If that fails, it is logged, and what was to be saved is valid only for this process.
        """
        async with self._writing:
            if saved == self._written:
                return
            try:
                # In a thread: a disk may take seconds to sync.
                await asyncio.to_thread(write_atomically, self._path, _text(saved))
            except OSError as error:
                if str(error) != self._problem:  # it is tried again and again
                    log.warning(
                        "modes and the agent's word are not saved, a restart forgets them",
                        path=str(self._path),
                        error=error.strerror,
                    )
                self._problem = str(error)
                return
            if self._problem:
                log.info("modes and the agent's word are saved again", path=str(self._path))
            self._written, self._problem = saved, ""


def _text(saved: Saved) -> str:
    modes = {name: mode.value for name, mode in saved.modes.items()}
    data = {
        "modes": modes,
        "boot": _boot_id(),
        "attached": saved.attached,
        "why": saved.why,
        "programs": sorted(saved.programs),
        "counters": {
            name: {str(source): counter for source, counter in of.items()}
            for name, of in saved.counters.items()
        },
    }
    return json.dumps(data) + "\n"


def _parse(text: str, boot_id: str) -> Saved:
    data = json.loads(text)
    modes = {str(name): Mode(mode) for name, mode in data["modes"].items()}
    counters = {
        str(name): {ip_address(source): int(counter) for source, counter in of.items()}
        for name, of in data.get("counters", {}).items()  # older versions wrote none
    }
    if data["boot"] != boot_id or data["attached"] is None:
        return Saved(modes, counters=counters)
    programs = frozenset(map(str, data["programs"]))
    return Saved(modes, bool(data["attached"]), str(data["why"]), programs, counters)


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
