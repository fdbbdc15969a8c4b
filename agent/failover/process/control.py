"""Owns the socket of the failover process: one JSON object a line, one answer a line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agent.api.listen import UnixListener, listen_unix
from agent.api.peer import Access, peer_of
from agent.errors import RequestError, SteelyardError
from agent.failover.fitness import AgentWord
from agent.failover.model import Mode
from agent.failover.times import CLIENT_IDLE_S, LOOK_S
from agent.logs import get_logger

log = get_logger()

MAX_CLIENTS = 32
MAX_LINE_BYTES = 1 << 18  # a heartbeat with some thousand services
_VERBS = "status, agent, mode, claim, leave, reload"


class Office(Protocol):
    """What can be asked of the failover process; refusals are SteelyardErrors."""

    def status(self) -> dict[str, Any]:
        """Everything, as JSON."""
        ...

    def agent_says(self, word: AgentWord) -> None:
        """The agent's heartbeat."""
        ...

    async def set_mode(self, mode: Mode, instance: str | None) -> None:
        """What the operator wants of an instance; None: of all."""
        ...

    def claim(self, instance: str | None) -> None:
        """Be master now, of an instance; None: of all."""
        ...

    def excuse(self) -> None:
        """If this process is to leave: the agent has done what it can, nobody is waited for."""
        ...

    async def reload(self) -> None:
        """Take the configuration anew."""
        ...


@dataclass(slots=True)
class Door:
    """Where requests come in, and who is let in."""

    listener: UnixListener
    access: Access
    gid: int | None = None  # the group of the socket's file


async def serve(door: Door, office: Office) -> None:
    """Answer until cancelled."""
    clients: set[asyncio.StreamWriter] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(writer)
        try:
            async with asyncio.timeout(None) as patience:
                await _talk(reader, writer, office, door.access, patience, len(clients))
        except (OSError, TimeoutError, ValueError):
            pass  # it went away, fell asleep, or sent a line without end
        finally:
            clients.discard(writer)
            writer.close()

    async def serving() -> asyncio.Server:
        return await asyncio.start_unix_server(talk, sock=door.listener.sock, limit=MAX_LINE_BYTES)

    server, said = await serving(), ""
    try:
        while True:
            await asyncio.sleep(LOOK_S)
            if not door.listener.is_gone():
                continue
            try:
                lost = door.listener
                door.listener = await asyncio.to_thread(listen_unix, lost.path, door.gid)
            except SteelyardError as error:
                if str(error) != said:
                    log.error("the socket was removed and cannot be put back", problem=str(error))
                said = str(error)
                continue
            former, server, said = server, await serving(), ""
            former.close()  # who is connected stays so
            lost.close()
            log.warning("the socket was removed by somebody else, and is put back")
    finally:
        server.close()
        for writer in clients:
            writer.close()


async def _talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    office: Office,
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
        answer = refusal or await answer_to(line, office)
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
        error = RequestError(f"{MAX_CLIENTS} clients are here already", remedy="try again")
        return _error(error)
    return None


async def answer_to(line: bytes, office: Office) -> dict[str, Any]:
    """Do what a line asks for, and what to answer."""
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise RequestError("a request is one JSON object on a line")
        await _do(request, office)
        return office.status()
    except (ValueError, RecursionError) as error:
        return _error(RequestError(f"a request is one JSON object on a line: {error}"))
    except SteelyardError as error:
        return _error(error)
    except Exception as error:
        log.exception("a request failed")
        told = f"the request failed ({type(error).__name__})"
        return _error(RequestError(told, remedy="see the log: journalctl -u lb-agent-failover"))


async def _do(request: Mapping[str, Any], office: Office) -> None:
    match request:
        case {"do": "status"}:
            pass
        case {"do": "agent", "attached": bool(attached)}:
            services = _services(request.get("services", {}))
            office.agent_says(
                AgentWord(
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
            await office.set_mode(_mode(word), _instance(request))
        case {"do": "claim"}:
            office.claim(_instance(request))
        case {"do": "leave"}:
            office.excuse()
        case {"do": "reload"}:
            await office.reload()
        case _:
            raise RequestError(
                f"{json.dumps(request)[:200]} is no request",
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
    """What makes no sense vouches for nobody."""
    told = value if isinstance(value, dict) else {}
    return {str(name): at for name, at in told.items() if isinstance(at, float)}


def _error(error: SteelyardError) -> dict[str, Any]:
    told = {"message": error.message, "where": error.where, "remedy": error.remedy}
    return {"error": told}
