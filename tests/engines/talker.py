"""Holds conversations with an engine, each from an address of its own, and prints what it saw of
each turn: a line of JSON. Run with the clients' environment; standard input: a ``Talk`` of
``homes.py`` as JSON. Each turn opens a connection of its own and repeats all that was said.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import httpx

TIMEOUT_S = 600.0


async def conversation(talk: dict[str, Any], number: int) -> None:
    """All turns of one."""
    draw = random.Random(talk["seed"] + number)
    address = talk["addresses"][number % len(talk["addresses"])]
    await asyncio.sleep(draw.uniform(0, talk["begin_s"]))
    messages: list[dict[str, str]] = []
    for turn in range(talk["turns"]):
        size = talk["first_bytes"] if turn == 0 else talk["turn_bytes"]
        at = draw.randrange(len(talk["text"]) - size)
        messages.append({"role": "user", "content": talk["text"][at : at + size]})
        said, first_ms, started = "", None, time.monotonic()
        prompt = cached = 0
        body = {"model": "tiny", "stream": True, "messages": messages, "max_tokens": 8,
                "stream_options": {"include_usage": True}}  # fmt: skip
        # The tier's certificate is for a name, and is not what is tried here.
        way = httpx.AsyncHTTPTransport(local_address=address, verify=False)
        async with (
            httpx.AsyncClient(transport=way, timeout=TIMEOUT_S) as client,
            client.stream("POST", talk["url"] + "/v1/chat/completions", json=body) as response,
        ):
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if usage := chunk.get("usage"):
                    prompt = usage["prompt_tokens"]
                    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                if "timings" in chunk:  # llama.cpp's own
                    cached = chunk["timings"].get("cache_n", cached)
                for choice in chunk["choices"]:
                    if first_ms is None:
                        first_ms = round((time.monotonic() - started) * 1000, 1)
                    said += choice["delta"].get("content") or ""
        seen = {"conversation": number, "turn": turn, "status": response.status_code,
                "first_ms": first_ms, "prompt": prompt, "cached": cached}  # fmt: skip
        print(json.dumps(seen), flush=True)
        messages.append({"role": "assistant", "content": said or "."})
        await asyncio.sleep(draw.expovariate(1 / talk["think_s"]))


async def main(talk: dict[str, Any]) -> None:
    """Every conversation."""
    await asyncio.gather(*(conversation(talk, number) for number in range(talk["count"])))


if __name__ == "__main__":
    asyncio.run(main(json.load(sys.stdin)))
