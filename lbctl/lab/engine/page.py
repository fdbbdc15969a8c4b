"""Owns the figures that the stand-in engine exports, and formats them like vLLM's.

Names, labels, help texts and buckets are those of vLLM's V1 engine, so the page is as long as a
real one. It is written by hand and not by prometheus-client, because it is queried several times
a second, and unchanged histograms are not formatted again.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

from lbctl.lab.engine.model import Engine, Hardware
from lbctl.lab.engine.openai import MAX_MODEL_TOKENS, MODEL

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BLOCK_TOKENS = 16
_LABELS = f'model_name="{MODEL}"'
_FINISH_REASONS = ("stop", "length", "abort")

_TOKENS = tuple(
    mantissa * 10**power
    for power in range(5)
    for mantissa in (1, 2, 5)
    if mantissa * 10**power <= MAX_MODEL_TOKENS
)
_STEP_TOKENS = (1, *(2**power for power in range(3, 15)))
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_OUTPUT_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Histogram:
    """A Prometheus histogram of one engine."""

    def __init__(self, name: str, about: str, buckets: Sequence[float]) -> None:
        self._about = f"# HELP {name} {about}\n# TYPE {name} histogram\n"
        self._bounds = tuple(map(float, buckets))
        edges = [*map(repr, self._bounds), "+Inf"]
        self._lines = [f'{name}_bucket{{engine="0",le="{edge}",{_LABELS}}} ' for edge in edges]
        labels = f'{{engine="0",{_LABELS}}}'
        self._ends = (f"{name}_count{labels} ", f"{name}_sum{labels} ")
        self._counts = [0] * len(edges)
        self._sum = 0.0
        self._text: str | None = None

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times
        self._text = None

    def text(self) -> str:
        """Return its lines of the page."""
        if self._text is None:
            total = 0
            parts = [self._about]
            for line, count in zip(self._lines, self._counts, strict=True):
                total += count
                parts.append(f"{line}{total}.0\n")
            parts.append(f"{self._ends[0]}{total}.0\n{self._ends[1]}{self._sum!r}\n")
            self._text = "".join(parts)
        return self._text


class Page:
    """What an engine has done, for its metrics page; times are in seconds, as clients see them."""

    def __init__(self) -> None:
        def of(name: str, about: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"vllm:{name}", about, buckets)

        def phase(name: str, word: str) -> Histogram:
            about = f"Histogram of time spent in {word} phase for request."
            return of(f"request_{name}_time_seconds", about, _REQUEST_S)

        def tokens(name: str, about: str) -> Histogram:
            return of(name, about, _TOKENS)

        self._created = time.time()
        self._finished = dict.fromkeys(_FINISH_REASONS, 0)
        self.request_prompt = tokens("request_prompt_tokens", "Number of prefill tokens processed.")
        self.request_generation = tokens(
            "request_generation_tokens", "Number of generation tokens processed."
        )
        self.iteration = of(
            "iteration_tokens_total", "Histogram of number of tokens per engine_step.", _STEP_TOKENS
        )
        self.max_generation = tokens(
            "request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
        )
        self.params_n = of(
            "request_params_n", "Histogram of the n request parameter.", (1, 2, 5, 10, 20)
        )
        self.params_max_tokens = tokens(
            "request_params_max_tokens", "Histogram of the max_tokens request parameter."
        )
        self.first_token = of(
            "time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            _FIRST_TOKEN_S,
        )
        self.inter_token = of(
            "inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            _OUTPUT_TOKEN_S,
        )
        self.per_output_token = of(
            "request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            _OUTPUT_TOKEN_S,
        )
        self.latency = of(
            "e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            _REQUEST_S,
        )
        self.queue = phase("queue", "WAITING")
        self.inference = phase("inference", "RUNNING")
        self.prefill = phase("prefill", "PREFILL")
        self.decode = phase("decode", "DECODE")
        self._histograms = [v for v in vars(self).values() if isinstance(v, Histogram)]

    def finished(self, reason: str) -> None:
        """Count a request that has ended."""
        self._finished[reason] += 1

    def text(self, engine: Engine) -> bytes:
        """Return the page."""
        parts = [
            _gauge(
                "num_requests_running",
                "Number of requests in model execution batches.",
                engine.running,
            ),
            _gauge(
                "num_requests_waiting",
                "Number of requests waiting to be processed.",
                engine.waiting,
            ),
            _gauge(
                "kv_cache_usage_perc",
                "KV-cache usage. 1 means 100 percent usage.",
                engine.kv_usage,
            ),
            *self._counters(engine),
            *(histogram.text() for histogram in self._histograms),
            _cache_config(engine.hardware),
        ]
        return "".join(parts).encode()

    def _counters(self, engine: Engine) -> list[str]:
        counters = (
            (
                "prefix_cache_queries",
                "Prefix cache queries, in terms of number of queried tokens.",
                engine.prompt_tokens,
            ),
            (
                "prefix_cache_hits",
                "Prefix cache hits, in terms of number of cached tokens.",
                engine.cached_tokens,
            ),
            (
                "num_preemptions",
                "Cumulative number of preemption from the engine.",
                engine.preemptions,
            ),
            ("prompt_tokens", "Number of prefill tokens processed.", engine.prompt_tokens),
            (
                "generation_tokens",
                "Number of generation tokens processed.",
                engine.generation_tokens,
            ),
        )
        lines = [self._counter(name, about, [("", value)]) for name, about, value in counters]
        ended = [(f'finished_reason="{why}",', n) for why, n in self._finished.items()]
        about = "Count of successfully processed requests."
        return [*lines, self._counter("request_success", about, ended)]

    def _counter(self, name: str, about: str, series: Sequence[tuple[str, int]]) -> str:
        lines = [f"# HELP vllm:{name}_total {about}\n# TYPE vllm:{name}_total counter\n"]
        for labels, value in series:
            lines.append(f'vllm:{name}_total{{engine="0",{labels}{_LABELS}}} {value}.0\n')
        lines.append(f"# HELP vllm:{name}_created {about}\n# TYPE vllm:{name}_created gauge\n")
        for labels, _ in series:
            lines.append(f'vllm:{name}_created{{engine="0",{labels}{_LABELS}}} {self._created!r}\n')
        return "".join(lines)


def _cache_config(hardware: Hardware) -> str:
    about = {
        "block_size": _BLOCK_TOKENS,
        "cache_dtype": "auto",
        "calculate_kv_scales": False,
        "cpu_offload_gb": 0,
        "enable_prefix_caching": hardware.prefix_tokens > 0,
        "engine": 0,
        "gpu_memory_utilization": 0.9,
        "is_attention_free": False,
        "num_cpu_blocks": None,
        "num_gpu_blocks": hardware.kv_tokens // _BLOCK_TOKENS,
        "num_gpu_blocks_override": None,
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": None,
        "swap_space": 4,
        "swap_space_bytes": 4294967296,
    }
    labels = ",".join(f'{name}="{value}"' for name, value in about.items())
    return (
        "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n"
        "# TYPE vllm:cache_config_info gauge\n"
        f"vllm:cache_config_info{{{labels}}} 1.0\n"
    )


def _gauge(name: str, about: str, value: float) -> str:
    return (
        f"# HELP vllm:{name} {about}\n# TYPE vllm:{name} gauge\n"
        f'vllm:{name}{{engine="0",{_LABELS}}} {float(value)!r}\n'
    )
