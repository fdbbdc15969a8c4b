"""Reads files that the configuration names, and words what goes wrong with a question by HTTP."""

from __future__ import annotations

import os
import re
import ssl
import stat
from pathlib import Path

import aiohttp

from agent.errors import DiscoveryError
from agent.health.outcome import WORDS, tls_words

USER_AGENT = "steelyard-discovery"
_MOST_TOKEN_BYTES = 16_384
_TOKEN = re.compile(r"[\x21-\x7e]+")


def http_session() -> aiohttp.ClientSession:
    """Return a session for JSON without cookies, compression and time limits of its own; each
    request has a connection of its own.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, resolver=aiohttp.ThreadedResolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        headers={
            "User-Agent": USER_AGENT,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
    )


def read_file(path: Path, most: int, what: str, where: str) -> bytes:
    """Return up to ``most`` + 1 bytes of a regular file."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DiscoveryError(
            f"{what} {path} cannot be read: {reason}",
            where=where,
            remedy="create it, or correct its path and permissions",
        ) from error
    raise DiscoveryError(
        f"{what} {path} is not a regular file", where=where, remedy="name a regular file"
    )


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a named pipe would wait for a writer


def read_token(path: Path, where: str) -> str:
    """Return the token that a file holds."""
    content = read_file(path, _MOST_TOKEN_BYTES, "the token file", where)
    token = content.decode("latin-1").strip()
    if len(content) > _MOST_TOKEN_BYTES or not is_token(token):
        raise DiscoveryError(
            f"the token file {path} does not hold a token",
            where=where,
            remedy="write nothing but the token into it, without spaces",
        )
    return token


def is_token(text: str) -> bool:
    """Whether a text can be sent as a bearer token."""
    return len(text) <= _MOST_TOKEN_BYTES and _TOKEN.fullmatch(text) is not None


def bearer(token: str) -> dict[str, str]:
    """Return the header that holds a token."""
    return {"Authorization": f"Bearer {token}"}


def http_words(error: Exception) -> str:
    """Return why a question by HTTP has failed, in words for the operator."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return tls_words(error.certificate_error)
        case aiohttp.ClientConnectorSSLError():
            return tls_words(error.os_error)
        case aiohttp.ClientConnectorDNSError():
            return f"the name {error.host} cannot be resolved: {error.os_error.strerror}"
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return "this is not an HTTP URL"
        case aiohttp.ServerDisconnectedError():
            return "connection closed before an answer"
        case aiohttp.ClientPayloadError():
            return "connection closed before the end of the answer"
        case aiohttp.ClientOSError() if isinstance(error.__cause__, ssl.SSLError):
            return tls_words(error.__cause__)  # by TLS 1.3, a server refuses us after the handshake
        case OSError():
            number = error.errno or 0
            return WORDS.get(number) or (
                os.strerror(number).lower() if number > 0 else "connection failed"
            )
        case aiohttp.ClientError():
            return "the answer is not HTTP"
    return f"it cannot be asked: {error}"
