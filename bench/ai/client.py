"""Owns the requests of a run: sends each when it is due, however long the others take.

Runs as ``python -m bench.ai.client --plan FILE --result FILE`` in the lab's client. It is one
process, with plain protocols instead of streams, so that the client is no bottleneck; its CPU share
and how late it sent are part of the result. The time to first token ends with the first event that
has a token: the head of the answer comes earlier, and at once.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import re
import ssl
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import click

from agent.errors import SteelyardError
from bench.ai import plan as plans
from bench.ai.plan import Answer, Ask, Plan, Played, Throttle, Turn
from bench.ai.trace import BYTES_PER_TOKEN
from lbctl.lab.engine.openai import MODEL

_PATH, _CHAT_PATH = "/v1/completions", "/v1/chat/completions"
# The addresses of sources, from source 0 on: a route makes all of them the client's own.
SOURCES = ip_network("10.200.0.0/16")
_OK = b"HTTP/1.1 200 "
_EVENT = b"data: {"
_LAST_CHUNK = b"0\r\n\r\n"
_BACKEND = re.compile(rb"\r\nX-Backend: ([^\r]*)\r\n")
_LONGEST = 40_000  # prompt tokens
_FIRST_BYTES = 256  # of the message that begins a conversation
_WORDS = b"load " * (_LONGEST * BYTES_PER_TOKEN // 5)
_LEAD_S = 0.5  # between start and the first request
_THROTTLE_TIMEOUT_S = 5.0


class ClientError(SteelyardError):
    """The plan could not be carried out as written."""


def request_bytes(host: str, prompt_tokens: int, answer_tokens: int, keeps: bool) -> bytes:
    """Return a streamed completion request whose prompt has ``prompt_tokens`` tokens."""
    prompt = _WORDS[: prompt_tokens * BYTES_PER_TOKEN]
    body = b'{"prompt":"%b","max_tokens":%d,"stream":true}' % (prompt, answer_tokens)
    return _post(_PATH, host, body, keeps)


def chat_bytes(host: str, turn: Turn, prompt_tokens: int, answer_tokens: int, keeps: bool) -> bytes:
    """Return the same for a turn of a conversation, whose prompt begins with all previous turns."""
    system = text_of(f"tenant {turn.tenant}", turn.system_tokens)
    said = text_of(f"conversation {turn.conversation}", prompt_tokens - turn.system_tokens)
    # What began the conversation is a message of its own, as in real ones: it does not grow.
    parts = (said[:_FIRST_BYTES], said[_FIRST_BYTES:])
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": system},
            *({"role": "user", "content": part} for part in parts if part),
        ],
        "max_tokens": answer_tokens,
        "stream": True,
    }
    return _post(_CHAT_PATH, host, json.dumps(body).encode(), keeps)


def text_of(name: str, tokens: int) -> str:
    """Return unique tokens for this name; a longer text of it begins with a shorter one."""
    size = tokens * BYTES_PER_TOKEN
    return hashlib.shake_128(name.encode()).hexdigest(size // 2 + 1)[:size]


def _post(path: str, host: str, body: bytes, keeps: bool) -> bytes:
    connection = "keep-alive" if keeps else "close"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Connection: {connection}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class _Sent:
    """A request in flight; times are the loop's."""

    number: int
    due_s: float
    late_s: float
    first_s: float | None = None
    done_s: float | None = None
    backend: str = ""
    error: str = ""

    def answer(self) -> Answer:
        def since(at_s: float | None) -> float | None:
            return None if at_s is None else at_s - self.due_s

        return Answer(
            since(self.first_s), since(self.done_s), self.late_s, self.backend, self.error
        )


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, player: _Player, key: tuple[int, int], sent: _Sent, data: bytes) -> None:
        self.key = key
        self.used = 0
        self.is_open = False
        self._player = player
        self._sent: _Sent | None = sent
        self._first = data  # sent as soon as the connection is established
        self._tail = b""
        self._transport: asyncio.WriteTransport | None = None
        self._clock = player.loop.time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self.is_open = True
        if self._sent is not None:
            self.ask(self._sent, self._first)
        self._first = b""

    def ask(self, sent: _Sent, data: bytes) -> None:
        """Send a request; its end is reported to the player."""
        assert self._transport is not None
        self._sent, self._tail = sent, b""
        self.used += 1
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        sent = self._sent
        if sent is None:
            return
        if not sent.backend:
            found = _BACKEND.search(data)
            sent.backend = found[1].decode() if found else "?"
            if not data.startswith(_OK):
                sent.error = data[:40].decode("latin-1").split("\r\n")[0]
        seen = self._tail + data
        if sent.first_s is None and _EVENT in seen:
            sent.first_s = self._clock()
        self._tail = seen[-len(_EVENT) :]
        if seen.endswith(_LAST_CHUNK) or sent.error:
            sent.done_s = self._clock()
            self._sent = None
            self._player.ended(sent, self)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if (sent := self._sent) is not None:
            self._sent = None
            sent.error = f"lost: {type(error).__name__}" if error else "closed early"
            self._player.ended(sent, self)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


@dataclass(slots=True)
class _Player:
    """Carries out a plan."""

    plan: Plan
    loop: asyncio.AbstractEventLoop
    answers: list[Answer | None] = field(init=False)
    _idle: defaultdict[tuple[int, int], deque[_Connection]] = field(
        default_factory=lambda: defaultdict(deque)
    )
    _under_way: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _all_ended: asyncio.Event = field(default_factory=asyncio.Event)
    _tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.plan.asks)
        if self.plan.tls:  # a self-signed certificate cannot be verified
            self._tls = ssl.create_default_context()
            self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE

    async def play(self) -> None:
        """Send all requests, and wait for the answers for as long as the plan allows.

        Raises ClientError if a server could not be throttled.
        """
        start_s = self.loop.time() + _LEAD_S
        self._under_way = len(self.plan.asks)
        throttles: list[asyncio.Task[None]] = []
        events: list[tuple[float, int, Ask | Throttle]] = [
            *((ask.at_s, number, ask) for number, ask in enumerate(self.plan.asks)),
            *((throttle.at_s, -1, throttle) for throttle in self.plan.throttles),
        ]
        for at_s, number, what in sorted(events, key=lambda event: event[0]):
            due_s = start_s + at_s
            if (wait_s := due_s - self.loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if isinstance(what, Throttle):
                work = throttle(self.plan.targets[what.target], what.slow)
                throttles.append(self.loop.create_task(work))
            else:
                self._begin(number, what, due_s)
        try:
            async with asyncio.timeout(self.plan.patience_s):
                await self._all_ended.wait()
        except TimeoutError:
            pass  # requests without an answer by now count as unanswered
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        # Without the throttling, the figures would be those of another case.
        await asyncio.gather(*throttles)

    def _begin(self, number: int, ask: Ask, due_s: float) -> None:
        sent = _Sent(number, due_s, self.loop.time() - due_s)
        key = (ask.client, ask.target)
        target = self.plan.targets[ask.target]
        keeps = self.plan.keep_alive_s > 0
        lengths = (ask.prompt_tokens, ask.answer_tokens)
        if ask.turn is None:
            data, own = request_bytes(target, *lengths, keeps), None
        else:
            data = chat_bytes(target, ask.turn, *lengths, keeps)
            own = (str(SOURCES[1 + ask.turn.source]), 0)
        idle = self._idle[key] if keeps else ()
        while idle:
            connection = idle.pop()
            if connection.is_open:
                connection.ask(sent, data)
                return
        self._spawn(self._connect(target, key, sent, data, own))

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(
        self,
        target: str,
        key: tuple[int, int],
        sent: _Sent,
        data: bytes,
        own: tuple[str, int] | None,
    ) -> None:
        host, _, port = target.rpartition(":")
        connection = _Connection(self, key, sent, data)
        try:
            await self.loop.create_connection(
                lambda: connection, host, int(port), local_addr=own, ssl=self._tls
            )
        except OSError as error:
            sent.error = f"no connection: {error.strerror or error}"
            self.ended(sent, connection)

    def ended(self, sent: _Sent, connection: _Connection) -> None:
        """Handle the end of a request, with an answer or without."""
        self.answers[sent.number] = sent.answer()
        self._under_way -= 1
        if not self._under_way:
            self._all_ended.set()
        if self.plan.keep_alive_s <= 0 or sent.error:
            connection.close()
            return
        self._idle[connection.key].append(connection)
        self.loop.call_later(self.plan.keep_alive_s, self._expire, connection, connection.used)

    def _expire(self, connection: _Connection, used: int) -> None:
        idle = self._idle[connection.key]
        if connection.used == used and connection in idle:
            idle.remove(connection)
            connection.close()


async def throttle(target: str, slow: float) -> None:
    """Make an engine ``slow`` times slower; raises ClientError unless it confirms that."""
    host, _, port = target.rpartition(":")
    head = f"POST /throttle?slow={slow} HTTP/1.1\r\nHost: {target}\r\n"
    try:
        async with asyncio.timeout(_THROTTLE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            said = await reader.read()
            writer.close()
    except OSError as error:  # also a timeout
        raise ClientError(f"could not be throttled: {error!r}", where=target) from error
    if not said.startswith(_OK):
        status = said.split(b"\r\n", 1)[0].decode("latin-1")
        raise ClientError(f"was not throttled: {status!r}", where=target)


_NEVER = Answer(None, None, 0.0, "", "no answer in time")


async def play(plan: Plan) -> Played:
    """Carry out a plan in this process."""
    player = _Player(plan, asyncio.get_running_loop())
    began_s, cpu_s = time.monotonic(), time.process_time()
    gc.disable()  # a collection would delay requests
    await player.play()
    answers = tuple(answer or _NEVER for answer in player.answers)
    return Played(answers, time.monotonic() - began_s, time.process_time() - cpu_s)


@click.command()
@click.option("--plan", "source", type=click.Path(path_type=Path), required=True)
@click.option("--result", type=click.Path(path_type=Path), required=True)
def main(source: Path, result: Path) -> None:
    """Carry out a plan, and write the result."""
    try:
        played = asyncio.run(play(plans.read_plan(source)))
    except SteelyardError as error:
        raise click.ClickException(str(error)) from error
    plans.write(result, played)


if __name__ == "__main__":
    main()
