"""What the stand-in engine reads and says: OpenAI's JSON and events, vLLM's metrics page."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lbctl.lab.engine import openai
from lbctl.lab.engine.model import H100, Engine, Job
from lbctl.lab.engine.page import Histogram, Page
from lbctl.lab.http import BadRequestError

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def chat_body(text: str = "hello", **fields: object) -> bytes:
    return body(messages=[{"role": "user", "content": text}], **fields)


def test_a_prompt_has_a_token_for_every_five_bytes() -> None:
    assert openai.read_completion(COMPLETIONS, body(prompt="x" * 5001)).prompt_tokens == 1001
    assert openai.read_completion(COMPLETIONS, body(prompt="é" * 5)).prompt_tokens == 2
    assert openai.read_completion(CHAT, chat_body("x" * 50)).prompt_tokens == 10
    assert openai.read_completion(COMPLETIONS, body(prompt="")).prompt_tokens == 1


def test_what_is_asked_for_is_read() -> None:
    asked = openai.read_completion(
        CHAT,
        chat_body(stream=True, max_tokens=7, model="m", stream_options={"include_usage": True}),
    )
    assert (asked.chat, asked.stream, asked.with_usage, asked.model) == (True, True, True, "m")
    assert asked.max_tokens == 7
    plain = openai.read_completion(COMPLETIONS, body(prompt="x", max_tokens=None))
    assert (plain.chat, plain.stream, plain.max_tokens) == (False, False, 16)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (COMPLETIONS, b""),
        (COMPLETIONS, b"[]"),
        (COMPLETIONS, b"{}"),
        (COMPLETIONS, body(prompt=7)),
        (COMPLETIONS, body(prompt="x", max_tokens=0)),
        (COMPLETIONS, body(prompt="x", max_tokens="many")),
        (COMPLETIONS, body(prompt="x", max_tokens=40_000)),
        (COMPLETIONS, body(prompt="x", stream_options=3)),
        (CHAT, body(prompt="x")),
        (CHAT, body(messages=["x"])),
        (CHAT, b"\xff"),
    ],
)
def test_nonsense_is_refused_with_400(path: str, sent: bytes) -> None:
    with pytest.raises(BadRequestError) as caught:
        openai.read_completion(path, sent)
    assert caught.value.status == 400
    assert json.loads(openai.refusal(caught.value))["error"]["code"] == 400


def events(data: bytes) -> list[dict[str, Any]]:
    """The JSON of events, without the farewell."""
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_a_stream_of_a_chat_begins_with_the_role_and_ends_with_done() -> None:
    asked = openai.read_completion(CHAT, chat_body(stream=True, max_tokens=5))
    wording = openai.Wording(asked)
    first, rest = wording.events(0, 1, last=False), wording.events(1, 4, last=True)
    role, token = events(first)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert token["object"] == "chat.completion.chunk"
    assert token["choices"][0]["finish_reason"] is None
    (last,) = events(rest)
    assert last["choices"][0]["finish_reason"] == "length"
    assert rest.endswith(b"data: [DONE]\n\n")
    said = token["choices"][0]["delta"]["content"] + last["choices"][0]["delta"]["content"]
    whole = json.loads(wording.whole(5))
    assert said == whole["choices"][0]["message"]["content"] == openai.words(0, 5)
    assert whole["usage"] == {"prompt_tokens": 1, "total_tokens": 6, "completion_tokens": 5}


def test_usage_comes_last_if_it_was_asked_for() -> None:
    sent = body(prompt="x", stream=True, max_tokens=1, stream_options={"include_usage": True})
    wording = openai.Wording(openai.read_completion(COMPLETIONS, sent))
    token, usage = events(wording.events(0, 1, last=True))
    assert (token["object"], token["choices"][0]["text"]) == ("text_completion", openai.words(0, 1))
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 2)


def samples(page: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_page_is_as_long_as_a_real_one_and_tells_the_load() -> None:
    engine, page = Engine(H100), Page()
    engine.add(Job(13_000, 10, 0.0))
    engine.begin()
    engine.add(Job(10, 10, 0.0))
    text = page.text(engine).decode()
    found = samples(text)
    about = {"engine": "0", "model_name": openai.MODEL}
    assert found["vllm:num_requests_running"] == [(about, 1.0)]
    assert found["vllm:num_requests_waiting"] == [(about, 1.0)]
    ((_, usage),) = found["vllm:kv_cache_usage_perc"]
    assert usage == pytest.approx(13_000 / H100.kv_tokens)
    assert found["vllm:prompt_tokens_total"] == [(about, 13_000.0)]
    assert len(text) > 20_000
    assert "# TYPE vllm:time_to_first_token_seconds histogram" in text


def test_a_histogram_counts_up_to_each_bound_and_changes_after_it_was_written() -> None:
    histogram = Histogram("x", "An x.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    found = samples(histogram.text())
    assert [(labels["le"], value) for labels, value in found["x_bucket"]] == [
        ("0.1", 2.0),
        ("1.0", 3.0),
        ("+Inf", 4.0),
    ]
    assert found["x_sum"][0][1] == pytest.approx(7.65)
    histogram.observe(0.5, times=3)
    assert samples(histogram.text())["x_count"][0][1] == 7.0
