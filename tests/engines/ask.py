"""Asks an engine, and prints what a client saw of each request: a line of JSON. Run with the
clients' environment; standard input: the order (``Order`` of ``__main__``) as JSON.

The first token is that of the text that is streamed: what comes before it (heads, comments, events
that say nothing) is not it.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import httpx

TIMEOUT_S = 900.0
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "generate": "/v2/models/tiny/generate_stream",
}


def body(api: str, text: str, *, stream: bool) -> dict[str, Any]:
    """The request."""
    if api == "generate":  # Triton's, whose path says whether it is a stream
        return {"text_input": text}
    plain = {"model": "tiny", "stream": stream}
    messages = [{"role": "user", "content": text}]
    return {
        "chat": {"messages": messages, "max_tokens": 4},
        "completions": {"prompt": text, "max_tokens": 4},
        "responses": {"input": text, "max_output_tokens": 4},
        "messages": {"messages": messages, "max_tokens": 4},
    }[api] | plain


class Asker:
    """One order."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._turns = asyncio.Semaphore(order["at_a_time"])

    async def all(self) -> None:
        """Every request of it."""
        sizes = self._order["sizes"]
        numbers = range(self._order["count"])
        await asyncio.gather(*(self._one(n, sizes[n % len(sizes)]) for n in numbers))

    async def _one(self, number: int, size: int) -> None:
        order = self._order
        text = piece(order["text"], size, order["seed"] + number)
        async with self._turns, _client(http2=order["front"] == "h2") as client:
            url = order["url"] + PATHS[order["api"]]
            request = body(order["api"], text, stream=order["stream"])
            seen: dict[str, Any] = {"size": size, "port": 0, "head_ms": None, "first_ms": None}
            started = time.monotonic()
            try:
                async with client.stream("POST", url, json=request) as response:
                    seen["head_ms"] = milliseconds_since(started)
                    network = response.extensions["network_stream"]
                    seen["port"] = network.get_extra_info("client_addr")[1]
                    seen["status"] = response.status_code
                    said = ""
                    async for part in response.aiter_text():
                        said += part
                        if seen["first_ms"] is None and self._begins(said):
                            seen["first_ms"] = milliseconds_since(started)
            except httpx.HTTPError as error:
                seen["status"] = f"{type(error).__name__}: {error}"
            print(json.dumps(seen), flush=True)

    def _begins(self, said: str) -> bool:
        return not self._order["stream"] or self._order["token"] in said


def _client(*, http2: bool) -> httpx.AsyncClient:
    """The server's certificate is made on the spot, so nobody can check it."""
    return httpx.AsyncClient(http2=http2, verify=False, timeout=TIMEOUT_S)  # noqa: S501


def piece(source: str, size: int, seed: int) -> str:
    """Another piece of the text each time, so that no cache has it."""
    at = random.Random(seed).randrange(max(1, len(source) - size))
    return source[at : at + size]


def milliseconds_since(started: float) -> float:
    """Of the monotonic clock."""
    return round((time.monotonic() - started) * 1000, 1)


if __name__ == "__main__":
    asyncio.run(Asker(json.load(sys.stdin)).all())
