"""Asks what a first configuration needs, finds what it can by itself, and writes the file.

``agent.config.draft`` decides what is proposed and written.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from agent.config import draft as drafts
from agent.config.advice import HostFacts, advice
from agent.config.draft import Draft, Seen, Server
from agent.config.load import parse
from agent.errors import ConfigError
from agent.files import write_atomically
from agent.hostfacts import look
from agent.model import Address, Forward, TelemetryKind

CONNECT_S = 1.0
ANSWER_S = 2.0
TCP = "tcp"  # a check that only connects
_MOST_BYTES = 1 << 20
_MOST_NEIGHBOURS = 64
_ROUTES = Path("/proc/net/route")
_NEIGHBOURS = Path("/proc/net/arp")
_SERVER = re.compile(
    r"(?:([a-z0-9][a-z0-9._-]{0,63})=)?(?:\[([^\]]+)\]|([^\[\]]+?))(?::(\d{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says; None or empty: it has to be found or asked."""

    interface: str | None
    vip: str | None
    port: int | None
    servers: tuple[str, ...]
    forward: str | None
    health: str | None
    output: Path


class Ask(Protocol):
    """Asks a person one question, again until the answer can be converted.

    ``convert`` raises ConfigError for an answer that makes no sense. An empty proposal: none.
    """

    def __call__[T](
        self, what: str, explanation: str, proposal: str, convert: Callable[[str], T], /
    ) -> T: ...


def init(given: Given, say: Callable[[str], None], ask: Ask) -> None:
    """Write a configuration. Raises ConfigError if the file exists, or an option makes no sense."""
    if given.output.exists():
        raise ConfigError(
            "there is a configuration already, and it is kept",
            where=str(given.output),
            remedy="write elsewhere (--output), or move the file away",
        )
    here = look()
    draft = _answers(given, here, say, ask)
    if problem := drafts.objection(draft, here):
        raise ConfigError(problem, where="the answers", remedy="answer again, or give the options")
    text = drafts.text(draft)
    config = parse(text, str(given.output))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.output, text)
    given.output.chmod(0o640)
    say(f"\n{given.output} is written:\n\n{text}")
    for each in advice(config, here):
        say(f"warning: {each}")
    for line in _next(draft, given.output):
        say(line)


def _answers(given: Given, here: HostFacts, say: Callable[[str], None], ask: Ask) -> Draft:
    interface = given.interface or ask(
        "interface",
        "The interface on which clients' packets come in. It gets the program and the VIP.",
        default_interface() or "",
        lambda words: _interface(words, here),
    )
    vip = _given(given.vip, _address) or ask(
        "VIP",
        "The address that clients will connect to. No host may have it yet: the agent puts it on "
        "the interface.",
        "",
        _address,
    )
    servers = tuple(map(_server, given.servers)) or _asked_servers(say, ask)
    seen = asyncio.run(probe_all(servers))
    for server, found in zip(servers, seen, strict=True):
        say(f"  {server.address}: {_shown(server, found)}")
    servers = tuple(
        server if server.port is not None else replace(server, port=found.port)
        for server, found in zip(servers, seen, strict=True)
    )
    port = given.port or ask(
        "port", "The port that clients connect to.", str(drafts.proposed_port(seen)), _port
    )
    proposal, why = drafts.proposed_forward(vip, port, servers)
    modes = "".join(f"\n  {mode.value:8} {words}" for mode, words in drafts.FORWARD.items())
    forward = _given(given.forward, _mode) or ask(
        "forward", f"How packets reach the servers. {why}{modes}", proposal.value, _mode
    )
    healthy = all(found.health for found in seen)
    health = _given(given.health, _health) or ask(
        "health",
        "How a server is checked: a path that is asked for by HTTP, or tcp for a connection alone.",
        "/health" if healthy else TCP,
        _health,
    )
    path = None if health == TCP else health
    return Draft(interface, vip, port, servers, forward, path, _engine(seen))


def _given[T](words: str | None, convert: Callable[[str], T]) -> T | None:
    return None if words is None else convert(words)


def _asked_servers(say: Callable[[str], None], ask: Ask) -> tuple[Server, ...]:
    found: list[Server] = []
    if near := neighbours():
        say(f"looking for engines at {len(near)} neighbours")
        servers = [Server(address) for address in near]
        for server, seen in zip(servers, asyncio.run(probe_all(servers)), strict=True):
            if seen.engine is not None:
                found.append(replace(server, port=seen.port))
    return ask(
        "servers",
        "The servers' addresses, separated by spaces; with a port if it is not found by itself, as "
        "in 10.0.0.21:8000, and a name if you like, as in gpu-1=10.0.0.21.",
        " ".join(map(_endpoint, found)),
        _servers,
    )


def _engine(seen: Sequence[Seen]) -> TelemetryKind | None:
    """Return the engine, if it is the same at all servers."""
    kinds = {each.engine for each in seen}
    return kinds.pop() if len(kinds) == 1 else None


def _shown(server: Server, found: Seen) -> str:
    if found.port is None and server.port is None:
        ports = ", ".join(map(str, drafts.ENGINE_PORTS))
        return f"nothing listens on the ports that engines have ({ports})"
    port = found.port or server.port
    what = found.engine.value if found.engine else "no engine that is known by its metrics"
    if found.port is None:
        return f"port {port} does not answer"
    return f"port {port} answers: {what}" + (", /health is good" if found.health else "")


def _next(draft: Draft, path: Path) -> Iterable[str]:
    yield "next:"
    for command in drafts.on_servers(draft):
        yield f"  on each server:  sudo {command}"
    if draft.forward is Forward.NAT:
        yield "  on each server:  make this balancer the gateway of the way back to clients"
    default = path == Path("/etc/steelyard/agent.yaml")
    start = "systemctl enable --now lb-agent" if default else f"lb-agent run --config {path}"
    yield f"  here:            sudo {start}"
    yield "  then:            sudo lbctl backend list"
    host = f"[{draft.vip}]" if draft.vip.version == 6 else str(draft.vip)
    yield f"  from a client:   curl http://{host}:{draft.port}/"


# -- what is found


def default_interface() -> str | None:
    """Return the interface of the IPv4 default route, or the only one there is."""
    with contextlib.suppress(OSError):
        for line in _ROUTES.read_text().splitlines()[1:]:
            name, destination, *_ = line.split()
            if destination == "00000000":
                return name
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    return others[0] if len(others) == 1 else None


def neighbours() -> tuple[Address, ...]:
    """Return the IPv4 neighbours whose MAC address the kernel knows."""
    found = []
    with contextlib.suppress(OSError):
        for line in _NEIGHBOURS.read_text().splitlines()[1:]:
            address, _, flags, *_ = line.split()
            if int(flags, 16) & 0x2:  # complete
                found.append(ip_address(address))
    return tuple(sorted(found))[:_MOST_NEIGHBOURS]


async def probe_all(servers: Sequence[Server]) -> list[Seen]:
    """Look at all servers at once."""
    return await asyncio.gather(*(_probe(server) for server in servers))


async def _probe(server: Server) -> Seen:
    ports = drafts.ENGINE_PORTS if server.port is None else (server.port,)
    open_ = await asyncio.gather(*(_connects(server.address, port) for port in ports))
    listening = [port for port, answers in zip(ports, open_, strict=True) if answers]
    if not listening:
        return Seen()
    for port in listening:
        engine = drafts.engine_of((await _get(server.address, port, "/metrics"))[1])
        if engine is not None:
            return Seen(port, await _is_healthy(server.address, port), engine)
    return Seen(listening[0], await _is_healthy(server.address, listening[0]))


async def _is_healthy(address: Address, port: int) -> bool:
    return (await _get(address, port, "/health"))[0] == 200


async def _connects(address: Address, port: int) -> bool:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(str(address), port)
        writer.close()
        return True
    return False


async def _get(address: Address, port: int, path: str) -> tuple[int, bytes]:
    """Return the status and the body of a page; 0 and nothing: there is no answer."""
    import aiohttp

    host = f"[{address}]" if address.version == 6 else str(address)
    limit = aiohttp.ClientTimeout(total=ANSWER_S)
    with contextlib.suppress(OSError, TimeoutError, aiohttp.ClientError):
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.get(f"http://{host}:{port}{path}", allow_redirects=False) as answer,
        ):
            return answer.status, await answer.content.read(_MOST_BYTES)
    return 0, b""


# -- what is answered


def _refused(what: str, why: str, remedy: str) -> ConfigError:
    return ConfigError(f"{what!r} {why}", where="the answers", remedy=remedy)


def _address(words: str) -> Address:
    try:
        return ip_address(words.strip())
    except ValueError:
        raise _refused(words, "is not an IP address", "give one such as 192.0.2.10") from None


def _server(words: str) -> Server:
    match = _SERVER.fullmatch(words)
    remedy = "give an address such as 10.0.0.21, 10.0.0.21:8000 or gpu-1=[2001:db8::21]:8000"
    if match is None:
        raise _refused(words, "is not a server", remedy)
    name, v6, other, port = match.groups()
    try:
        address = ip_address(v6 or other)
    except ValueError:
        # Without brackets, an IPv6 address ends in what looks like a port.
        try:
            address, port = ip_address(words.partition("=")[2] or words), None
        except ValueError:
            raise _refused(words, "is not a server", remedy) from None
    return Server(address, _port(port) if port else None, name)


def _port(words: str) -> int:
    if not words.strip().isdecimal() or not 0 < int(words) < 65_536:
        raise _refused(words, "is not a port", "give a number from 1 to 65535")
    return int(words)


def _mode(words: str) -> Forward:
    known = [mode.value for mode in Forward]
    if words not in known:
        raise _refused(words, "is not a forwarding mode", f"give one of {', '.join(known)}")
    return Forward(words)


def _servers(words: str) -> tuple[Server, ...]:
    found = tuple(map(_server, words.split()))
    if not found:
        raise _refused(words, "names no server", "give at least one address")
    return found


def _interface(words: str, here: HostFacts) -> str:
    if words not in here.interfaces:
        known = ", ".join(sorted(here.interfaces))
        raise _refused(words, "is no interface of this host", f"there are {known}")
    return words


def _health(words: str) -> str:
    if words != TCP and not words.startswith("/"):
        raise _refused(words, "is neither tcp nor a path", "give a path such as /health")
    return words


def _endpoint(server: Server) -> str:
    host = f"[{server.address}]" if server.address.version == 6 else str(server.address)
    return host if server.port is None else f"{host}:{server.port}"
