"""Decides from an engine's own page how busy it is: which metrics to read, and what to sum.

Requests are summed over engines, models and data-parallel ranks. Tensor-, pipeline- and
expert-parallel ranks work on the same requests and each reports all of them, so the largest value
counts. KV usage is the largest of all, because a request that lands on a full engine waits, however
empty the others are.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from agent.model import TelemetryKind
from agent.telemetry.exposition import Hints, Sample, TooManySamplesError, labels_of, samples
from agent.telemetry.report import (
    MOST_REQUESTS,
    MOST_TOKENS,
    EngineReport,
    Failure,
    plausible,
    share,
)

USUAL_PATHS = {
    TelemetryKind.VLLM: "/metrics",
    TelemetryKind.SGLANG: "/metrics",
    TelemetryKind.TGI: "/metrics",
    TelemetryKind.TRITON: "/metrics",
    TelemetryKind.TRTLLM: "/prometheus/metrics",
    TelemetryKind.RAY_SERVE: "/metrics",
    TelemetryKind.LLAMACPP: "/metrics",
    TelemetryKind.LMDEPLOY: "/metrics",
    TelemetryKind.NIM: "/v1/metrics",
    TelemetryKind.DYNAMO: "/metrics",
    TelemetryKind.OLLAMA: "/api/ps",
    TelemetryKind.PROMETHEUS: "/metrics",
}
# The ports of pages that have one of their own; the other kinds answer on the service's port.
USUAL_PORTS = {
    TelemetryKind.TRITON: 8002,
    TelemetryKind.RAY_SERVE: 8080,
    TelemetryKind.AGENT_CHECK: 9119,  # our node agent's
}

MOST_JSON_BYTES = 2 * 2**20

_SAME_REQUESTS = frozenset(("tp_rank", "pp_rank", "ep_rank", "moe_ep_rank", "cp_rank"))


class Page:
    """A page that is being read. It finds metrics by name, and counts implausible values."""

    def __init__(self, text: bytes, hints: Hints | None) -> None:
        self.text = text
        self.hints = hints
        self.dropped = 0

    def all(self, *names: bytes) -> list[Sample]:
        """Return the samples of the first of these names that is present. Callers give the newest
        name first.
        """
        for name in names:
            if found := samples(self.text, name, self.hints):
                return found
        return []

    def total(self, *names: bytes) -> float | None:
        """Return the sum of requests; None if none of these names is present."""
        return self.sum(self.all(*names))

    def sum(self, found: Sequence[Sample], most: float = MOST_REQUESTS) -> float | None:
        """Return the sum of these samples, of requests or of another count of at most ``most``."""
        if len(found) > 1 and any(b"_rank=" in sample.labels for sample in found):
            return self._sum_of_groups(found, most)
        kept = [sample.value for sample in found if plausible(sample.value, most)]
        self.dropped += len(found) - len(kept)
        return sum(kept) if kept else None

    def tokens(self, *names: bytes) -> float | None:
        """Return the sum of tokens; None if none of these names is present."""
        return self.sum(self.all(*names), MOST_TOKENS)

    def fullest(self, *names: bytes) -> float | None:
        """Return the largest of the shares; None if there is none."""
        found = [share(sample.value) for sample in self.all(*names)]
        kept = [value for value in found if value is not None]
        self.dropped += len(found) - len(kept)
        return max(kept, default=None)

    def _sum_of_groups(self, found: Sequence[Sample], most: float) -> float | None:
        groups: dict[frozenset[tuple[str, str]], float] = {}
        for sample in found:
            if not plausible(sample.value, most):
                self.dropped += 1
                continue
            labels = labels_of(sample.labels)
            group = frozenset(item for item in labels.items() if item[0] not in _SAME_REQUESTS)
            groups[group] = max(groups.get(group, 0.0), sample.value)
        return sum(groups.values()) if groups else None


type Reader = Callable[[Page], EngineReport | Failure]


def read_engine(
    kind: TelemetryKind, text: bytes, hints: Hints | None = None
) -> EngineReport | Failure:
    """Return what the page of an engine of this kind says; Failure if it is not such a page."""
    page = Page(text, hints)
    try:
        report = _READERS[kind](page)
    except TooManySamplesError as error:
        return Failure(str(error))
    # Ollama's report is empty while no model is loaded; that is a valid answer.
    if report == EngineReport(dropped=page.dropped) and kind is not TelemetryKind.OLLAMA:
        if page.dropped:
            return Failure(f"none of the {page.dropped} values on the page can be true")
        return Failure(f"{looks_like(text)}none of the metrics of {kind.value} is on the page")
    return report


def looks_like(text: bytes) -> str:
    """Return what the text is instead of metrics, as the start of a sentence; "" if unclear."""
    start = text[:64].lstrip().lower()
    if start.startswith(b"<"):
        return "the page is HTML: "
    if start.startswith((b"{", b"[")):
        return "the page is JSON: "
    return "" if start else "the page is empty: "


def _vllm(page: Page, prefix: bytes = b"vllm:") -> EngineReport:
    running = page.total(prefix + b"num_requests_running")
    waiting = page.total(prefix + b"num_requests_waiting")
    kv_usage = page.fullest(prefix + b"kv_cache_usage_perc")
    if kv_usage is None:  # before 0.10: another name, and swapped-out requests wait as well
        kv_usage = page.fullest(prefix + b"gpu_cache_usage_perc")
        swapped = page.total(prefix + b"num_requests_swapped")
        if waiting is not None and swapped is not None:
            waiting += swapped
    prompt = page.tokens(
        prefix + b"prefix_cache_queries_total", prefix + b"gpu_prefix_cache_queries_total"
    )
    cached = page.tokens(
        prefix + b"prefix_cache_hits_total", prefix + b"gpu_prefix_cache_hits_total"
    )
    return EngineReport(running, waiting, kv_usage, None, prompt, cached, page.dropped)


def _sglang(page: Page) -> EngineReport:
    def requests(*names: bytes) -> float | None:
        found = page.all(*names)
        # The sample without a priority includes those of the single priorities.
        whole = [s for s in found if b"priority=" not in s.labels or b'priority=""' in s.labels]
        return page.sum(whole or found)

    return EngineReport(
        requests(b"sglang:num_running_reqs", b"sglang_num_running_reqs"),
        requests(b"sglang:num_queue_reqs", b"sglang_num_queue_reqs"),
        page.fullest(b"sglang:token_usage", b"sglang_token_usage"),
        prompt_tokens=page.tokens(b"sglang:prompt_tokens_total", b"sglang_prompt_tokens_total"),
        cached_tokens=page.tokens(b"sglang:cached_tokens_total", b"sglang_cached_tokens_total"),
        dropped=page.dropped,
    )


def _tgi(page: Page) -> EngineReport:
    running = page.total(b"tgi_batch_current_size")
    return EngineReport(running, page.total(b"tgi_queue_size"), dropped=page.dropped)


def _triton(page: Page) -> EngineReport:
    pending = page.total(b"nv_inference_pending_request_count")
    requests = _by_label(page.all(b"nv_trt_llm_request_metrics"), "request_type")
    active = page.sum(requests["active"])
    scheduled = page.sum(requests["scheduled"])
    waiting = page.sum(requests["waiting"])
    if waiting is None and active is not None and scheduled is not None:
        waiting = max(0.0, active - scheduled)
    if pending is not None:  # not handed to the model yet
        waiting = pending + (waiting or 0.0)
    running = active if scheduled is None else scheduled
    return EngineReport(running, waiting, _triton_kv(page), dropped=page.dropped)


def _triton_kv(page: Page) -> float | None:
    blocks = _by_label(page.all(b"nv_trt_llm_kv_cache_block_metrics"), "kv_cache_block_type")
    used, most = page.sum(blocks["used"]), page.sum(blocks["max"])
    if used is not None and most:
        return share(used / most)
    fractions = [share(sample.value) for sample in blocks["fraction"]]
    return max((value for value in fractions if value is not None), default=None)


def _trtllm(page: Page) -> EngineReport | Failure:
    if page.text[:64].lstrip().startswith(b"["):
        return _trtllm_iterations(page)
    return EngineReport(
        page.total(b"trtllm_num_requests_running", b"trtllm:num_requests_running"),
        page.total(b"trtllm_num_requests_waiting", b"trtllm:num_requests_waiting"),
        page.fullest(b"trtllm_kv_cache_utilization", b"trtllm:kv_cache_utilization"),
        prompt_tokens=page.tokens(b"trtllm_prompt_tokens_total"),
        cached_tokens=page.tokens(b"trtllm_prompt_cached_tokens_total"),
        dropped=page.dropped,
    )


def _trtllm_iterations(page: Page) -> EngineReport | Failure:
    """Read the list of iterations that ``/metrics`` of trtllm-serve returns, the latest last."""
    found = parsed(page.text)
    if isinstance(found, Failure):
        return found
    if not isinstance(found, list) or not found or not isinstance(found[-1], dict):
        return Failure("no iteration since it was last asked; /prometheus/metrics has more")
    latest = found[-1]
    waiting = _number(latest, "numQueuedRequests")
    paused = _number(latest.get("inflightBatchingStats"), "numPausedRequests")
    cache = latest.get("kvCacheStats")
    used, most = _number(cache, "usedNumBlocks"), _number(cache, "maxNumBlocks")
    return EngineReport(
        _number(latest, "numActiveRequests"),
        waiting if waiting is None else waiting + (paused or 0.0),
        share(used / most) if used is not None and most else None,
    )


def _ray_serve(page: Page) -> EngineReport:
    """Read the engine's metrics if Ray Serve runs vLLM, otherwise what its replicas process."""
    queued = page.total(b"ray_serve_deployment_queued_queries")
    for prefix in (b"ray_vllm_", b"ray_vllm:"):
        engine = _vllm(page, prefix)
        if engine.queue is not None:
            waiting = (engine.waiting or 0.0) + (queued or 0.0)
            return replace(engine, waiting=waiting)
    running = _of_applications(page, page.all(b"ray_serve_replica_processing_queries"))
    return EngineReport(running, queued, dropped=page.dropped)


def _of_applications(page: Page, found: Sequence[Sample]) -> float | None:
    """Return the requests of all applications. A request counts in each deployment that it passes,
    so the busiest deployment counts for its application.
    """
    deployments: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in found:
        labels = labels_of(sample.labels)
        deployments[labels.get("application", ""), labels.get("deployment", "")].append(sample)
    busiest: dict[str, float] = {}
    for (application, _), of_it in deployments.items():
        if (total := page.sum(of_it)) is not None:
            busiest[application] = max(busiest.get(application, 0.0), total)
    return sum(busiest.values()) if busiest else None


def _llamacpp(page: Page) -> EngineReport:
    """Without ``--metrics`` the server answers 501. Prompt tokens do not include cached ones."""
    computed = page.tokens(b"llamacpp:prompt_tokens_total")
    cached = page.tokens(b"llamacpp:prompt_tokens_cached_total")
    known = computed is not None and cached is not None
    return EngineReport(
        page.total(b"llamacpp:requests_processing"),
        page.total(b"llamacpp:requests_deferred"),
        page.fullest(b"llamacpp:kv_cache_usage_ratio"),  # only older versions have it
        prompt_tokens=(computed or 0.0) + (cached or 0.0) if known else None,
        cached_tokens=cached,
        dropped=page.dropped,
    )


def _lmdeploy(page: Page) -> EngineReport:
    """Count as waiting the requests in the engine's queue, and those that wait before it for one of
    the places of its API server.
    """
    waiting = page.total(b"lmdeploy:num_requests_waiting")
    before = page.total(b"lmdeploy:num_api_requests_waiting")
    return EngineReport(
        page.total(b"lmdeploy:num_requests_running"),
        None if waiting is None else waiting + (before or 0.0),
        page.fullest(b"lmdeploy:gpu_cache_usage_perc"),
        prompt_tokens=page.tokens(b"lmdeploy:prompt_tokens_total"),
        cached_tokens=page.tokens(b"lmdeploy:cached_tokens_total"),
        dropped=page.dropped,
    )


def _nim(page: Page) -> EngineReport:
    """Read a page of NIM: NIM 2 passes on its engine's page, NIM 1 uses vLLM's names without their
    prefix.
    """
    engine = _vllm(page)
    return engine if engine.queue is not None else _vllm(page, b"")


def _dynamo(page: Page) -> EngineReport | Failure:
    """Read a page of a Dynamo frontend, which counts all requests of its workers, or of a worker,
    which passes on its engine's page.
    """
    if page.all(b"dynamo_frontend_disconnected_clients", b"dynamo_frontend_inflight_requests"):
        return _dynamo_frontend(page)
    for reader in (_vllm, _sglang, _trtllm):
        engine = reader(page)
        if isinstance(engine, EngineReport) and engine.queue is not None:
            return engine
    # The engine has had no request yet, or its page is not passed on.
    endpoints = _by_label(page.all(b"dynamo_component_inflight_requests"), "dynamo_endpoint")
    running = page.sum(endpoints["generate"])
    kv_usage = page.fullest(b"dynamo_component_gpu_cache_usage_percent")
    return EngineReport(running, None, kv_usage, dropped=page.dropped)


def _dynamo_frontend(page: Page) -> EngineReport:
    """Read a frontend's page. Its queued requests are those in flight without a first token.

    A model's series appear with its first request, so missing ones count as 0.
    """
    inflight = page.total(b"dynamo_frontend_inflight_requests") or 0.0
    queued = page.total(b"dynamo_frontend_queued_requests") or 0.0
    return EngineReport(
        max(0.0, inflight - queued),
        queued,
        prompt_tokens=page.tokens(b"dynamo_frontend_input_sequence_tokens_sum"),
        cached_tokens=page.tokens(b"dynamo_frontend_cached_tokens_sum"),
        dropped=page.dropped,
    )


def _ollama(page: Page) -> EngineReport | Failure:
    """Read which models are loaded and how much of them is on the GPU; Ollama reports neither
    requests nor a queue.
    """
    found = parsed(page.text)
    if isinstance(found, Failure):
        return found
    loaded = found.get("models") if isinstance(found, dict) else None
    if not isinstance(loaded, list):
        return Failure("the answer is not that of Ollama's /api/ps")
    sizes = [_number(model, "size") or 0.0 for model in loaded]
    on_gpu = [_number(model, "size_vram") or 0.0 for model in loaded]
    return EngineReport(gpu_share=share(sum(on_gpu) / sum(sizes)) if sum(sizes) else None)


def parsed(text: bytes) -> Any:
    """Return the parsed JSON of an answer, or Failure."""
    if len(text) > MOST_JSON_BYTES:  # parsing it would delay all other reports
        return Failure(f"the answer is longer than {MOST_JSON_BYTES >> 20} MiB of JSON")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        kind = "HTML" if text[:64].lstrip().startswith(b"<") else "not JSON"
        return Failure(f"the answer is {kind}")


def _number(of: object, key: str) -> float | None:
    value = of.get(key) if isinstance(of, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if plausible(value, 1e18) else None


def _by_label(found: Sequence[Sample], label: str) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in found:
        groups[labels_of(sample.labels).get(label, "")].append(sample)
    return groups


_READERS: dict[TelemetryKind, Reader] = {
    TelemetryKind.VLLM: _vllm,
    TelemetryKind.SGLANG: _sglang,
    TelemetryKind.TGI: _tgi,
    TelemetryKind.TRITON: _triton,
    TelemetryKind.TRTLLM: _trtllm,
    TelemetryKind.RAY_SERVE: _ray_serve,
    TelemetryKind.LLAMACPP: _llamacpp,
    TelemetryKind.LMDEPLOY: _lmdeploy,
    TelemetryKind.NIM: _nim,
    TelemetryKind.DYNAMO: _dynamo,
    TelemetryKind.OLLAMA: _ollama,
}
