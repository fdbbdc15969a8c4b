"""Gathers the facts about a balancer's fleet: whether its store answers, and who can read secrets.

Each member of etcd is asked for its health, which needs neither a user nor a key.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.errors import ConfigError
from agent.files import read_private
from lbctl.doctor.facts import FleetFacts, Secret, StoreMember

TIMEOUT_S = 2.0
_MOST_BYTES = 65_536  # of a secret, and of an answer
_HTTPS_PORT, _HTTP_PORT = 443, 80


def gather(document: Mapping[str, Any] | None) -> FleetFacts | None:
    """Return the facts; None: the configuration names no fleet."""
    fleet = (document or {}).get("fleet") or {}
    if not fleet.get("name"):
        return None
    etcd = fleet.get("etcd") or {}
    urls = etcd.get("endpoints") or ()
    facts = FleetFacts(fleet["name"], bool(etcd.get("user")), secrets=tuple(_secrets(etcd)))
    try:
        context = _context(etcd) if any(url.startswith("https:") for url in urls) else None
    except (OSError, ValueError) as error:
        denied = isinstance(error, PermissionError)
        return replace(facts, tls_problem=_file_words(error), tls_denied=denied)
    with ThreadPoolExecutor(max(len(urls), 1)) as pool:
        return replace(facts, members=tuple(pool.map(partial(_asked, context), urls)))


def _secrets(etcd: Mapping[str, Any]) -> Iterator[Secret]:
    """Yield each secret that cannot be used, or that other users of this host can read."""
    command = "(umask 077; cat > {}), then paste it and press Ctrl-D"
    for key, what in (
        ("password_file", "the password for etcd"),
        ("key_file", "the private key for etcd"),
    ):
        path = etcd.get(key)
        if path is None:
            continue
        try:
            read_private(Path(path), what, _MOST_BYTES, make=command.format(path))
        except ConfigError as error:
            denied = isinstance(error.__cause__, PermissionError)
            # Without a cause, the file could be read, and its mode is what is wrong. The agent
            # refuses such a password, but uses such a key.
            works = key == "key_file" and error.__cause__ is None
            yield Secret(f"{path}: {error.message}", error.remedy, denied, works)


def _context(etcd: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the TLS context with which the agent, too, connects to etcd."""
    context = ssl.create_default_context(cafile=etcd.get("ca_file"))
    # Python 3.13 refuses CA certificates without a key identifier, and many are made so.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if etcd.get("cert_file"):
        # Without a password, OpenSSL would ask at the terminal if the key is encrypted.
        context.load_cert_chain(etcd["cert_file"], etcd.get("key_file"), password="")
    return context


def _file_words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return "one of them is not PEM, or certificate and key do not belong together"
    return (error.strerror or str(error)).lower()


def _asked(context: ssl.SSLContext | None, url: str) -> StoreMember:
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        port = parts.port or _HTTPS_PORT
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, parts.port or _HTTP_PORT, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return StoreMember(url, _judged(answer.status, answer.read(_MOST_BYTES)))
    except (OSError, http.client.HTTPException) as error:
        return StoreMember(url, _words(error), isinstance(error, ssl.SSLError))
    finally:
        connection.close()


def _judged(status: int, body: bytes) -> str:
    """Return what is wrong with an answer to /health; empty: nothing."""
    if b'"health"' not in body:
        return f"it answers with HTTP status {status}, and not as etcd does"
    return "" if status == http.client.OK else "it answers that it is not healthy"


def _words(error: Exception) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {TIMEOUT_S:g} s"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message}"
        case ssl.SSLError():
            reason = (error.reason or "").lower().replace("_", " ")
            return f"TLS failed: {reason or 'no reason was given'}"
        case socket.gaierror():
            return "its name cannot be resolved"
        case OSError():
            return (error.strerror or "it closed the connection").lower()
    return "its answer is not HTTP"
