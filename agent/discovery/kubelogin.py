"""Proves to an API server of Kubernetes who we are: TLS, tokens, and commands that print them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from agent.discovery.kubeconfig import Access, Command, Pem
from agent.discovery.reading import bearer, is_token, read_file, read_token
from agent.errors import DiscoveryError

COMMAND_S = 30.0
_MOST_BYTES = 1 << 20
_PIECE = 1 << 16
_END_S = 2.0  # for a command that was killed


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request carries: headers, and the context of its TLS connection."""

    headers: dict[str, str] = field(repr=False)
    tls: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class _Credentials:
    """What a command has printed; ``ends`` is in seconds since the epoch, None: it does not end."""

    token: str | None = field(repr=False)
    certificate: bytes | None = field(repr=False)
    key: bytes | None = field(repr=False)
    ends: float | None


class Login:
    """Gives each request its identity. Tokens and certificates in files are read each time."""

    def __init__(self, access: Access, where: str) -> None:
        self._access, self._where = access, where
        self._printed: _Credentials | None = None

    async def identity(self) -> Identity:
        """Return the identity for one request. Raises DiscoveryError if there is none."""
        access, token = self._access, self._access.token
        certificate, key = access.certificate, access.key
        if access.token_file is not None:
            token = await asyncio.to_thread(read_token, access.token_file, self._where)
        if access.command is not None:
            printed = await self._run(access.command)
            token = printed.token or token
            if printed.certificate is not None:
                certificate, key = printed.certificate, printed.key
        tls = await asyncio.to_thread(_tls, access, certificate, key, self._where)
        return Identity({} if token is None else bearer(token), tls)

    async def _run(self, command: Command) -> _Credentials:
        """Return what the command has printed before, or prints now if that has expired."""
        printed = self._printed
        if printed is None or (printed.ends is not None and printed.ends <= time.time()):
            output = await _output(command, self._where)
            self._printed = printed = _read(output, command, self._where)
        return printed


# -- TLS


def _tls(access: Access, certificate: Pem | None, key: Pem | None, where: str) -> ssl.SSLContext:
    try:
        if access.ca is None:
            context = ssl.create_default_context()
        else:
            pem = _content(access.ca, "the certificate-authority", where).decode("ascii")
            if not pem.strip():
                raise ValueError("it is empty")  # Python would trust the system's CAs instead
            context = ssl.create_default_context(cadata=pem)
    except (OSError, ValueError) as error:
        raise DiscoveryError(
            f"the CA certificate for {access.server} cannot be used: it is no valid certificate",
            where=where,
            remedy="give the cluster's CA certificate in PEM format",
        ) from error
    # Python 3.13 refuses CA certificates without a key identifier, and many clusters have such.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not access.is_verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate is not None and key is not None:
        _load(context, certificate, key, where)
    return context


def _load(context: ssl.SSLContext, certificate: Pem, key: Pem, where: str) -> None:
    """Load a client's certificate.

    Python can only load it from a file. A file in memory keeps the key away from the disk.
    """
    parts = (
        _content(certificate, "the client-certificate", where),
        _content(key, "the client-key", where),
    )
    try:
        with os.fdopen(os.memfd_create("client-certificate"), "wb") as file:
            file.write(b"\n".join(parts))
            file.flush()
            # Without a password, OpenSSL would ask for one at the terminal if the key is encrypted.
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
    except (OSError, ValueError) as error:
        raise DiscoveryError(
            "the client certificate cannot be used: certificate and key are not valid, do not "
            "belong together, or the key is encrypted",
            where=where,
            remedy="give a certificate and its key in PEM format, without a password",
        ) from error


def _content(pem: Pem, what: str, where: str) -> bytes:
    return read_file(pem, _MOST_BYTES, what, where) if isinstance(pem, Path) else pem


# -- commands


async def _output(command: Command, where: str) -> bytes:
    """Run a command, kill it and all that it has started in the end, and return its output."""
    program = command.words[0]
    spec: dict[str, object] = {"interactive": False}
    if command.cluster is not None:
        spec["cluster"] = command.cluster
    info = {"apiVersion": command.version, "kind": "ExecCredential", "spec": spec}
    environment = os.environ | dict(command.environment)
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(info)
    try:
        process = await asyncio.create_subprocess_exec(
            *command.words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _failed(program, f"cannot be run: {reason}", where) from error
    assert process.stdout is not None  # noqa: S101 (a pipe was asked for)
    output = bytearray()
    try:
        async with asyncio.timeout(COMMAND_S):
            while len(output) <= _MOST_BYTES and (piece := await process.stdout.read(_PIECE)):
                output += piece
            status = 0 if len(output) > _MOST_BYTES else await process.wait()
    except TimeoutError as error:
        raise _failed(program, f"has not ended within {COMMAND_S:g} s", where) from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await _ended(process, process.stdout)
    if len(output) > _MOST_BYTES:
        raise _failed(program, f"prints more than {_MOST_BYTES >> 20} MiB", where)
    if status:
        raise _failed(program, f"ended with exit status {status}", where)
    return bytes(output)


async def _ended(process: asyncio.subprocess.Process, output: asyncio.StreamReader) -> None:
    """Wait until a killed command has ended.

    asyncio waits for the end of its output too, and never sees that end if it has stopped reading
    because nobody took what it had read. A process that left the command's session may hold the
    output open, and is not waited for.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            while await output.read(_PIECE):
                pass
            await process.wait()


def _read(output: bytes, command: Command, where: str) -> _Credentials:
    """Return the credentials that a command has printed; no message quotes them."""
    program = command.words[0]
    try:
        data = json.loads(output)
    except (ValueError, RecursionError):
        raise _failed(program, "prints something that is not JSON", where) from None
    status = data.get("status") if isinstance(data, dict) else None
    if not isinstance(status, dict) or data.get("kind") != "ExecCredential":
        raise _failed(program, "prints no ExecCredential with a status", where)
    if data.get("apiVersion") != command.version:
        raise _failed(program, f"prints an ExecCredential that is not of {command.version}", where)
    token, certificate, key, ends = (
        status.get(name)
        for name in ("token", "clientCertificateData", "clientKeyData", "expirationTimestamp")
    )
    if not all(each is None or isinstance(each, str) for each in (token, certificate, key, ends)):
        raise _failed(program, "prints credentials that are not strings", where)
    if bool(certificate) != bool(key) or not (token or certificate):
        raise _failed(program, "prints neither a token nor a certificate with its key", where)
    if token and not is_token(token):
        raise _failed(program, "prints a token with characters that no token has", where)
    return _Credentials(
        token or None,
        certificate.encode(errors="replace") if certificate else None,
        key.encode(errors="replace") if key else None,
        None if ends is None else _time(ends, program, where),
    )


def _time(text: str, program: str, where: str) -> float:
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.timestamp()
    raise _failed(program, "prints an expirationTimestamp that is not a time of RFC 3339", where)


def _failed(program: str, what: str, where: str) -> DiscoveryError:
    return DiscoveryError(
        f"the command {program} of the kubeconfig {what}",
        where=where,
        remedy="run it by hand, as root and with the environment of the agent's unit",
    )
