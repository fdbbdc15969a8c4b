"""Owns how a local program asks the failover process: one JSON object a line over its Unix socket.

Every failure is raised as an ``AgentUnreachableError`` (no answer) or an ``ApiError`` (a refusal),
which says what is wrong, where, and what to do.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import AgentUnreachableError, ApiError
from agent.failover.times import CLIENT_S

MAX_LINE_BYTES = 1 << 20
_START = "start it (systemctl start lb-agent-failover)"


def ask(path: Path, request: Mapping[str, object], timeout_s: float = CLIENT_S) -> dict[str, Any]:
    """Return the answer to one request; blocks."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.sendall(_line(request))
            with sock.makefile("rb") as file:
                return _answer(file.readline(MAX_LINE_BYTES), path)
    except OSError as error:
        raise _unreachable(error, path, timeout_s) from error


async def ask_async(
    path: Path, request: Mapping[str, object], timeout_s: float = CLIENT_S
) -> dict[str, Any]:
    """Return the answer to one request."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES)
            try:
                writer.write(_line(request))
                await writer.drain()
                return _answer(await reader.readline(), path)
            finally:
                writer.close()
    except ValueError as error:  # the line is longer than the limit
        raise _malformed(path) from error
    except OSError as error:
        raise _unreachable(error, path, timeout_s) from error


def _line(request: Mapping[str, object]) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _answer(line: bytes, path: Path) -> dict[str, Any]:
    if not line:
        raise AgentUnreachableError(
            "the failover process closed the connection without an answer",
            where=str(path),
            remedy="try again; its log says why: journalctl -u lb-agent-failover",
        )
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise _malformed(path) from error
    if not isinstance(answer, dict):
        raise _malformed(path)
    if "error" not in answer:
        return answer
    refusal = answer["error"] if isinstance(answer["error"], dict) else {}
    raise ApiError(
        str(refusal.get("message") or "refused without a reason"),
        where=str(refusal.get("where") or path),
        remedy=str(refusal.get("remedy") or ""),
    )


def _malformed(path: Path) -> ApiError:
    return ApiError(
        "the answer is not one JSON object on a line",
        where=str(path),
        remedy="is this the socket of a Steelyard failover process?",
    )


def _unreachable(error: OSError, path: Path, timeout_s: float) -> AgentUnreachableError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        message, remedy = "no failover process: there is no such socket", _START
    elif isinstance(error, ConnectionRefusedError):
        message = "no failover process: the one that made this socket is gone"
        remedy = f"{_START}; its log says why it stopped (journalctl -u lb-agent-failover)"
    elif isinstance(error, PermissionError):
        message = "permission denied: this user may not talk to the failover process"
        remedy = "use sudo, or set socket_group in the configuration to a group that you are in"
    elif isinstance(error, TimeoutError):
        message = f"the failover process did not answer within {timeout_s:g} s"
        remedy = "see what holds it up: journalctl -u lb-agent-failover"
    else:
        message = f"cannot talk to the failover process: {error.strerror or error}"
        remedy = _START
    return AgentUnreachableError(message, where=str(path), remedy=remedy)
