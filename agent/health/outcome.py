"""Decides what an error, or the end of a time limit, says about a server, and in which words."""

from __future__ import annotations

import errno
import os
import ssl

from agent.errors import NetworkError
from agent.health.rules import ProbeResult

# These are troubles of this host, not of the server, and must not lead to a verdict about it.
LOCAL_ERRNOS = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
)
# With these, nothing has come back from the server's host itself.
SILENT_ERRNOS = frozenset((errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ETIMEDOUT))
# With these, there is no route to the server, mostly because this host's link is down.
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


def failed(error: OSError, took_ms: float | None) -> ProbeResult:
    """Return the result of a check that an error of the network has ended.

    NetworkError is raised if this host could not ask at all (out of file descriptors, memory or
    ports).
    """
    silent, unsent = error.errno in SILENT_ERRNOS, error.errno in UNSENT_ERRNOS
    return ProbeResult(False, _os_words(error), took_ms, silent, unsent)


def unanswered(
    limit_s: float, granted_s: float, is_connected: bool, took_ms: float | None
) -> ProbeResult:
    """Return the result of a check whose time is over; ``granted_s``: the time that did not count.

    A host that accepts the connection is alive, however late its answer is.
    """
    detail = f"no answer within {duration(limit_s)}"
    if granted_s:
        detail += f" and {duration(round(granted_s, 1))} in which this agent had no CPU"
    return ProbeResult(False, detail, took_ms, silent=not is_connected, busy=is_connected)


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
