"""Owns the control socket of the failover process: each request and each answer is a JSON line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agent.api.listen import UnixListener, listen_unix
from agent.api.peer import Access, peer_of
from agent.errors import RequestError, SteelyardError
from agent.failover.fitness import AgentHeartbeat
from agent.failover.model import Mode
from agent.failover.times import CLIENT_IDLE_S, LOOK_S
from agent.logs import get_logger

log = get_logger()

MAX_CLIENTS = 32
MAX_LINE_BYTES = 1 << 18  # a heartbeat with some thousand services
_VERBS = "status, agent, mode, claim, leave, reload"


class RequestHandler(Protocol):
    """Carries out what clients ask of the failover process; refusals are SteelyardErrors."""

    def status(self) -> dict[str, Any]:
        """Return the whole status, as plain data for JSON."""
        ...

    def agent_says(self, word: AgentHeartbeat) -> None:
        """Take in a heartbeat of the agent."""
        ...

    async def set_mode(self, mode: Mode, instance: str | None) -> None:
        """Set the mode of an instance; None: of all instances."""
        ...

    def claim(self, instance: str | None) -> None:
        """Become master of an instance; None: of all instances."""
        ...

    def excuse(self) -> None:
        """If this process is leaving, end its wait: the agent has done what it can."""
        ...

    async def reload(self) -> None:
        """Read the configuration again."""
        ...


@dataclass(slots=True)
class ControlSocket:
    """The socket for requests, and who may use it."""

    listener: UnixListener
    access: Access
    gid: int | None = None  # the group of the socket file


async def serve(control_socket: ControlSocket, handler: RequestHandler) -> None:
    """Answer requests until cancelled."""
    clients: set[asyncio.StreamWriter] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(writer)
        try:
            async with asyncio.timeout(None) as patience:
                await _talk(reader, writer, handler, control_socket.access, patience, len(clients))
        except (OSError, TimeoutError, ValueError):
            pass  # the client went away, was silent for too long, or sent an endless line
        finally:
            clients.discard(writer)
            writer.close()

    async def serving() -> asyncio.Server:
        return await asyncio.start_unix_server(
            talk, sock=control_socket.listener.sock, limit=MAX_LINE_BYTES
        )

    server, logged = await serving(), ""
    try:
        while True:
            await asyncio.sleep(LOOK_S)
            if not control_socket.listener.is_gone():
                continue
            try:
                lost = control_socket.listener
                control_socket.listener = await asyncio.to_thread(
                    listen_unix, lost.path, control_socket.gid
                )
            except SteelyardError as error:
                if str(error) != logged:
                    log.error("the socket was removed and cannot be put back", problem=str(error))
                logged = str(error)
                continue
            former, server, logged = server, await serving(), ""
            former.close()  # clients that are connected stay so
            lost.close()
            log.warning("the socket was removed by somebody else, and is put back")
    finally:
        server.close()
        for writer in clients:
            writer.close()


async def _talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handler: RequestHandler,
    access: Access,
    patience: asyncio.Timeout,
    clients: int,
) -> None:
    loop = asyncio.get_running_loop()
    refusal = _refusal(writer, access, clients)
    while True:
        patience.reschedule(loop.time() + CLIENT_IDLE_S)
        line = await reader.readline()
        if not line:
            return
        answer = refusal or await answer_to(line, handler)
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        if refusal:
            return


def _refusal(writer: asyncio.StreamWriter, access: Access, clients: int) -> dict[str, Any] | None:
    peer = peer_of(writer.get_extra_info("socket"))
    if not access.allows(peer):
        error = RequestError(
            f"user {peer.uid} may not talk to the failover process",
            remedy="use sudo, or be a member of the configuration's socket_group",
        )
        return _error(error)
    if clients > MAX_CLIENTS:
        error = RequestError(f"{MAX_CLIENTS} clients are connected already", remedy="try again")
        return _error(error)
    return None


async def answer_to(line: bytes, handler: RequestHandler) -> dict[str, Any]:
    """Do what a line asks for, and return the answer."""
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise RequestError("a request is one JSON object on a line")
        await _do(request, handler)
        return handler.status()
    except (ValueError, RecursionError) as error:
        return _error(RequestError(f"a request is one JSON object on a line: {error}"))
    except SteelyardError as error:
        return _error(error)
    except Exception as error:
        log.exception("a request failed")
        message = f"the request failed ({type(error).__name__})"
        return _error(RequestError(message, remedy="see the log: journalctl -u lb-agent-failover"))


async def _do(request: Mapping[str, Any], handler: RequestHandler) -> None:
    match request:
        case {"do": "status"}:
            pass
        case {"do": "agent", "attached": bool(attached)}:
            services = _services(request.get("services", {}))
            handler.agent_says(
                AgentHeartbeat(
                    attached,
                    str(request.get("why", "")),
                    services,
                    ready=request.get("ready", True) is True,
                    waits_for=str(request.get("waits_for", "")),
                    cut_off=request.get("cut_off", False) is True,
                    hands_over=request.get("hands_over", False) is True,
                    vouchers=_vouchers(request.get("vouchers", {})),
                )
            )
        case {"do": "mode", "mode": str(word)}:
            await handler.set_mode(_mode(word), _instance(request))
        case {"do": "claim"}:
            handler.claim(_instance(request))
        case {"do": "leave"}:
            handler.excuse()
        case {"do": "reload"}:
            await handler.reload()
        case _:
            raise RequestError(
                f"{json.dumps(request)[:200]} is not a valid request",
                remedy=f"set 'do' to one of: {_VERBS}; 'agent' needs 'attached', 'mode' a 'mode'",
            )


def _instance(request: Mapping[str, Any]) -> str | None:
    name = request.get("instance")
    if name is not None and not isinstance(name, str):
        raise RequestError("'instance' is not a name", remedy="leave it out for all instances")
    return name


def _mode(word: str) -> Mode:
    try:
        return Mode(word)
    except ValueError as error:
        modes = ", ".join(mode.value for mode in Mode)
        raise RequestError(f"there is no mode {word!r}", remedy=f"use one of: {modes}") from error


def _services(value: object) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, counts in value.items() if isinstance(value, dict) else [("", value)]:
        match counts:
            case [int(up), int(every)]:
                found[str(name)] = (up, every)
            case _:
                raise RequestError(
                    "'services' does not say how many backends are up",
                    remedy='write {"name": [up, all]}',
                )
    return found


def _vouchers(value: object) -> dict[str, float]:
    """Return the valid entries; what makes no sense is left out."""
    entries = value if isinstance(value, dict) else {}
    return {str(name): at for name, at in entries.items() if isinstance(at, float)}


def _error(error: SteelyardError) -> dict[str, Any]:
    fields = {"message": error.message, "where": error.where, "remedy": error.remedy}
    return {"error": fields}
