"""Wires `lb-agent api` together: asks the agent where to listen, and serves until SIGTERM.

The agent's socket is all that it needs: it reads no configuration and has no rights of its own. It
goes on while the agent is away, and says so to its clients.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import aiohttp

from agent import guarded
from agent.api.listen import listen_tcp
from agent.errors import SteelyardError
from agent.logs import get_logger
from agent.notify import Notifier, catch_stop, work_until
from agent.remote import tls
from agent.remote.forward import Forwarder
from agent.remote.tls import Settings

log = get_logger()

LOOK_S = 2.0  # between looks at the settings and the files
LOGGED_EVERY_S = 10.0  # clients that are refused in the handshake
_ASK = aiohttp.ClientTimeout(total=5.0)
# Nobody gets in without a certificate, so these bound mistakes, and whoever never ends a handshake.
LIMITS = guarded.Limits(most=256, of_a_source=32, read_s=None, awaits_head=False)


class Remote:
    """The listener. ``look`` brings it to what the agent wants."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forwarder = Forwarder(path)
        self._serving: guarded.TlsListening | None = None
        self._sock: socket.socket | None = None
        self._current: tuple[Settings, object] | None = None  # what is served, and its files
        self._said = ""  # the last problem
        self._refused, self._logged_at = 0, -LOGGED_EVERY_S

    @property
    def port(self) -> int | None:
        """The port on which it listens."""
        return None if self._sock is None else int(self._sock.getsockname()[1])

    async def look(self) -> None:
        """Ask the agent what is wanted, and do it. What cannot be done is logged once."""
        try:
            wanted = await self._asked()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._say(f"the agent does not answer: {error}")
            return
        try:
            await self._bring(wanted)
        except SteelyardError as error:
            self._say(str(error))

    async def _asked(self) -> Settings | None:
        """Return what the agent wants to be served; None: nothing, or it does not know us."""
        session = self._forwarder.session
        try:
            async with session.get("http://agent/v1/api", timeout=_ASK) as answer:
                if answer.status in (403, 404):
                    self._say(
                        "the agent's configuration has no `api.listen`, or another `api.user`"
                    )
                    return None
                answer.raise_for_status()
                return tls.settings_of(await answer.json())
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PermissionError):
                self._say("this user may not open the agent's socket: see `api.user`")
                return None
            raise

    async def _bring(self, wanted: Settings | None) -> None:
        if wanted is None:
            if self._current is not None:
                log.info("the API is not served over TLS any more")
                await self.stop()
            return
        files = await asyncio.to_thread(tls.written, wanted)
        if self._current == (wanted, files):
            self._said = ""
            return
        made = await asyncio.to_thread(tls.context, wanted)
        before = None if self._current is None else self._current[0]
        is_there = before is not None and (before.host, before.port) == (wanted.host, wanted.port)
        if self._serving is not None and is_there:
            await self._serving.renew(self._forwarder.app(), made)
        else:
            if before is not None and before.port == wanted.port:
                await self.stop()  # nobody else can have the port of 0.0.0.0 at one address
            sock = listen_tcp((wanted.host, wanted.port), "the API", "api.listen")
            await self.stop()
            self._sock = sock
            self._serving = await guarded.serve_tls(
                self._forwarder.app(), sock, made, LIMITS, self._refuse
            )
        self._current, self._said = (wanted, files), ""
        log.info("the API is served over TLS", address=wanted.host, port=self.port)

    async def stop(self) -> None:
        """Listen no more, and let the requests in progress end."""
        if self._serving is not None:
            await self._serving.stop()
        if self._sock is not None:
            self._sock.close()
        self._serving = self._sock = self._current = None

    async def close(self) -> None:
        """Stop, and leave the agent."""
        await self.stop()
        await self._forwarder.close()

    def _say(self, problem: str) -> None:
        if problem != self._said:
            log.warning("the API is not served as it should be", problem=problem)
        self._said = problem

    def _refuse(self, source: str, error: OSError) -> None:
        """Log a client whose handshake failed; strangers must not fill the log."""
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at < LOGGED_EVERY_S:
            return
        log.info(
            "a client was refused", source=source, why=tls.refusal(error), since_then=self._refused
        )
        self._refused, self._logged_at = 0, now


async def run(path: Path) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = catch_stop()
    notifier = Notifier.from_environment(os.environ, os.getpid())
    remote = Remote(path)
    try:
        await remote.look()
        await work_until(stop, notifier, {"settings": _keep(remote)})
    finally:
        await remote.close()


async def _keep(remote: Remote) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            await remote.look()
        except Exception:  # the task's root: a defect here must not end the process
            log.exception("looking for new settings broke; it is tried again")
