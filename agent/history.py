"""Owns the file that keeps the states of backends and services, and since when, across restarts.

The file only serves people: without it every ``since`` would be the start of the agent. So nothing
here raises an error. A file that cannot be read is ignored, and a failure to write is logged once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from agent.files import write_atomically
from agent.logs import get_logger
from agent.model import BackendRef, BackendState, ServiceState
from agent.state.assemble import Tracked
from agent.state.situation import Past

log = get_logger()

KEEP_S = 1.0


class History:
    """The states file of one instance, ``<name>.states.json``."""

    def __init__(self, state_dir: Path, name: str) -> None:
        self._path = state_dir / f"{name}.states.json"
        self._saved: Past | None = None
        self._complained = False

    def load(self) -> Past:
        """Load the last known states; empty if they are unknown."""
        try:
            document = json.loads(self._path.read_text())
            self._saved = Past(
                {
                    BackendRef(*name.split("/", 1)): Tracked(BackendState(state), float(since))
                    for name, (state, since) in document["backends"].items()
                },
                {
                    name: Tracked(ServiceState(state), float(since))
                    for name, (state, since) in document["services"].items()
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Past({}, {})
        return self._saved

    async def keep(self, past: Callable[[], Past]) -> None:
        """Save what ``past`` returns, for ever; in a thread, because a disk may be slow."""
        try:
            while True:
                await asyncio.sleep(KEEP_S)
                try:
                    await asyncio.to_thread(self.save, past())
                except Exception:  # this task's root: the file only serves people
                    log.exception("keeping the states broke")
        finally:
            self.save(past())

    def save(self, past: Past) -> None:
        """Save these states if they differ from the last ones saved."""
        if past == self._saved:
            return
        document = {
            "backends": {str(ref): [t.state.value, t.since] for ref, t in past.backends.items()},
            "services": {name: [t.state.value, t.since] for name, t in past.services.items()},
        }
        try:
            write_atomically(self._path, json.dumps(document) + "\n")
        except OSError as error:
            if not self._complained:
                log.warning("states are not kept", path=str(self._path), problem=error.strerror)
            self._complained = True
        else:
            self._saved = past
