"""Owns the changes that end by themselves, also over restarts of the agent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from agent.config.edit import Edit
from agent.config.reverts import Revert, from_json, planned, to_json, undo
from agent.errors import SteelyardError
from agent.files import write_atomically
from agent.logs import get_logger
from agent.model import BackendRef, Config

log = get_logger()

LOOK_S = 1.0
AGAIN_S = 30.0


class Reverting:
    """What goes back, and when, of one instance.

    ``running`` returns what runs. ``edit(edit, why)`` changes it, and raises SteelyardError.
    """

    def __init__(
        self,
        path: Path,
        running: Callable[[], Config],
        edit: Callable[[Edit, str], Awaitable[object]],
    ) -> None:
        self._path, self._running, self._edit = path, running, edit
        self.pending: tuple[Revert, ...] = ()
        try:
            self.pending = from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.error(
                "which changes were to end by themselves cannot be read: they last",
                problem=f"{path}: {error}",
            )

    async def begin(
        self, before: Config, edits: Sequence[Edit], for_s: float | None
    ) -> tuple[Revert, ...]:
        """Remember what would come back after edits of what runs ``before``, besides all that is
        pending: if the agent dies before or after they are made, none of it lasts for ever. What
        was not made does not come back, because something else runs.

        ``for_s`` None: they are to last. Return what to remember once they are made.
        """
        after = planned(self.pending, before, edits, for_s, time.time())
        await self._keep((*self.pending, *(each for each in after if each not in self.pending)))
        return after

    async def settle(self, pending: tuple[Revert, ...]) -> None:
        """Remember just this, now that edits were made or refused."""
        await self._keep(pending)

    async def run(self) -> None:
        """Undo changes when their time is over, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for each in self.pending:
                if each.at <= time.time():
                    await self._end(each)

    async def _end(self, revert: Revert) -> None:
        """Undo a change whose time is over, unless somebody has made another one since."""
        about = {
            "backend": str(BackendRef(revert.service, revert.backend)), "field": revert.field,
        }  # fmt: skip
        again: tuple[Revert, ...] = ()
        try:
            edit = undo(self._running(), revert)
            if edit is None:
                why = "it was changed again meanwhile, or is gone"
                log.info("a change for a time is left as it is", why=why, **about)
            else:
                await self._edit(edit, f"{revert.field} of {revert.backend}: the time is over")
        except SteelyardError as error:
            log.error("a change cannot be undone yet", problem=str(error), **about)
            again = (replace(revert, at=time.time() + AGAIN_S),)
        except Exception:  # the task's root: a defect here must not end the agent
            log.exception("a change cannot be undone", **about)
            again = (replace(revert, at=time.time() + AGAIN_S),)
        # Others may have come since: while the change was undone, say.
        left = tuple(each for each in self.pending if each is not revert)
        await self._keep((*left, *again))

    async def _keep(self, pending: tuple[Revert, ...]) -> None:
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
