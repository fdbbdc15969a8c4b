"""Real clients: what each does to a server, from a namespace of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from lbctl.lab import netns, processes
from tests.netns.prompt.nginx import SERVER_NAME

TIMEOUT_S = 120.0
_TCP_REPAIR = 19


@dataclass(frozen=True, slots=True)
class Door:
    """A port of the VIP, and from where clients come to it."""

    name: str
    namespace: str
    vip: str
    port: int
    folder: Path  # certificate, bodies

    def url(self, scheme: str, number: int, **order: int) -> str:
        """The address of the request ``number`` of this door, with what the server is to do."""
        host = f"[{self.vip}]" if ":" in self.vip else self.vip
        return f"{scheme}://{host}:{self.port}{self.target(number, **order)}"

    def target(self, number: int, **order: int) -> str:
        """The path and query of it."""
        query = "&".join(f"{key}={value}" for key, value in order.items())
        return f"/{self.name}-{number}?{query}"

    def connect(self) -> socket.socket:
        """A TCP connection."""
        with netns.inside(self.namespace):
            made = socket.create_connection((self.vip, self.port), timeout=TIMEOUT_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


def port_of(connection: socket.socket) -> int:
    """The client's port."""
    port: int = connection.getsockname()[1]
    return port


def request(door: Door, number: int, body: bytes = b"", **order: int) -> bytes:
    """An HTTP/1.1 request as bytes."""
    head = f"POST {door.target(number, **order)} HTTP/1.1\r\nHost: {SERVER_NAME}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Exact:
    """A connection as ``http.client`` reads from it: never beyond what it was asked for.

    Its own reader has a buffer, so where two answers have come, it would take both and return one.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def makefile(self, _mode: str) -> BinaryIO:
        return self._connection.makefile("rb", buffering=1)


def read_answer(connection: socket.socket) -> bytes:
    """Read one answer with a length, to its last byte."""
    answer = http.client.HTTPResponse(cast("socket.socket", _Exact(connection)))
    answer.begin()
    return answer.read()


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the server closes or resets."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65_536):
            pieces.append(piece)
    return b"".join(pieces)


def reset(connection: socket.socket) -> None:
    """Close with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def vanish(connection: socket.socket) -> None:
    """Be gone as a machine that lost its power: no FIN, no RST."""
    connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    connection.close()


def tls_context(door: Door) -> ssl.SSLContext:
    """A client's context that trusts the door's certificate."""
    return ssl.create_default_context(cafile=str(door.folder / "prompt.pem"))


def over_tls(
    door: Door, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    """A TLS connection."""
    return context.wrap_socket(door.connect(), server_hostname=SERVER_NAME, session=session)


def farewell(connection: ssl.SSLSocket) -> None:
    """Close as TLS wants it: an alert, then FIN. A server need not say goodbye, too."""
    with contextlib.suppress(ssl.SSLEOFError):
        connection.unwrap()


def run(door: Door, command: Sequence[str]) -> str:
    """A program in the client's namespace; what it printed."""
    done = subprocess.run(
        [*netns.entering(door.namespace), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * TIMEOUT_S,
        env={**processes.environment(), "no_proxy": "*", "NO_PROXY": "*"},
    )
    assert done.returncode == 0, f"{' '.join(command)[:300]}: {done.stderr[-800:]}"
    return done.stdout


def curl(door: Door, *words: str, requests: Sequence[str]) -> None:
    """curl with these options for all of the URLs, one after the other on one connection."""
    outputs = [word for url in requests for word in ("-o", os.devnull, url)]
    run(door, ["curl", "-q", "-sS", "--fail", "-k", *words, *outputs])


def rpc(door: Door, method: str, calls: Sequence[dict[str, Any]], **plan: Any) -> int:
    """gRPC calls over one channel; how many answers came."""
    host = f"[{door.vip}]" if ":" in door.vip else door.vip
    plan |= {"method": method, "calls": list(calls)}
    command = [sys.executable, "-m", "tests.netns.prompt.rpc_client"]
    return int(run(door, [*command, f"{host}:{door.port}", json.dumps(plan)]))


@contextlib.contextmanager
def body_file(door: Door, size: int) -> Iterator[str]:
    """A file with so many bytes, for curl's ``--data-binary``."""
    path = door.folder / f"{door.name}.body"
    path.write_bytes(b"p" * size)
    yield f"@{path}"
    path.unlink()


def now_ns() -> int:
    """This moment, as the logs have it."""
    return time.monotonic_ns()


def pause(seconds: float) -> None:
    """Think, as a person does between two prompts."""
    time.sleep(seconds)
