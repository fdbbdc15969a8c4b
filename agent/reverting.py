"""Owns the changes that end by themselves, also over restarts of the agent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from agent.config.reverts import Revert, from_json, to_json
from agent.files import write_atomically
from agent.logs import get_logger

log = get_logger()


class Reverting:
    """What goes back, and when, of one instance."""

    def __init__(self, state_dir: Path, name: str) -> None:
        self._path = state_dir / f"{name}.reverts.json"
        self.pending: tuple[Revert, ...] = ()
        try:
            self.pending = from_json(json.loads(self._path.read_text()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.error(
                "which changes were to end by themselves cannot be read: they last",
                problem=f"{self._path}: {error}",
            )

    async def keep(self, pending: tuple[Revert, ...]) -> None:
        """Remember these from now on. If they cannot be saved, a restart forgets them."""
        if pending == self.pending:
            return
        self.pending = pending
        text = json.dumps(to_json(pending), indent=1) + "\n"
        try:
            await asyncio.to_thread(write_atomically, self._path, text)
        except OSError as error:
            log.error(
                "which changes end by themselves cannot be saved: a restart forgets it",
                problem=f"{self._path}: {error}",
            )
