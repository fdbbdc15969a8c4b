"""Runs the handshake on a new connection. It ends in an authenticated session or in a reason."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from agent.failover.times import GREETING_S
from agent.flowsync import handshake
from agent.flowsync.handshake import PREFIX, Hello, Refused, Session, Why
from agent.flowsync.sockets import Streams


@dataclass(frozen=True, slots=True)
class Greeter:
    """How this process presents itself."""

    secret: bytes = field(repr=False)
    own: Hello  # with an empty nonce

    async def initiate(self, streams: Streams) -> Session:
        """Do the handshake on a connection that we opened. Refused, OSError or TimeoutError."""
        hello = replace(self.own, nonce=secrets.token_bytes(32))
        async with asyncio.timeout(GREETING_S), _sending_refusal(streams[1]):
            streams[1].write(hello.pack())
            prefix, body = await _message(streams[0])
            peer = handshake.read_hello(prefix, body)
            handshake.check(hello, peer)
            transcript = hello.pack() + prefix + body
            streams[1].write(handshake.pack_proof(self.secret, transcript, initiator=True))
            proof = await _message(streams[0])
            handshake.check_proof(self.secret, transcript, *proof, initiator=False)
            return handshake.agree(self.secret, transcript, peer, initiator=True)

    async def accept(self, streams: Streams) -> tuple[Session, bytes]:
        """Do the handshake on a connection that a peer opened. Raises what ``initiate`` raises.

        Return the session, and the proof that completes the handshake once it is sent.
        """
        hello = replace(self.own, nonce=secrets.token_bytes(32))
        async with asyncio.timeout(GREETING_S), _sending_refusal(streams[1]):
            prefix, body = await _message(streams[0])
            peer = handshake.read_hello(prefix, body)
            # Sent before the checks, so that a refused peer can still say which version we have.
            streams[1].write(hello.pack())
            handshake.check(hello, peer)
            transcript = prefix + body + hello.pack()
            proof = await _message(streams[0])
            handshake.check_proof(self.secret, transcript, *proof, initiator=True)
            session = handshake.agree(self.secret, transcript, peer, initiator=False)
            return session, handshake.pack_proof(self.secret, transcript, initiator=False)


def refuse(writer: asyncio.StreamWriter, why: Why) -> None:
    """Send the reason, as far as that is possible without waiting, and close."""
    writer.write(handshake.pack_refusal(why))
    writer.close()


@contextlib.asynccontextmanager
async def _sending_refusal(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Send the reason to the peer when the body refuses it."""
    try:
        yield
    except Refused as refused:
        if not refused.by_peer:
            writer.write(handshake.pack_refusal(refused.why))
        raise


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    try:
        prefix = await reader.readexactly(PREFIX.size)
        return prefix, await reader.readexactly(handshake.rest_bytes(prefix))
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the peer closed the connection in the handshake") from error
