"""Owns how a program talks to an agent: HTTP and JSON over its Unix socket, or over TLS, to
`lb-agent api` on another host. Standard library only.

Every failure is an ``AgentUnreachableError`` (there was no answer) or an ``ApiError`` (the answer
was a refusal). Each says what went wrong, where, and how to fix it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from agent.errors import AgentUnreachableError, ApiError
from agent.pem import pem_problem

DEFAULT_SOCKET = Path("/run/steelyard/agent.sock")
DEFAULT_TIMEOUT_S = 10.0
_AGENT_AWAY = (502, 504)  # what `lb-agent api` answers then

type Parameters = Mapping[str, str | int | None]


@dataclass(frozen=True, slots=True)
class Server:
    """`lb-agent api` on another host, and the files of a client: its certificate and key.

    ``authority``: what the server's certificate must be signed by; None: the system's.
    """

    host: str
    port: int
    certificate: Path
    key: Path
    authority: Path | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ApiRefusedError(ApiError):
    """The agent refused. ``problems`` has every reason that it gave, this one first."""

    def __init__(self, status: int, problems: tuple[ApiError, ...]) -> None:
        first = problems[0]
        super().__init__(first.message, where=first.where, remedy=first.remedy)
        self.status = status
        self.problems = problems


class ApiUnconfirmedError(ApiRefusedError):
    """The requested change cuts open flows, and has to be confirmed."""


class ApiNotFoundError(ApiRefusedError):
    """The agent has no service or backend of that name."""


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Sends requests to one agent. Each call has its own connection, so nothing needs closing."""

    def __init__(self, at: Path | Server, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._at = at
        self._timeout_s = timeout_s

    def _connection(self) -> http.client.HTTPConnection:
        at = self._at
        if isinstance(at, Path):
            return _UnixConnection(at, self._timeout_s)
        return http.client.HTTPSConnection(
            at.host, at.port, timeout=self._timeout_s, context=_context(at)
        )

    def get(self, path: str, params: Parameters | None = None) -> dict[str, Any]:
        """Return the answer to a GET request. Parameters that are None are left out."""
        return self._request("GET", _target(path, params), None)

    def stream(self, path: str, params: Parameters | None = None) -> Generator[dict[str, Any]]:
        """Yield the lines of an answer as they arrive, until the agent ends it.

        Raises AgentUnreachableError if the agent sends nothing within the timeout. Closing the
        iterator closes the connection.
        """
        target = _target(path, params)
        connection = self._connection()
        try:
            connection.request("GET", target, headers={"Accept": "application/x-ndjson"})
            response = connection.getresponse()
            if response.status >= 400:
                _answer(response.status, response.read(), f"GET {target}", self._at)
            while line := response.readline():
                yield _answer(response.status, line, f"GET {target}", self._at)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(error, self._at, self._timeout_s) from error
        finally:
            connection.close()

    def post(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the answer to a POST request."""
        return self._request("POST", path, json.dumps(body or {}).encode())

    def _request(self, method: str, target: str, body: bytes | None) -> dict[str, Any]:
        connection = self._connection()
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, target, body=body, headers=headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            unreachable = _unreachable(error, self._at, self._timeout_s)
            if isinstance(error, TimeoutError) and body is not None:
                unreachable.message += "; it may still carry out the request"
                unreachable.remedy = "`lbctl events` shows whether it does"
            raise unreachable from error
        finally:
            connection.close()
        return _answer(response.status, content, f"{method} {target}", self._at)


def _target(path: str, params: Parameters | None) -> str:
    given = {key: value for key, value in (params or {}).items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _context(server: Server) -> ssl.SSLContext:
    """Return what a connection to a server needs. Raises ApiError if a file cannot be used."""
    files = [path for path in (server.authority, server.certificate, server.key) if path]
    at = next((path for path in files if not os.access(path, os.R_OK)), server.certificate)
    try:
        made = ssl.create_default_context(cafile=server.authority)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as before Python 3.13, and as curl
        made.load_cert_chain(server.certificate, server.key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ApiError(
            f"this file cannot be used for TLS: {pem_problem(error)}",
            where=str(at),
            remedy="--cert is your certificate, --key its key without a password, and --ca what "
            "the server's certificate is signed by, all in PEM",
        ) from error
    return made


def _unreachable(
    error: OSError | http.client.HTTPException, at: Path | Server, timeout_s: float
) -> AgentUnreachableError:
    """Return an error that says why there was no answer, and what to do about it."""
    words = _local if isinstance(at, Path) else _remote
    message, remedy = words(error, timeout_s)
    return AgentUnreachableError(message, where=str(at), remedy=remedy)


def _remote(error: OSError | http.client.HTTPException, timeout_s: float) -> tuple[str, str]:
    """Return why another host did not answer, and what to do about it."""
    look = "see there: journalctl -u lb-agent-api"
    match error:
        case ssl.SSLCertVerificationError():
            remedy = "--ca names what it must be signed by; it must be for the host of --server"
            return f"the server's certificate is refused: {error.verify_message}", remedy
        case ssl.SSLError():
            reason = (error.reason or "TLS failed").lower().replace("_", " ")
            if "alert" in reason:
                return (
                    f"the server refuses your certificate: {reason.partition('alert ')[2]}",
                    f"see which one --cert names, and whether it has expired; or {look}",
                )
            return f"TLS failed: {reason}", f"is this the port of `lb-agent api`? Or {look}"
        case socket.gaierror():
            return "there is no host of that name", "correct --server"
        case ConnectionRefusedError():
            return "nothing listens there", "start it there: systemctl start lb-agent-api"
        case TimeoutError():
            return f"no answer within {timeout_s:g} s", "see whether a firewall is in between"
        case http.client.HTTPException() | ConnectionError():
            return "the server broke off its answer", f"try again; or {look}"
    return f"cannot talk to the server: {error.strerror or error}", "correct --server"


def _local(error: OSError | http.client.HTTPException, timeout_s: float) -> tuple[str, str]:
    """Return why the agent of this host did not answer, and what to do about it."""
    start = "start the agent (systemctl start lb-agent), or name another socket with --socket"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        message, remedy = "no agent: there is no such socket", start
    elif isinstance(error, PermissionError):
        message = "permission denied: this user may not talk to the agent"
        remedy = (
            "use sudo, or have a group that you are in named in the agent's configuration "
            "(socket_roles or socket_group)"
        )
    elif isinstance(error, ConnectionRefusedError):
        message = "no agent: the one that made this socket is gone"
        remedy = f"{start}; its log says why it stopped (journalctl -u lb-agent)"
    elif isinstance(error, TimeoutError):
        message = f"the agent did not answer within {timeout_s:g} s"
        remedy = "its log may say what delays it: journalctl -u lb-agent"
    elif isinstance(error, http.client.HTTPException):
        message = f"the agent broke off its answer ({type(error).__name__})"
        remedy = "try again; its log says why: journalctl -u lb-agent"
    else:
        message, remedy = f"cannot talk to the agent: {error.strerror or error}", start
    return message, remedy


def _answer(status: int, content: bytes, asked: str, at: Path | Server) -> dict[str, Any]:
    """Return the JSON object of an answer, or raise the error that it carries."""
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ApiError(
            f"{asked} was answered with HTTP {status} and no JSON object",
            where=str(at),
            remedy="is this the socket of a Steelyard agent? --socket names another"
            if isinstance(at, Path)
            else "is this the port of `lb-agent api`? --server names another",
        )
    if status < 400:
        return answer
    error = answer.get("error")
    if not isinstance(error, dict):
        error = {"message": f"{asked} was answered with HTTP {status}", "where": str(at)}
    listed = error.get("problems")
    problems = listed if isinstance(listed, list) and listed else [error]
    if isinstance(at, Server) and status in _AGENT_AWAY:
        away = _problem(error)
        raise AgentUnreachableError(away.message, where=str(at), remedy=away.remedy)
    kind = {404: ApiNotFoundError, 428: ApiUnconfirmedError}.get(status, ApiRefusedError)
    raise kind(status, tuple(_problem(each) for each in problems))


def _problem(error: dict[str, Any]) -> ApiError:
    return ApiError(
        str(error.get("message") or "refused without a reason"),
        where=str(error.get("where") or ""),
        remedy=str(error.get("remedy") or ""),
    )
