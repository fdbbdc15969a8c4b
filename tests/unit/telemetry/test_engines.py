"""True pages of each engine, and what must be made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.model import TelemetryKind
from agent.telemetry.engines import read_engine
from agent.telemetry.report import EngineReport, Failure

PAGES = Path(__file__).with_name("pages")


def read(kind: TelemetryKind, page: str | bytes) -> EngineReport:
    text = (PAGES / page).read_bytes() if isinstance(page, str) else page
    report = read_engine(kind, text)
    assert isinstance(report, EngineReport), report
    return report


def reason(kind: TelemetryKind, text: bytes) -> str:
    report = read_engine(kind, text)
    assert isinstance(report, Failure), report
    return report.reason


@pytest.mark.parametrize(
    ("kind", "page", "report"),
    [
        (TelemetryKind.VLLM, "vllm.prom", EngineReport(8, 2, 0.4217)),
        (TelemetryKind.VLLM, "vllm_old.prom", EngineReport(8, 4, 0.25)),  # one swapped out
        (TelemetryKind.SGLANG, "sglang.prom", EngineReport(162, 2826, 0.28)),
        (TelemetryKind.SGLANG, "sglang_dp.prom", EngineReport(25, 4, 0.91)),
        (TelemetryKind.TGI, "tgi.prom", EngineReport(4, 6)),
        (TelemetryKind.TRITON, "triton_trtllm.prom", EngineReport(None, 4, 1 / 6239)),
        (TelemetryKind.TRITON, "triton_requests.prom", EngineReport(8, 4, 0.4875)),
        (
            TelemetryKind.LLAMACPP,
            "llamacpp.prom",
            EngineReport(2, 6, prompt_tokens=20_012, cached_tokens=10_004),
        ),
        (TelemetryKind.TRTLLM, "trtllm.prom", EngineReport(5, 3, 0.62)),
        (TelemetryKind.RAY_SERVE, "ray_serve.prom", EngineReport(12, 3)),
        (TelemetryKind.RAY_SERVE, "ray_vllm.prom", EngineReport(8, 4, 0.7)),
        # Printed by MultiProcessCollector, which names the process, as trtllm-serve has it.
        (
            TelemetryKind.TRTLLM,
            "trtllm_pid.prom",
            EngineReport(14, 6, 0.3125, prompt_tokens=64_000, cached_tokens=40_000),
        ),
        (TelemetryKind.TRITON, "triton_vllm.prom", EngineReport(None, 0)),
        # Printed by LMDeploy 0.18's own logger.
        (
            TelemetryKind.LMDEPLOY,
            "lmdeploy.prom",
            EngineReport(16, 7, 0.7265625, prompt_tokens=21_240, cached_tokens=9_984),
        ),
        (TelemetryKind.NIM, "nim.prom", EngineReport(12, 3, 0.4375)),
        (
            TelemetryKind.NIM,
            "nim2.prom",
            EngineReport(8, 3, 0.28125, prompt_tokens=48_230, cached_tokens=30_112),
        ),
        # Of Dynamo 1.6 as it ran, with its stand-in for an engine: ten requests, of which four run.
        (
            TelemetryKind.DYNAMO,
            "dynamo_frontend.prom",
            EngineReport(4, 6, prompt_tokens=1_110, cached_tokens=160),
        ),
        (TelemetryKind.DYNAMO, "dynamo_frontend_fresh.prom", EngineReport(0, 0)),
        (TelemetryKind.DYNAMO, "dynamo_worker.prom", EngineReport(4, 6, 0.06640625)),
        (TelemetryKind.DYNAMO, "dynamo_worker_fresh.prom", EngineReport(0)),
        (TelemetryKind.DYNAMO, "dynamo_worker_dp2.prom", EngineReport(1, 2, 0.0234375)),
    ],
)
def test_a_true_page_is_read(kind: TelemetryKind, page: str, report: EngineReport) -> None:
    assert read(kind, page) == report


def test_the_models_of_a_frontend_are_summed() -> None:
    told = read(TelemetryKind.DYNAMO, "dynamo_frontend_models.prom")
    assert (told.running, told.waiting) == (20, 24)


def test_a_page_of_nim_with_names_of_both_kinds_counts_once() -> None:
    page = b"num_request_max 2048\nnum_requests_running 5\nvllm:num_requests_running 5\n"
    assert read(TelemetryKind.NIM, page) == EngineReport(5)


def test_a_worker_whose_engines_page_is_not_passed_through_counts_what_is_in_flight() -> None:
    page = (
        b'dynamo_component_inflight_requests{dynamo_endpoint="generate"} 7\n'
        b'dynamo_component_inflight_requests{dynamo_endpoint="worker_kv_query_source_1"} 1\n'
        b'dynamo_component_gpu_cache_usage_percent{dp_rank="0"} 8.34e-05\n'
    )
    assert read(TelemetryKind.DYNAMO, page) == EngineReport(7, None, 8.34e-05)


def test_prompt_tokens_and_those_from_the_cache_are_read() -> None:
    page = (
        b'vllm:num_requests_running{engine="0"} 1\n'
        b'vllm:prefix_cache_queries_total{engine="0"} 5000000\n'
        b'vllm:prefix_cache_queries_total{engine="1"} 1000\n'
        b'vllm:prefix_cache_hits_total{engine="0"} 2000000\n'
        b'vllm:prefix_cache_hits_total{engine="1"} 500\n'
    )
    told = read(TelemetryKind.VLLM, page)
    assert (told.prompt_tokens, told.cached_tokens, told.dropped) == (5_001_000, 2_000_500, 0)
    page = (
        b'sglang:num_running_reqs{tp_rank="0"} 1\n'
        b'sglang:prompt_tokens_total{tp_rank="0"} 9e9\n'
        b'sglang:cached_tokens_total{tp_rank="0"} 3e9\n'
    )
    told = read(TelemetryKind.SGLANG, page)
    assert (told.prompt_tokens, told.cached_tokens) == (9e9, 3e9)


def test_the_queue_is_all_requests_in_the_engine() -> None:
    assert EngineReport(8, 2).queue == 10
    assert EngineReport(None, 2).queue == 2
    assert EngineReport(kv_usage=0.5).queue is None


def test_data_parallel_engines_are_summed_and_the_fullest_cache_counts() -> None:
    page = (
        b'vllm:num_requests_running{engine="0"} 8\nvllm:num_requests_running{engine="1"} 3\n'
        b'vllm:num_requests_waiting{engine="0"} 2\nvllm:num_requests_waiting{engine="1"} 0\n'
        b'vllm:kv_cache_usage_perc{engine="0"} 0.9\nvllm:kv_cache_usage_perc{engine="1"} 0.1\n'
    )
    assert read(TelemetryKind.VLLM, page) == EngineReport(11, 2, 0.9)


@pytest.mark.parametrize("rank", ["tp_rank", "pp_rank", "moe_ep_rank"])
def test_ranks_of_one_engine_are_not_summed(rank: str) -> None:
    page = "".join(f'sglang:num_running_reqs{{{rank}="{n}"}} 7\n' for n in range(8)).encode()
    assert read(TelemetryKind.SGLANG, page).running == 7


def test_the_new_name_counts_where_both_are_there() -> None:
    page = b"vllm:gpu_cache_usage_perc 0.1\nvllm:kv_cache_usage_perc 0.4\n"
    assert read(TelemetryKind.VLLM, page).kv_usage == 0.4


def test_names_that_change_between_scrapes_are_followed() -> None:
    hints: dict[bytes, int] = {}
    for page, usage in (("vllm_old.prom", 0.25), ("vllm.prom", 0.4217), ("vllm_old.prom", 0.25)):
        report = read_engine(TelemetryKind.VLLM, (PAGES / page).read_bytes(), hints)
        assert isinstance(report, EngineReport)
        assert report.kv_usage == usage


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "9223372036854775794", "1e300"])
def test_a_value_that_cannot_be_true_is_missing_and_counted(value: str) -> None:
    page = f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 2\n".encode()
    assert read(TelemetryKind.VLLM, page) == EngineReport(None, 2, dropped=1)


def test_a_cache_that_is_more_than_full_is_missing() -> None:
    page = b"vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 42\n"
    assert read(TelemetryKind.VLLM, page) == EngineReport(1, dropped=1)


def test_a_page_of_impossible_values_alone_is_a_failure() -> None:
    assert "can be true" in reason(TelemetryKind.TGI, b"tgi_queue_size NaN\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"<!DOCTYPE html><html>vllm:num_requests_running 4</html>", "the page is HTML"),
        (b'{"detail":"Not Found"}', "the page is JSON"),
        (b"", "the page is empty"),
        (b"up 1\n", "none of the metrics of vllm is on the page"),
        (b"vllm:num_requests_running 1\n" * 5000, "more than 4096 samples"),
    ],
)
def test_what_is_no_page_of_the_engine_is_a_failure_that_says_why(text: bytes, words: str) -> None:
    assert words in reason(TelemetryKind.VLLM, text)


def test_the_latest_iteration_of_trtllm_serve_counts() -> None:
    page = b"""[{"numActiveRequests": 99},
        {"numActiveRequests": 5, "numQueuedRequests": 3,
         "inflightBatchingStats": {"numPausedRequests": 1},
         "kvCacheStats": {"usedNumBlocks": 600, "maxNumBlocks": 1000}}]"""
    assert read(TelemetryKind.TRTLLM, page) == EngineReport(5, 4, 0.6)
    assert "no iteration" in reason(TelemetryKind.TRTLLM, b"[]")
    assert "not JSON" in reason(TelemetryKind.TRTLLM, b"[" * 100_000)


def test_ollama_tells_how_much_of_its_models_is_on_the_gpu() -> None:
    page = b'{"models":[{"name":"gemma3:latest","size":8000,"size_vram":6000}]}'
    assert read(TelemetryKind.OLLAMA, page) == EngineReport(gpu_share=0.75)
    assert read(TelemetryKind.OLLAMA, b'{"models":[]}') == EngineReport()
    assert "Ollama" in reason(TelemetryKind.OLLAMA, b'{"models":7}')
    assert "HTML" in reason(TelemetryKind.OLLAMA, b"<html>")
    huge = b'{"models":[{"size":1%s,"size_vram":NaN}]}' % (b"0" * 400)
    assert read(TelemetryKind.OLLAMA, huge) == EngineReport()
