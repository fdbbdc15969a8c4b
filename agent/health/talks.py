"""The dialogues of the health checks that ``agent.health.prober`` does not make: what each kind of
check sends, and what it takes for an answer.

Each function takes a check, an address, a port and a Line, and returns whether the server is well,
and why. Errors of the network (OSError, TimeoutError, aiohttp's) are left to
``agent.health.probe``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import aiohttp
from yarl import URL

from agent import runas
from agent.errors import NetworkError
from agent.health import grpc
from agent.health.exchange import (
    MOST_BYTES,
    USER_AGENT,
    Verdict,
    exchange_of,
    in_words,
    payload,
)
from agent.model import Address, CheckKind, HealthCheck
from agent.state.segment import checksum

_PIECE = 4096
WARN_DAYS = 14  # before a certificate expires
_DAY_S = 86_400
# For each IP version: family and protocol, the types of an echo request and its reply, and the
# option (level and number) that reports errors to a raw socket: IP_RECVERR, IPV6_RECVERR.
_ICMP = {
    4: ((socket.AF_INET, socket.IPPROTO_ICMP), (8, 0), (socket.IPPROTO_IP, 11)),
    6: ((socket.AF_INET6, socket.IPPROTO_ICMPV6), (128, 129), (socket.IPPROTO_IPV6, 25)),
}
MOST_WORDS = 200  # characters of a command's output that are shown
COMMANDS_AT_ONCE = 32
_ECHO_BYTES = 16  # identifier and sequence number of an echo, and its data
# With these a server says that it is full; it is not ill.
FULL_STATUSES = (429, 503)
_PROMPT = "Hi"


class FullError(Exception):
    """The server answers, but takes no more requests now."""


class _Socket(socket.socket):
    """A socket that knows, even after it was closed, whether the other side has answered."""

    was_connected = False

    def is_connected(self) -> bool:
        with contextlib.suppress(OSError):  # not connected, or closed
            self.getpeername()
            self.was_connected = True
        return self.was_connected

    def close(self) -> None:
        self.is_connected()
        super().close()


@dataclass(slots=True)
class Line:
    """The connection of one probe. A host that accepts it is alive, however late its answer is."""

    end: _Socket | None = None
    heard: bool = False  # something came back other than a connection of ``end``
    vague: bool = False  # nothing came back, and that passes the check
    certificate_until: float | None = None  # seconds since the epoch

    def open(self, where: tuple[Any, ...]) -> socket.socket:
        """Return a socket for an address in the form that ``getaddrinfo`` returns."""
        family, kind, protocol = where[:3]
        self.end = _Socket(family, kind, protocol)
        return self.end

    def is_connected(self) -> bool:
        """Return whether the other side has answered."""
        return self.heard or (self.end is not None and self.end.is_connected())


type Talk = Callable[[HealthCheck, Address, int, Line], Awaitable[Verdict]]


# -- HTTPS


async def _https(check: HealthCheck, address: Address, port: int, line: Line) -> Verdict:
    """Judge by the status, as without TLS, and note when a verified certificate expires."""
    started = time.monotonic()
    end = await _connected(address, port, line)
    reader, writer = await asyncio.open_connection(
        sock=end,
        ssl=tls_context(check.verify_tls),
        server_hostname=check.host or str(address),
        limit=MOST_BYTES,
    )
    try:
        note = _certificate(line, writer.get_extra_info("peercert"))
        exchange = exchange_of(check, address, port, note)
        writer.write(exchange.request)
        received = b""
        while True:
            piece = await reader.read(_PIECE)
            received += piece
            verdict = exchange.judge(received, not piece, time.monotonic() - started)
            if verdict is not None:
                return verdict
    finally:
        writer.transport.abort()


def _certificate(line: Line, found: Mapping[str, Any] | None) -> str:
    """Note when a certificate expires; return a warning if that is soon.

    ``found``: nothing, or empty where nothing is verified.
    """
    if not found:
        return ""
    line.certificate_until = ssl.cert_time_to_seconds(found["notAfter"])
    return _expiry(line.certificate_until - time.time())


def _expiry(left_s: float) -> str:
    """Return a warning that a certificate expires soon, or "" if there is time."""
    if left_s > WARN_DAYS * _DAY_S:
        return ""
    days, hours = divmod(int(left_s) // 3600, 24)
    left = f"{days} d {hours} h" if days else f"{hours} h"
    return f"; its certificate expires in {left}"


async def _connected(address: Address, port: int, line: Line) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    end = line.open((family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
    try:
        end.setblocking(False)
        await asyncio.get_running_loop().sock_connect(end, (str(address), port))
    except BaseException:
        end.close()
        raise
    return end


class _Connector(aiohttp.TCPConnector):
    """Notes when the certificate of the server expires. Where an answer is short, its connection
    is given back before anybody can ask for it.
    """

    def __init__(self, line: Line, **options: Any) -> None:
        super().__init__(**options)
        self._line = line
        self.note = ""

    async def connect(self, *request: Any, **options: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*request, **options)
        if connection.transport is not None:
            found = connection.transport.get_extra_info("peercert")
            self.note = _certificate(self._line, found)
        return connection


@asynccontextmanager
async def _session(
    line: Line, check: HealthCheck, address: Address, port: int
) -> AsyncIterator[tuple[aiohttp.ClientSession, _Connector]]:
    """Make a session with a server, whose requests name only paths."""
    connector = _Connector(
        line,
        force_close=True,
        limit=1,
        ssl=tls_context(check.verify_tls) if check.tls else False,
        resolver=aiohttp.ThreadedResolver(),  # never used: addresses are numeric
        socket_factory=line.open,
    )
    literal = f"[{address}]" if address.version == 6 else str(address)
    named = {"Host": check.host} if check.host else {}
    async with aiohttp.ClientSession(
        base_url=f"{'https' if check.tls else 'http'}://{literal}:{port}",
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        headers={"User-Agent": USER_AGENT, "Accept": "*/*"} | named,
    ) as session:
        try:
            yield session, connector
        except aiohttp.ClientConnectorCertificateError as error:
            raise error.certificate_error from error  # in the words of ssl, as for https
        except aiohttp.ClientConnectorSSLError as error:
            raise error.os_error from error


@cache
def tls_context(verify: bool, protocol: str = "") -> ssl.SSLContext:
    """Return the context that all connections share which verify certificates, or which do not.

    ``protocol``: the only one that they speak, by its name in ALPN (RFC 7301); "": any.
    """
    context = ssl.create_default_context()
    if protocol:
        context.set_alpn_protocols([protocol])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# -- an engine


async def _completion(check: HealthCheck, address: Address, port: int, line: Line) -> Verdict:
    """Ask for one token for a tiny prompt (OpenAI's API). This shows that the engine itself works,
    not only its HTTP front end.
    """
    started = time.monotonic()
    # The certificate is for a name, and no name is resolved.
    name = check.host or str(address)
    async with _session(line, check, address, port) as (session, connector):
        model = check.model or await _first_model(session, name)
        is_chat = check.path.partition("?")[0].endswith("/chat/completions")
        asked: dict[str, object] = {"model": model, "max_tokens": 1, "temperature": 0}
        asked |= (
            {"messages": [{"role": "user", "content": _PROMPT}]} if is_chat else {"prompt": _PROMPT}
        )
        url = URL(check.path, encoded=True)  # exactly as the operator wrote it
        async with session.post(
            url, json=asked, allow_redirects=False, server_hostname=name
        ) as response:
            body = await response.content.read(MOST_BYTES)
            status = response.status
    if status in FULL_STATUSES:
        raise FullError(f"HTTP {status} in {_milliseconds(started)}: it takes no more now")
    if status != 200:
        return False, f"HTTP {status} in {_milliseconds(started)} for a completion"
    if not _choices(body):
        return False, f"an answer without a completion in {_milliseconds(started)}"
    return True, f"a token of {model} in {_milliseconds(started)}{connector.note}"


async def _first_model(session: aiohttp.ClientSession, name: str) -> str:
    async with session.get("/v1/models", allow_redirects=False, server_hostname=name) as response:
        body = await response.content.read(MOST_BYTES)
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(body)["data"][0]["id"])
    return "default"  # servers with one model mostly accept any name


def _choices(body: bytes) -> bool:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return len(json.loads(body)["choices"]) > 0
    return False


async def _grpc(check: HealthCheck, address: Address, port: int, line: Line) -> Verdict:
    started, note = time.monotonic(), ""
    end = await _connected(address, port, line)
    name = check.host or str(address)
    tls = tls_context(check.verify_tls, "h2") if check.tls else None
    reader, writer = await asyncio.open_connection(
        sock=end, ssl=tls, server_hostname=name if tls else None
    )
    try:
        note = _certificate(line, writer.get_extra_info("peercert"))
        authority = check.host or f"{address}:{port}"
        scheme = "https" if tls else "http"
        ok, detail = await grpc.check(reader, writer, (scheme, authority), check.grpc_service)
    finally:
        writer.transport.abort()
    return ok, f"{detail} in {_milliseconds(started)}{note if ok else ''}"


# -- datagrams


class _Reply(asyncio.DatagramProtocol):
    """The first datagram that comes back, or the error that the network reports."""

    def __init__(self) -> None:
        self.came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _addr: object) -> None:
        if not self.came.done():
            self.came.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.came.done():
            self.came.set_exception(exc)


async def _udp(check: HealthCheck, address: Address, port: int, line: Line) -> Verdict:
    """Wait for the expected reply; if none is expected, pass unless an ICMP error comes back."""
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    transport, reply = await loop.create_datagram_endpoint(_Reply, remote_addr=(str(address), port))
    try:
        transport.sendto(payload(check.send))
        if check.expect is None:
            with contextlib.suppress(TimeoutError):
                # A refusal comes within a round trip, so half of the timeout is enough.
                data = await asyncio.wait_for(asyncio.shield(reply.came), check.timeout_s / 2)
                return True, f"{len(data)} bytes in {_milliseconds(started)}"
            line.vague = True
            return True, "nothing refuses it"
        data = await reply.came
    finally:
        transport.close()
        reply.came.cancel()
    line.heard = True
    took = f"{len(data)} bytes in {_milliseconds(started)}"
    if payload(check.expect) in data:
        return True, took
    return False, f"{took}, without {check.expect!r}"


async def _dns(check: HealthCheck, address: Address, port: int, line: Line) -> Verdict:
    """Expect NOERROR for a query; it is repeated over TCP if the answer is truncated."""
    import dns.asyncquery
    import dns.exception
    import dns.message
    import dns.rcode

    started = time.monotonic()
    asked = dns.message.make_query(check.query, check.record)
    try:
        answer, by_tcp = await dns.asyncquery.udp_with_fallback(asked, str(address), port=port)
    except dns.exception.DNSException as error:
        line.heard = True
        return False, f"the answer is not DNS ({type(error).__name__})"
    line.heard = True
    code = dns.rcode.to_text(answer.rcode())
    detail = f"{code} in {_milliseconds(started)}{', by TCP' if by_tcp else ''}"
    return code == "NOERROR", detail


async def _ping(_check: HealthCheck, address: Address, _port: int, line: Line) -> Verdict:
    """Expect the reply to an echo request (RFC 792, RFC 4443)."""
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    (family, protocol), (asks, answers), errors = _ICMP[address.version]
    try:
        end = socket.socket(family, socket.SOCK_RAW, protocol)
    except PermissionError as error:
        raise NetworkError(
            f"no ping can be sent: {error}",
            where="this host",
            remedy="run the agent as root, or with CAP_NET_RAW",
        ) from error
    with end:
        end.setblocking(False)
        end.setsockopt(*errors, 1)
        end.connect((str(address), 0))  # so that it receives only packets from this address
        echo = secrets.token_bytes(_ECHO_BYTES)  # distinguishes our reply from others
        bare = struct.pack("!BBH", asks, 0, 0) + echo
        # The kernel fills in ICMPv6's checksum, which includes the addresses.
        check = checksum(bare) if address.version == 4 else 0
        await loop.sock_sendall(end, struct.pack("!BBH", asks, 0, check) + echo)
        while True:
            data = await loop.sock_recv(end, _PIECE)
            start = 4 * (data[0] & 0xF) if address.version == 4 else 0
            if data[start : start + 1] == bytes([answers]) and data[start + 4 :] == echo:
                line.heard = True
                return True, f"echo in {_milliseconds(started)}"


# -- a command

_commands: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


async def _exec(check: HealthCheck, address: Address, port: int, line: Line) -> Verdict:
    """Run a command and expect exit status 0. In the end it and all that it started are killed."""
    line.heard = True  # a command's failure does not mean that the server's host is silent
    started = time.monotonic()
    async with _turn():
        # A file, not a pipe: processes that the command leaves behind could hold a pipe open.
        with tempfile.TemporaryFile() as out:
            try:
                process = await asyncio.create_subprocess_exec(
                    *runas.words(check.command, check.run_as),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=_environment(check.run_as, address, port),
                    start_new_session=True,
                )
            except (OSError, LookupError) as error:
                return False, runas.refusal(check.command[0], check.run_as, error)
            try:
                status = await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            out.seek(0)
            output = out.read(MOST_WORDS * 4)
    words = output.decode(errors="replace").strip().partition("\n")[0][:MOST_WORDS]
    detail = f"exit status {status} in {_milliseconds(started)}" + (f": {words}" if words else "")
    return status == 0, detail


def _turn() -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    if loop not in _commands:
        _commands.clear()
        _commands[loop] = asyncio.Semaphore(COMMANDS_AT_ONCE)
    return _commands[loop]


def _environment(user: str | None, address: Address, port: int) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "HOME") if key in os.environ}
    return runas.environment(user, kept) | {
        "STEELYARD_ADDRESS": str(address),
        "STEELYARD_PORT": str(port),
    }


TALKS: Mapping[CheckKind, Talk] = {
    CheckKind.HTTPS: _https,
    CheckKind.COMPLETION: _completion,
    CheckKind.GRPC: _grpc,
    CheckKind.UDP: _udp,
    CheckKind.DNS: _dns,
    CheckKind.PING: _ping,
    CheckKind.EXEC: _exec,
}


def _milliseconds(started: float) -> str:
    return in_words(time.monotonic() - started)
