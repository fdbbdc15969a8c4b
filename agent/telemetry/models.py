"""Decides which models a server has ready, from the list that its API returns."""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import ModelSource
from agent.telemetry.engines import parsed
from agent.telemetry.report import Failure, Models

MOST_MODELS = 10_000

# How each list is requested: method, path and body.
REQUESTS = {
    ModelSource.OPENAI: ("GET", "/v1/models", b""),
    ModelSource.OLLAMA: ("GET", "/api/ps", b""),
    ModelSource.TRITON: ("POST", "/v2/repository/index", b'{"ready":true}'),
}


def read_models(source: ModelSource, answer: bytes) -> Models | Failure:
    """Return the models in an answer; Failure if it is not such a list."""
    found = parsed(answer)
    if isinstance(found, Failure):
        return found
    match source:
        case ModelSource.OPENAI:
            listed = found.get("data") if isinstance(found, dict) else None
        case ModelSource.OLLAMA:
            listed = found.get("models") if isinstance(found, dict) else None
        case ModelSource.TRITON:
            listed = found
    if not isinstance(listed, list):
        return Failure(f"the answer is not a list of models as of {REQUESTS[source][1]}")
    if len(listed) > MOST_MODELS:
        return Failure(f"the answer lists more than {MOST_MODELS} models")
    entries = [entry for entry in listed if isinstance(entry, dict)]
    return Models(frozenset(_names(source, entries)))


def _names(source: ModelSource, entries: Iterable[dict[str, object]]) -> Iterable[str]:
    for entry in entries:
        if source is ModelSource.TRITON and entry.get("state", "READY") != "READY":
            continue
        keys = ("id",) if source is ModelSource.OPENAI else ("name", "model")
        for name in (entry.get(key) for key in keys):
            if isinstance(name, str):
                yield name
                if source is ModelSource.OLLAMA:  # "llama3" is short for "llama3:latest"
                    yield name.removesuffix(":latest")
