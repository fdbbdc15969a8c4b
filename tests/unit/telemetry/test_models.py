"""Lists of loaded models."""

from __future__ import annotations

import json

import pytest

from agent.model import ModelSource
from agent.telemetry.models import read_models
from agent.telemetry.report import Failure, Models


def names(source: ModelSource, answer: object) -> set[str]:
    report = read_models(source, json.dumps(answer).encode())
    assert isinstance(report, Models), report
    return set(report.names)


def test_openais_list_has_ids() -> None:
    answer = {"object": "list", "data": [{"id": "llama", "object": "model"}, {"id": "lora-1"}]}
    assert names(ModelSource.OPENAI, answer) == {"llama", "lora-1"}


def test_ollamas_latest_may_be_left_out() -> None:
    answer = {"models": [{"name": "gemma3:latest", "model": "gemma3:latest"}, {"name": "q:4b"}]}
    assert names(ModelSource.OLLAMA, answer) == {"gemma3", "gemma3:latest", "q:4b"}


def test_tritons_index_counts_what_is_ready() -> None:
    answer = [
        {"name": "a", "version": "1", "state": "READY"},
        {"name": "b", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "c"},
    ]
    assert names(ModelSource.TRITON, answer) == {"a", "c"}


def test_no_model_is_an_answer() -> None:
    assert names(ModelSource.OLLAMA, {"models": []}) == set()


@pytest.mark.parametrize("source", list(ModelSource))
@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", b"7", b"null", b'{"data":7,"models":7}', b"{" * 100_000, b"[" * 100_000,
     b"\xff"],
)  # fmt: skip
def test_what_is_no_list_is_a_failure(source: ModelSource, answer: bytes) -> None:
    assert isinstance(read_models(source, answer), Failure)


def test_odd_entries_are_passed_over() -> None:
    assert names(ModelSource.OPENAI, {"data": [7, None, {}, {"id": 3}, {"id": "m"}]}) == {"m"}


def test_a_list_without_end_is_refused() -> None:
    report = read_models(ModelSource.OPENAI, json.dumps({"data": [{}] * 10_001}).encode())
    assert report == Failure("the answer lists more than 10000 models")


def test_an_answer_that_would_take_long_to_read_is_refused() -> None:
    report = read_models(ModelSource.OPENAI, b'{"data":[' + b" " * 2**21 + b"]}")
    assert report == Failure("the answer is longer than 2 MiB of JSON")
