"""Probes one server once, on a short connection of its own, and describes the outcome."""

from __future__ import annotations

import errno
import os
import ssl
import time

import aiohttp

from agent.errors import NetworkError
from agent.health.patience import Patience
from agent.health.rules import ProbeResult
from agent.health.talks import TALKS, FullError, Line
from agent.model import Address, CheckKind, HealthCheck

# These are troubles of this host, not of the server, and must not lead to a verdict about it.
LOCAL_ERRNOS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
)
# With these, nothing has come back from the server's host itself.
SILENT_ERRNOS = frozenset((errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ETIMEDOUT))
# With these, there is no route to the server, mostly because this host's link is down.
UNSENT_ERRNOS = frozenset((errno.ENETUNREACH, errno.ENETDOWN))
# These checks take the time of some work at the server, not of a round trip.
_WORKS = (CheckKind.COMPLETION, CheckKind.EXEC)
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
    """Check ``address`` once, within the check's timeout, which ``patience`` may extend.

    Whatever the server or the network does is a result. NetworkError is raised only if this host
    could not ask at all (out of file descriptors, memory or ports).
    """
    port = check.port or default_port
    limit_s = check.answer_within_s if check.kind is CheckKind.COMPLETION else check.timeout_s
    started = time.monotonic()
    line, silent, unsent, busy = Line(), False, False, False
    try:
        async with patience.timeout(limit_s) as wait:
            ok, detail = await TALKS[check.kind](check, address, port, line)
    except FullError as error:
        ok, detail, busy = False, str(error), True
    except TimeoutError:
        silent = not line.is_connected()
        busy = not silent
        ok, detail = False, f"no answer within {duration(limit_s)}"
        if wait.granted_s:
            detail += f" and {duration(round(wait.granted_s, 1))} in which this agent had no CPU"
    except ssl.SSLError as error:
        ok, detail = False, tls_words(error)
    except aiohttp.ServerDisconnectedError:
        ok, detail = False, "connection closed before an answer"
    except OSError as error:  # also aiohttp's ClientConnectorError and ClientOSError
        silent, unsent = error.errno in SILENT_ERRNOS, error.errno in UNSENT_ERRNOS
        ok, detail = False, _os_words(error)
    except aiohttp.ClientError:
        ok, detail = False, "the answer is not HTTP"
    took_ms = (time.monotonic() - started) * 1000 if check.kind not in _WORKS else None
    return ProbeResult(
        ok,
        detail,
        took_ms,
        silent,
        unsent,
        busy,
        line.vague,
        certificate_until=line.certificate_until,
    )


def _os_words(error: OSError) -> str:
    # asyncio raises an OSError without errno after attempts at several addresses; ours is always
    # one address.
    number = error.errno or 0
    if number in LOCAL_ERRNOS:
        raise NetworkError(
            f"a health check could not be made: {os.strerror(number)}",
            where="this host",
            remedy="give the agent more file descriptors (LimitNOFILE=), ports or memory",
        ) from error
    return WORDS.get(number) or (os.strerror(number).lower() if number else "connection failed")


def tls_words(error: Exception) -> str:
    """Return what went wrong with TLS, in words for the operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS handshake failed: {error.reason.lower().replace('_', ' ')}"
    return "TLS handshake failed"


def duration(seconds: float) -> str:
    """Return a time limit in words for the operator."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:g} s"
