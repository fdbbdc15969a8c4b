"""Owns the file that remembers since when: the states of backends and services across restarts.

Only for people: without it every ``since`` begins with the agent. So nothing here fails; what
cannot be read is as if it were not there, and what cannot be written is logged once.
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
        """The states as they were last; empty if they are not known."""
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
        """Save what ``past`` tells, for ever; in a thread, because a disk may take its time."""
        try:
            while True:
                await asyncio.sleep(KEEP_S)
                try:
                    await asyncio.to_thread(self.save, past())
                except Exception:  # this task's root: it is only for people
                    log.exception("keeping the states broke")
        finally:
            self.save(past())

    def save(self, past: Past) -> None:
        """Remember these states, if they are others than the last."""
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
