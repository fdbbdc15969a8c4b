"""Decides which part of OpenAI's API the stand-in engine understands, and formats its answers.

The JSON and the server-sent events are the same as vLLM's, so that clients and balancers see what
they would see from a real engine. The words themselves mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lbctl.lab.http import BadRequestError

MODEL = "meta-llama/Llama-2-70b-chat-hf"
MAX_MODEL_TOKENS = 32_768
BYTES_PER_TOKEN = 5
EVENT_STREAM = "text/event-stream; charset=utf-8"
_KNOWN_BY = 256  # characters of a conversation's first message
_DEFAULT_TOKENS = 16  # vLLM's default for /v1/completions
_WORDS = (" the", " load", " goes", " where", " the", " work", " is", " least", ",", " and", " it")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a request asks for."""

    chat: bool
    stream: bool
    with_usage: bool  # for a stream; a whole answer always has it
    model: str
    prompt_tokens: int
    max_tokens: int
    beginnings: tuple[tuple[str, int], ...] = ()  # of the prompt, as ``Job.prefixes``
    conversation: str | None = None  # the key of its cache


def read_completion(path: str, body: bytes) -> Completion:
    """Read a request to ``/v1/completions`` or ``/v1/chat/completions``."""
    chat = path.endswith("/chat/completions")
    try:
        document = json.loads(body)
        prompt = _chat_prompt(document) if chat else _prompt(document)
        options = document.get("stream_options") or {}
        tokens = _tokens(prompt)
        beginnings = _beginnings(document["messages"], tokens) if chat else ()
        asked = Completion(
            chat=chat,
            stream=bool(document.get("stream", False)),
            with_usage=bool(options.get("include_usage", False)),
            model=str(document.get("model", MODEL)),
            prompt_tokens=tokens,
            max_tokens=_max_tokens(document),
            beginnings=beginnings,
            conversation=beginnings[-1][0] if beginnings else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequestError(400, f"this is not a completion request: {error!r}") from error
    if asked.max_tokens < 1:
        raise BadRequestError(400, "max_tokens must be at least 1")
    if (total := asked.prompt_tokens + asked.max_tokens) > MAX_MODEL_TOKENS:
        raise BadRequestError(
            400, f"{total} tokens are more than the model's maximum of {MAX_MODEL_TOKENS}"
        )
    return asked


def _tokens(text: str) -> int:
    return max(1, -(-len(text.encode()) // BYTES_PER_TOKEN))


def _beginnings(messages: Sequence[Mapping[str, str]], tokens: int) -> tuple[tuple[str, int], ...]:
    """Return the prefixes that a chat shares with others of its system prompt, and with its own
    past.

    Real engines compare block by block; here a conversation is identified by its beginning.
    """
    found: list[tuple[str, int]] = []
    name = hashlib.blake2b(digest_size=16)
    if messages[0].get("role") == "system":
        name.update(messages[0]["content"].encode())
        found.append((name.hexdigest(), _tokens(messages[0]["content"])))
    said = [message["content"] for message in messages if message.get("role") != "system"]
    if said:
        name.update(said[0][:_KNOWN_BY].encode())
        found.append((name.hexdigest(), tokens))
    return tuple(found)


def _max_tokens(document: Mapping[str, Any]) -> int:
    asked = document.get("max_completion_tokens", document.get("max_tokens"))
    return _DEFAULT_TOKENS if asked is None else int(asked)


def _prompt(document: Mapping[str, Any]) -> str:
    prompt = document["prompt"]
    return prompt if isinstance(prompt, str) else "".join(prompt)


def _chat_prompt(document: Mapping[str, Any]) -> str:
    return "".join(message["content"] for message in document["messages"])


def words(start: int, count: int) -> str:
    """Return the text of that many tokens, from the one with this number on."""
    return "".join(_WORDS[number % len(_WORDS)] for number in range(start, start + count))


class Wording:
    """Formats the answer to one request."""

    def __init__(self, asked: Completion) -> None:
        self._asked = asked
        self._id = f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def events(self, start: int, count: int, last: bool) -> bytes:
        """Return the events of that many tokens of a stream; ``last``: with those that end it."""
        finish = '"length"' if last else "null"
        text = words(start, count)
        parts = []
        if self._asked.chat:
            if start == 0:
                parts.append(self._chunk('"delta":{"role":"assistant","content":""}', "null"))
            parts.append(self._chunk(f'"delta":{{"content":"{text}"}}', finish))
        else:
            parts.append(self._chunk(f'"text":"{text}"', finish))
        if last:
            if self._asked.with_usage:
                usage = json.dumps(self._usage(start + count), separators=(",", ":"))
                parts.append(f'data: {{{self._about(True)},"choices":[],"usage":{usage}}}\n\n')
            parts.append("data: [DONE]\n\n")
        return "".join(parts).encode()

    def whole(self, count: int) -> bytes:
        """Return the answer to a request that asked for no stream."""
        text = words(0, count)
        choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": "length"}
        if self._asked.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        document = json.loads(f"{{{self._about(False)}}}")
        return json.dumps(document | {"choices": [choice], "usage": self._usage(count)}).encode()

    def _chunk(self, content: str, finish: str) -> str:
        choice = f'{{"index":0,{content},"logprobs":null,"finish_reason":{finish}}}'
        return f'data: {{{self._about(True)},"choices":[{choice}]}}\n\n'

    def _about(self, chunk: bool) -> str:
        kind = "chat.completion" if self._asked.chat else "text_completion"
        kind += ".chunk" if chunk and self._asked.chat else ""
        model = json.dumps(self._asked.model)
        about = f'"id":"{self._id}","object":"{kind}","created":{self._created}'
        return f'{about},"model":{model}'

    def _usage(self, count: int) -> dict[str, int]:
        prompt = self._asked.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + count,
            "completion_tokens": count,
        }


def models() -> bytes:
    """Return the answer of ``/v1/models``."""
    model = {
        "id": MODEL,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "vllm",
        "root": MODEL,
        "parent": None,
        "max_model_len": MAX_MODEL_TOKENS,
    }
    return json.dumps({"object": "list", "data": [model]}).encode()


def refusal(error: BadRequestError) -> bytes:
    """Return an error in the engines' format."""
    about = {
        "message": str(error),
        "type": "BadRequestError",
        "param": None,
        "code": error.status,
    }
    return json.dumps({"error": about}).encode()
