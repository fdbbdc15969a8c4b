"""Decides what this dashboard shows: what engines and GPUs report, and what was learned."""

from __future__ import annotations

from deploy.grafana.boards.common import UNWANTED, WRONG
from deploy.grafana.panels import FAIR, GOOD, Dashboard, Row, graph, timeline, yes_no
from deploy.grafana.queries import BACKEND, NODE, SERVICE, least, most, rate, ratio, total

_GPU = (*BACKEND, "gpu")

LOAD = Dashboard(
    "load",
    "GPUs and load",
    "What engines and GPUs report, and what each balancer has learned of their speed.",
    (
        Row(
            "Engines",
            (
                graph(
                    "Requests running", "short", most("steelyard_engine_running_requests", BACKEND)
                ),
                graph(
                    "Requests in the engine's queue",
                    "short",
                    most("steelyard_engine_waiting_requests", BACKEND),
                ),
                graph(
                    "KV cache in use",
                    "percentunit",
                    most("steelyard_engine_kv_usage_ratio", BACKEND),
                    top=1,
                ),
                graph(
                    "Prompt tokens in a second",
                    "short",
                    rate("steelyard_engine_prompt_tokens_total", (*BACKEND, *NODE)),
                    about="Each balancer asks the engine itself: two of them see the same tokens.",
                ),
                graph(
                    "Prompt tokens from the prefix cache",
                    "percentunit",
                    ratio(
                        rate("steelyard_engine_cached_tokens_total", BACKEND),
                        rate("steelyard_engine_prompt_tokens_total", BACKEND),
                    ),
                    top=1,
                ),
                graph(
                    "Age of the newest report",
                    "s",
                    most("steelyard_telemetry_age_seconds", BACKEND),
                ),
                timeline(
                    "Reports count",
                    yes_no(yes=GOOD, no=FAIR),
                    least("steelyard_telemetry_fresh", BACKEND),
                    "While they do not, open connections count instead.",
                    width=12,
                ),
                timeline(
                    "Hot",
                    UNWANTED,
                    most("steelyard_hot", BACKEND),
                    "The backend reports more than it can take, and gets new flows only where all "
                    "do.",
                    width=12,
                ),
            ),
        ),
        Row(
            "GPUs",
            (
                graph(
                    "Clock beside its maximum",
                    "percentunit",
                    most("steelyard_gpu_clock_ratio", _GPU),
                    top=1,
                ),
                timeline(
                    "Throttled",
                    UNWANTED,
                    most("steelyard_gpu_throttled", _GPU),
                    "By something but its owner's wish.",
                ),
                timeline(
                    "Failing",
                    WRONG,
                    most("steelyard_gpu_failing", _GPU),
                    "Lost, waiting for a reset, or with a hardware error. The backend is drained.",
                ),
            ),
        ),
        Row(
            "What the balancer sees itself",
            (
                graph(
                    "Busy connections",
                    "short",
                    most("steelyard_busy_connections", BACKEND),
                    about="They await an answer, or had a packet in the last 8 to 12 seconds.",
                ),
                graph("Waiting request bytes", "bytes", total("steelyard_waiting_bytes", BACKEND)),
                graph(
                    "Load score",
                    "none",
                    most("steelyard_load_score", (*BACKEND, *NODE)),
                    about="What the scheduler compares. The lower, the more new flows.",
                ),
            ),
        ),
        Row(
            "Learned speed",
            (
                graph(
                    "Factor of the weight",
                    "none",
                    most("steelyard_learned_weight_ratio", (*BACKEND, *NODE)),
                ),
                graph(
                    "What a waiting kB costs",
                    "s",
                    most("1000 * steelyard_learned_seconds_per_byte", (*BACKEND, *NODE)),
                    about="In time to the first byte of an answer.",
                ),
                graph(
                    "Confidence",
                    "percentunit",
                    most("steelyard_learned_confidence_ratio", (*BACKEND, *NODE)),
                    about="How much is known of the backend's speed.",
                    top=1,
                ),
            ),
        ),
        Row(
            "Affinity",
            (
                graph(
                    "Requests that came home",
                    "percentunit",
                    most("steelyard_affinity_known_ratio", (*SERVICE, *NODE)),
                    about="To a backend that had answered their client before.",
                    width=12,
                    top=1,
                ),
                graph(
                    "What a home may have more than others",
                    "bytes",
                    most("steelyard_affinity_escape_bytes", (*SERVICE, *NODE)),
                    about="Waiting bytes, before a client's new flows go elsewhere.",
                    width=12,
                ),
            ),
        ),
    ),
)
