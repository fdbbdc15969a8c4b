"""Probes one server once: a short connection of its own, and what came of it in words."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import aiohttp
from yarl import URL

from agent.errors import NetworkError
from agent.health.patience import Patience
from agent.health.rules import ProbeResult
from agent.model import Address, CheckKind, HealthCheck

USER_AGENT = "steelyard-health-check"

# This host's troubles, not the server's: no verdict about it may come of them.
LOCAL_ERRNOS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
)
# Nothing came back from the server's host itself.
SILENT_ERRNOS = frozenset((errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ETIMEDOUT))
# There is no way to the server: mostly because this host's link is down.
UNSENT_ERRNOS = frozenset((errno.ENETUNREACH, errno.ENETDOWN))
WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection closed before an answer",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network unreachable",
    errno.ENETDOWN: "network is down",
    errno.ETIMEDOUT: "connection timed out",
}


async def probe(
    check: HealthCheck, address: Address, default_port: int, patience: Patience
) -> ProbeResult:
    """Check ``address`` once, within the check's timeout by the clock of ``patience``.

    Whatever the server or the network does is a result. NetworkError is raised only where this
    host could not ask at all (out of file descriptors, memory or ports).
    """
    port = check.port or default_port
    talk = _tcp if check.kind is CheckKind.TCP else _http
    started = time.monotonic()
    line, silent, unsent = _Line(), False, False
    try:
        async with patience.timeout(check.timeout_s) as wait:
            ok, detail = await talk(check, address, port, line)
    except TimeoutError:
        silent = not line.is_connected()
        ok, detail = False, f"no answer within {duration(check.timeout_s)}"
        if wait.granted_s:
            detail += f" and {duration(round(wait.granted_s, 1))} in which this agent had no CPU"
    except aiohttp.ClientConnectorCertificateError as error:
        ok, detail = False, tls_words(error.certificate_error)
    except aiohttp.ClientSSLError as error:
        ok, detail = False, tls_words(error.os_error)
    except ssl.SSLError as error:
        ok, detail = False, tls_words(error)
    except aiohttp.ServerDisconnectedError:
        ok, detail = False, "connection closed before an answer"
    except OSError as error:  # also aiohttp's ClientConnectorError and ClientOSError
        silent, unsent = error.errno in SILENT_ERRNOS, error.errno in UNSENT_ERRNOS
        ok, detail = False, _os_words(error)
    except aiohttp.ClientError:
        ok, detail = False, "the answer is not HTTP"
    return ProbeResult(ok, detail, (time.monotonic() - started) * 1000, silent, unsent)


class _Socket(socket.socket):
    """A socket of which is known, after its end too, whether the other side has answered."""

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
class _Line:
    """The connection of one probe: a host that takes it lives, however late its answer is."""

    end: _Socket | None = None

    def open(self, where: tuple[Any, ...]) -> socket.socket:
        """A socket for an address as ``getaddrinfo`` has it."""
        family, kind, protocol = where[:3]
        self.end = _Socket(family, kind, protocol)
        return self.end

    def is_connected(self) -> bool:
        return self.end is not None and self.end.is_connected()


type Talk = Callable[[HealthCheck, Address, int, _Line], Awaitable[tuple[bool, str]]]


async def _tcp(_check: HealthCheck, address: Address, port: int, _line: _Line) -> tuple[bool, str]:
    started = time.monotonic()
    _, writer = await asyncio.open_connection(str(address), port)
    writer.transport.abort()  # nothing was written, so this is an ordinary close, only at once
    return True, f"connected in {_milliseconds(started)}"


async def _http(check: HealthCheck, address: Address, port: int, line: _Line) -> tuple[bool, str]:
    started = time.monotonic()
    literal = f"[{address}]" if address.version == 6 else str(address)
    # The path goes out exactly as the operator wrote it.
    url = URL(f"{check.kind.value}://{literal}:{port}{check.path}", encoded=True)
    headers = {"User-Agent": USER_AGENT, "Accept": "*/*"}
    if check.host is not None:
        headers["Host"] = check.host
    connector = aiohttp.TCPConnector(
        force_close=True,
        limit=1,
        ssl=tls_context(check.verify_tls) if check.kind is CheckKind.HTTPS else True,
        resolver=aiohttp.ThreadedResolver(),  # never used: the address is one
        socket_factory=line.open,
    )
    async with (
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
        ) as session,
        session.request(
            check.method,
            url,
            headers=headers,
            allow_redirects=False,
            server_hostname=check.host if check.kind is CheckKind.HTTPS else None,
        ) as response,
    ):
        # The status is the verdict; a body, however long, is not waited for.
        status = response.status
    ok = any(low <= status <= high for low, high in check.expect_status)
    detail = f"HTTP {status} in {_milliseconds(started)}"
    return ok, detail if ok else f"{detail}, expected {_ranges(check.expect_status)}"


@cache
def tls_context(verify: bool) -> ssl.SSLContext:
    """One context for all connections that verify certificates, one for those that do not."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _os_words(error: OSError) -> str:
    # asyncio gives several attempts at once without a number; ours is always one address.
    number = error.errno or 0
    if number in LOCAL_ERRNOS:
        raise NetworkError(
            f"a health check could not be made: {os.strerror(number)}",
            where="this host",
            remedy="give the agent more file descriptors (LimitNOFILE=), ports or memory",
        ) from error
    return WORDS.get(number) or (os.strerror(number).lower() if number else "connection failed")


def tls_words(error: Exception) -> str:
    """What went wrong with TLS, as an operator reads it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS handshake failed: {error.reason.lower().replace('_', ' ')}"
    return "TLS handshake failed"


def _ranges(ranges: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _milliseconds(started: float) -> str:
    elapsed_ms = (time.monotonic() - started) * 1000
    return f"{elapsed_ms:.0f} ms" if elapsed_ms >= 1 else "under 1 ms"


def duration(seconds: float) -> str:
    """A time limit, as an operator reads it."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:g} s"
