"""Serves the stand-in engine over HTTP, with the API and the metrics page of vLLM.

It serves ``/v1/completions`` and ``/v1/chat/completions``, streamed or whole, ``/v1/models``,
``/health``, ``/metrics``; ``/`` and ``/slow`` like every server of the lab. ``X-Backend`` names
the server. The head of a streamed answer is sent when the prompt is tokenized, as by real engines,
and the first token when it is computed. A client that closes its connection ends its request.

``POST /throttle?slow=3`` makes the engine three times slower until the next such request. Real
engines do not have this: the lab uses it to show the effect of a throttled GPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from lbctl.lab import server
from lbctl.lab.engine import openai, page
from lbctl.lab.engine.model import HARDWARE, Engine
from lbctl.lab.engine.openai import Completion, Wording
from lbctl.lab.engine.runner import Runner
from lbctl.lab.http import (
    CHUNKED,
    JSON,
    LAST_CHUNK,
    BadRequestError,
    Request,
    answer,
    answer_head,
    chunk,
)

COMPLETIONS = ("/v1/completions", "/v1/chat/completions")
MAX_SLOW = 1000.0
# Measured with vLLM 0.16: 90 ms until the head of the answer to 100 kB.
TOKENIZE_S_PER_BYTE = 0.9e-6


class _Answer:
    """Writes the tokens of one request as they come."""

    def __init__(
        self,
        asked: Completion,
        write: Callable[[bytes], None],
        whole: Callable[[bytes], bytes],
    ) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._wording = Wording(asked)
        self._write = write
        self._whole = whole  # puts the head before an answer that is not a stream

    def tokens(self, start: int, count: int, last: bool) -> None:
        """Write that many tokens."""
        if self._asked.stream:
            data = chunk(self._wording.events(start, count, last))
            self._write(data + LAST_CHUNK if last else data)
        elif last:
            self._write(self._whole(self._wording.whole(start + count)))
        if last:
            self.end()

    def end(self) -> None:
        """End the answer."""
        if not self.ended.done():
            self.ended.set_result(None)


class EngineServer(server.Server):
    """Answers like an engine, at the engine's pace."""

    def __init__(self, name: str, engine: Engine, chunk_tokens: int, time_scale: float) -> None:
        super().__init__(name)
        self._engine = engine
        self._time_scale = time_scale
        self._page = page.Page()
        self._runner = Runner(engine, chunk_tokens, self._page)
        self.throttle(1.0)

    def throttle(self, slow: float) -> None:
        """Make everything this many times slower than the hardware."""
        self._engine.slow = slow / self._time_scale

    def refusal(self, error: BadRequestError) -> bytes:
        """Return an error in the engines' format."""
        return answer(self.name, error.status, openai.refusal(error), False, JSON)

    async def respond(self, request: Request, body: bytes, writer: asyncio.StreamWriter) -> None:
        """Answer one request; raises BadRequestError."""
        path = request.path
        if path in COMPLETIONS:
            if request.method != "POST":
                raise BadRequestError(405)
            await self._complete(request, body, openai.read_completion(path, body), writer)
        elif path == "/throttle":
            writer.write(self._say(request, self._throttle(request)))
        elif path == "/metrics":
            writer.write(self._say(request, self._page.text(self._engine), page.CONTENT_TYPE))
        elif path == "/v1/models":
            writer.write(self._say(request, openai.models(), JSON))
        else:
            await super().respond(request, body, writer)

    def _say(self, request: Request, body: bytes, content_type: str = "text/plain") -> bytes:
        return answer(self.name, 200, body, request.keep_alive, content_type)

    def _throttle(self, request: Request) -> bytes:
        if request.method != "POST":
            raise BadRequestError(405)
        try:
            slow = float(request.query["slow"][0])
        except (KeyError, ValueError) as error:
            raise BadRequestError(400, "say how slow: POST /throttle?slow=3") from error
        if not 1 / MAX_SLOW <= slow <= MAX_SLOW:
            raise BadRequestError(400, f"slow is from {1 / MAX_SLOW} to {MAX_SLOW:.0f}")
        self.throttle(slow)
        return f"{self.name} is {slow:g} times slower than its hardware\n".encode()

    async def _complete(
        self, request: Request, body: bytes, asked: Completion, writer: asyncio.StreamWriter
    ) -> None:
        connection = writer.transport.get_protocol()
        if writer.is_closing() or not isinstance(connection, server.Connection):
            raise ConnectionResetError
        await asyncio.sleep(len(body) * TOKENIZE_S_PER_BYTE / self._time_scale)
        if writer.is_closing():
            raise ConnectionResetError
        if asked.stream:
            head = answer_head(self.name, 200, CHUNKED, request.keep_alive, openai.EVENT_STREAM)
            writer.write(head)
        made = _Answer(asked, writer.write, lambda whole: self._say(request, whole, JSON))
        job = self._runner.submit(
            asked.prompt_tokens, asked.max_tokens, made, asked.beginnings, asked.conversation
        )
        connection.on_gone = made.end
        try:
            await made.ended
        finally:
            connection.on_gone = None
            if job.done_s is None:
                self._runner.cancel(job)
                writer.close()


def main() -> None:
    """Run the command line."""
    parser = server.parser("lbctl.lab.engine.server", __doc__)
    add = parser.add_argument
    add("--hardware", choices=sorted(HARDWARE), default="h100", help="the GPU whose speed it has")
    add("--slow", type=float, default=1.0, help="how many times slower than the hardware")
    add("--time-scale", type=float, default=1.0, help="10: everything ten times faster than real")
    add("--chunk-tokens", type=int, default=1, help="tokens per event, after the first")
    add(
        "--prefix-tokens",
        type=int,
        default=0,
        help="tokens that its prefix cache holds; 0: no cache",
    )
    add("--chunked", action="store_true", help="compute prompts in pieces, among other tokens")
    options = parser.parse_args()
    hardware = replace(
        HARDWARE[options.hardware],
        prefix_tokens=max(0, options.prefix_tokens),
        chunked=options.chunked,
    )
    engine = Engine(hardware)
    made = EngineServer(options.name, engine, max(1, options.chunk_tokens), options.time_scale)
    made.throttle(options.slow)
    asyncio.run(server.serve(made, options.host, options.port or [80]))


if __name__ == "__main__":
    main()
