"""Owns the TCP port of the agent check, which sends one line to each client that connects.

The protocol is HAProxy's: https://docs.haproxy.org, "agent-check". What a client sends is ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from agent.errors import ListenError

MOST_CONNECTIONS = 64
PATIENCE_S = 2.0  # for a client that does not take its line, or does not leave
_MOST_READ_BYTES = 4096


class AgentCheck:
    """Sends ``line()`` to each client."""

    def __init__(self, line: Callable[[], str], patience_s: float = PATIENCE_S) -> None:
        self._line = line
        self._patience_s = patience_s
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; raises ListenError when it is taken."""
        try:
            self._server = await asyncio.start_server(
                self._serve, host, port, backlog=MOST_CONNECTIONS, limit=_MOST_READ_BYTES
            )
        except OSError as error:
            raise ListenError(
                f"cannot listen for agent checks: {error.strerror or error}",
                where=f"{host}:{port}",
                remedy="choose a free port with --agent-check",
            ) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop taking clients."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(self._patience_s):
                writer.write(self._line().encode())
                await writer.drain()
                writer.write_eof()
                # If the connection were closed with unread data of the client, the line might get
                # lost.
                while await reader.read(_MOST_READ_BYTES):
                    pass
        except (TimeoutError, OSError):
            pass  # the client left early, or did not leave
        finally:
            self._open -= 1
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
