"""QUIC, as a program: a server whose connection ids name it, and clients that change their port.

python -m tests.netns.quic serve be1 c0de CERTIFICATE KEY 4433,4434 ADDRESS...
python -m tests.netns.quic ask fd99::100 4433 8 60

"ask" starts so many clients; one that has moved has so many seconds to get an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
from types import SimpleNamespace

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic import connection
from aioquic.quic.configuration import QuicConfiguration

ALPN = ["who"]
_ID_BYTES = 10  # of a connection id; no other random string in the library has this length


def _name_in_ids(server_id: bytes) -> None:
    """The server's connection ids as the plaintext algorithm of draft-ietf-quic-load-balancers:
    configuration 0 and how many bytes follow, the server id, and what makes the id unique.
    """

    def urandom(size: int) -> bytes:
        if size != _ID_BYTES:
            return os.urandom(size)
        head = bytes((size - 1,)) + server_id
        return head + os.urandom(size - len(head))

    # The library makes ids of random bytes and has no door for others.
    connection.os = SimpleNamespace(urandom=urandom)


async def _serve(
    name: str, certificate: str, key: str, ports: list[int], addresses: list[str]
) -> None:
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=ALPN, connection_id_length=_ID_BYTES
    )
    configuration.load_cert_chain(certificate, key)
    answering = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(name.encode())
        writer.write_eof()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(answer(reader, writer))
        answering.add(task)
        task.add_done_callback(answering.discard)

    for port in ports:
        for address in addresses:
            await serve(address, port, configuration=configuration, stream_handler=handle)
    await asyncio.Event().wait()


async def _ask(client: QuicConnectionProtocol, limit_s: float) -> str | None:
    """Who is at the other end; None if nobody answers within the limit."""
    reader, writer = await client.create_stream()
    writer.write(b"who?")
    writer.write_eof()
    try:
        async with asyncio.timeout(limit_s):
            return (await reader.read()).decode()
    except TimeoutError:
        return None


async def _move(client: QuicConnectionProtocol) -> None:
    """To another port, as a client behind a NAT that has forgotten it."""
    moved = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    moved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    moved.bind(("::", 0))
    before = client._transport
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: client, sock=moved)
    before.close()


async def _client(host: str, port: int, limit_s: float) -> list[str | None]:
    """Who answers: at first, after a move, and after a move with the next connection id."""
    configuration = QuicConfiguration(alpn_protocols=ALPN, verify_mode=ssl.CERT_NONE)
    async with connect(host, port, configuration=configuration) as client:
        answers = [await _ask(client, 60.0)]
        await _move(client)
        answers.append(await _ask(client, limit_s))
        if answers[-1] is not None:
            await _move(client)
            client.change_connection_id()
            answers.append(await _ask(client, limit_s))
        else:
            client._closed.set()  # nobody is there who could say good-bye
        return answers


async def _clients(host: str, port: int, count: int, limit_s: float) -> None:
    tasks = [asyncio.create_task(_client(host, port, limit_s)) for _ in range(count)]
    print(json.dumps(await asyncio.gather(*tasks)))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", name, server_id, certificate, key, ports, *addresses]:
            _name_in_ids(bytes.fromhex(server_id))
            numbers = [int(port) for port in ports.split(",")]
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(_serve(name, certificate, key, numbers, addresses))
        case ["ask", host, port, count, limit_s]:
            asyncio.run(_clients(host, int(port), int(count), float(limit_s)))
        case _:
            sys.exit(__doc__)
