"""What is reported and learned of backends, as lbctl shows it, and the options that set it."""

from __future__ import annotations

from typing import Any

import pytest

GPU: dict[str, Any] = {
    "gpu": "0",
    "uuid": "GPU-1",
    "lost": False,
    "clock_ratio": 0.6,
    "throttled_by": ["hw_thermal_slowdown"],
    "power_capped": False,
    "xid": None,
    "recovery_action": None,
    "utilization_ratio": 0.97,
    "memory_used_ratio": 0.9,
    "temperature_c": 91.0,
}
REPORTED: dict[str, Any] = {
    "source": "vllm",
    "fresh": True,
    "age_s": 0.1234,
    "asked_every_s": 0.2,
    "requests_running": 12.0,
    "requests_waiting": 3.0,
    "kv_cache_used_ratio": 0.452,
    "prompt_tokens_total": 1e6,
    "cached_tokens_total": 4e5,
    "cached_ratio": 0.4,
    "models_in_gpu_memory_ratio": None,
    "values_dropped": 0,
    "problem": "",
    "gpus_source": "node-agent",
    "gpus_age_s": 1.2,
    "gpus_problem": "",
    "gpus": [GPU | {"gpu": "1", "throttled_by": [], "clock_ratio": 1.0}, GPU],
}
LEARNED: dict[str, Any] = {
    "weight_ratio": 1.42,
    "bytes_per_connection": 2400,
    "confidence": 0.83,
    "samples": 112.4,
    "us_per_byte": 41.5,
    "ms_per_connection": 2.1,
    "base_ms": 35.0,
}


@pytest.fixture
def llm(agent):
    """A service whose engines and hosts are asked: told, stale, nothing yet."""
    service = agent.services[0]
    service |= {"telemetry": "vllm", "node_telemetry": "node-agent", "model": "llama"}
    first, second, third = service["backends"]
    first |= {"hot": True, "reported": REPORTED, "learned": LEARNED, "zone": "east"}
    stale = {"fresh": False, "age_s": 12.0, "problem": "connection refused", "gpus": []}
    stale |= {"gpus_problem": "no answer within 1 s"}
    second |= {"reported": REPORTED | stale, "learned": LEARNED | {"confidence": 0.0}}
    nothing = {"fresh": False, "age_s": None, "gpus_age_s": None, "gpus": []}
    third |= {"reported": REPORTED | nothing, "learned": LEARNED | {"confidence": 0.0}}
    return service


def test_the_queue_has_a_column_when_engines_report(agent, run, llm):
    header, *rows = run("backend", "list").out.splitlines()
    assert "QUEUE" in header.split()
    assert "12+3 hot" in rows[0]
    assert " stale " in rows[1]
    assert "12+3" not in rows[2]
    for backend in llm["backends"]:
        backend |= {"reported": None, "hot": False}
    assert "QUEUE" not in run("backend", "list").out


@pytest.mark.parametrize("width", [80, 100, 120, 140, 160])
@pytest.mark.parametrize(
    "command", ["backend list", "service show chat", "backend show chat/gpu-1"]
)
def test_it_fits_the_terminal(run, llm, width, command):
    out = run(*command.split(), width=width).out
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out


def test_a_service_says_who_is_asked_and_what_weights_follow(agent, run, llm):
    out = run("service", "show", "chat").out
    assert "vllm, 1 of 3 backends report; GPUs by node-agent\n" in out
    assert "follow the learned speed, known of 1 of 3 backends, and throttled GPUs\n" in out
    assert "only backends that have loaded llama\n" in out
    llm |= {"telemetry": "none", "node_telemetry": "none", "model": None, "learns_speed": False}
    out = run("service", "show", "chat").out
    assert "telemetry     none\n" in out
    assert "weights       as configured\n" in out
    assert "model" not in out
    llm |= {"telemetry": "agent-check"}
    assert "weights       follow agent-check\n" in run("service", "show", "chat").out


def test_a_backend_says_what_engine_and_gpus_report(run, llm):
    out = run("backend", "show", "chat/gpu-1").out
    assert "wanted      active, in zone east\n" in out
    assert "vllm: 12 running, 3 waiting, 45.2% of the KV cache in use, 40.0% of the prompt" in out
    assert "(123ms ago, asked every 200ms)" in out
    assert (
        "GPUs        GPU 0: throttled (hw_thermal_slowdown), 97.0% busy, clock 60.0%, 91 °C; GPU 1:"
        in out
    )
    assert (
        "weight x 1.42; 2400 bytes weigh as much as one connection (41.50 µs per waiting byte"
        in out
    )


def test_impossible_values_and_models_outside_of_the_gpu_are_told(run, llm):
    more = {"models_in_gpu_memory_ratio": 0.5, "values_dropped": 2}
    llm["backends"][0]["reported"] = REPORTED | more
    out = run("backend", "show", "chat/gpu-1", width=1000).out
    assert "2 impossible values ignored" in out
    assert "50.0%" in out


def test_a_service_says_how_unevenly_busy_connections_lie(agent, run, llm):
    assert "80 busy connections: too few to say\n" in run("service", "show", "chat").out
    skew = {"ratio": 1.05, "backend": "gpu-1", "busy_connections": 42}
    llm["skew"] = skew | {"busy_connections_at_the_mean": 40.0}
    assert "80 busy connections, evenly\n" in run("service", "show", "chat").out
    assert agent.queries[-1][0] != "/v1/flows"
    llm["skew"] |= {"ratio": 2.0, "busy_connections": 80}
    out = run("service", "show", "chat").out
    assert "80 busy connections; gpu-1 has 80, 2.0 times its share (40)\n" in out
    assert "hottest       198.51.100.7:40000 (open for 3m12s, 4.6 kB waiting)\n" in out
    path, query = agent.queries[-1]
    assert path == "/v1/flows"
    assert {"service": "chat", "backend": "gpu-1", "hottest": "true"}.items() <= query.items()


def test_a_service_says_where_its_clients_spill_over(run, llm):
    assert "spill-over" not in run("service", "show", "chat").out
    llm["spill_over"] = ["zone east: 70 % there", "others: all"]
    out = run("service", "show", "chat").out
    assert "spill-over    zone east: 70 % there; others: all\n" in out


def test_a_service_says_how_many_are_compared_now(run, llm):
    assert "draws for now" not in run("service", "show", "chat").out
    llm["draws_in_use"] = 1
    assert "(draws 8, bytes per connection 250, 1 draws for now)" in (
        run("service", "show", "chat").out
    )


def test_a_backend_says_what_it_lacks(run, llm):
    stale = run("backend", "show", "chat/gpu-2").out
    assert "too old to count); no answer since then: connection refused" in stale
    assert "node-agent: the host has none; no answer since then: no answer within 1 s\n" in stale
    assert "nothing yet: too few answers" in stale
    nothing = run("backend", "show", "chat/gpu-3").out
    assert "engine      vllm: nothing yet\n" in nothing
    assert "GPUs        node-agent: nothing yet\n" in nothing
    llm["backends"][2] |= {"reported": None, "learned": None}
    off = run("backend", "show", "chat/gpu-3").out
    assert "engine      not asked\n" in off
    assert "learned     off\n" in off


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lost": True}, "GPU 0: lost, "),
        ({"recovery_action": "reset"}, "GPU 0: wants reset, "),
        ({"xid": 79}, "GPU 0: XID 79, "),
        (dict.fromkeys(("utilization_ratio", "clock_ratio", "temperature_c"), None)
         | {"throttled_by": []}, "GPU 0: no figures"),
    ],
)  # fmt: skip
def test_a_gpu_says_its_worst_first(run, llm, change, words):
    llm["backends"][0]["reported"] = REPORTED | {"gpus": [GPU | change]}
    assert words in run("backend", "show", "chat/gpu-1").out


# -- options


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("--telemetry vllm --telemetry-port 8000 --telemetry-interval 100ms",
         {"telemetry": {"type": "vllm", "port": 8000, "interval": "100ms"}}),
        ("--telemetry none", {"telemetry": {"type": "none"}}),
        ("--node dcgm --node-port 9401", {"node": {"type": "dcgm", "port": 9401}}),
        ("--no-learn-speed", {"learn_speed": False}),
        ("--learn-speed --rtt-per-connection 2ms",
         {"learn_speed": True, "rtt_per_connection": "2ms"}),
        ("--model org/m-1 --model-source ollama", {"model": {"name": "org/m-1",
                                                             "source": "ollama"}}),
        ("--any-model", {"model": None}),
        ("--rebalance-rate 2.5 --rebalance-idle 30", {"rebalance": {"rate": 2.5, "idle": 30.0}}),
        ("--rebalance-rate 0", {"rebalance": {"rate": 0.0}}),
        ("--affinity source --affinity-prefix 24 --affinity-escape 64KiB",
         {"affinity": {"by": "source", "prefix": 24, "escape": "64KiB"}}),
        ("--affinity-prefix 0 --affinity-escape auto",
         {"affinity": {"prefix": None, "escape": "auto"}}),
        ("--outlier-eject 1m --outlier-threshold 25% --panic 0",
         {"outlier": {"eject": "1m", "threshold": "25%"}, "panic": 0.0}),
        ("--slo-first-byte-p95 2s --slo-first-byte-p99 0",
         {"slo": {"first_byte_p95": "2s", "first_byte_p99": 0.0}}),
        ("--scale connections=64 --scale waiting_bytes=200kB --scale max=none",
         {"scale": {"connections": 64, "waiting_bytes": "200kB", "max": "none"}}),
        ("--outlier-window 10 --outlier-requests 5 --outlier-max-ejected 0.5",
         {"outlier": {"window": 10.0, "requests": 5, "max_ejected": 0.5}}),
    ],
)  # fmt: skip
def test_service_set_says_what_is_asked_and_learned(agent, run, options, values):
    result = run("service", "set", "chat", *options.split())
    assert result.code == 0, result.err
    assert agent.edits[0]["values"] == values


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("--zone east --priority 2", {"zone": "east", "priority": 2}),
        ("--no-zone", {"zone": None}),
        ("--priority 0", {"priority": 0}),
    ],
)
def test_backend_set_says_where_it_is(agent, run, options, values):
    result = run("backend", "set", "chat/gpu-1", *options.split())
    assert result.code == 0, result.err
    assert agent.edits[0]["values"] == values


def test_a_new_backend_has_a_place_too(agent, run):
    where = ["--zone", "west", "--priority", "1"]
    run("backend", "add", "chat/gpu-4", "--address", "10.0.0.24", *where)
    given = {"address": "10.0.0.24", "zone": "west", "priority": 1}
    assert agent.edits[0]["values"] == given
    one_word = "gpu-4=10.0.0.24,zone=west,priority=1"
    run("service", "add", "llm", "--vip", "10.0.0.10", "--port", "1", "--backend", one_word)
    assert agent.edits[1]["values"]["backends"] == [{"name": "gpu-4"} | given]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("service set chat --telemetry vlm", "did you mean vllm?"),
        ("service set chat --any-model --model x", "--any-model contradicts --model"),
        ("service set chat --rebalance-rate -1", "0<=x<=1000"),
        ("backend set chat/gpu-1 --zone a --no-zone", "contradict each other"),
        ("backend set chat/gpu-1 --priority 8", "0<=x<=7"),
        ("backend set chat/gpu-1", "nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(agent, run, command, words):
    result = run(*command.split())
    assert result.code == 2
    assert words in result.err
    assert agent.edits == []


HOMES: dict[str, Any] = {
    "by": "source",
    "prefix": None,
    "escape": "auto",
    "escape_bytes": 12_340,
    "known_ratio": None,
    "new_ms": None,
    "known_ms": None,
}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "new flows go to the backend that their client's address selects, unless it has"),
        ({}, "it has 12.3 kB more waiting than another (until more is known)"),
        ({"prefix": 24}, "that the first 24 bits of their client's address select, unless it has"),
        ({"escape": 12_340}, "more waiting than another (as configured)"),
        ({"known_ratio": 0.914}, "; 91% of requests came to a backend that knew their client"),
        ({"new_ms": 230.0, "known_ms": 41.0}, "than another (as learned)"),
        ({"new_ms": 230.0, "known_ms": 41.0}, "takes 41ms by itself, elsewhere 230ms"),
    ],
)
def test_a_service_says_where_its_clients_have_their_home(agent, run, told, words):
    agent.services[0]["affinity"] = HOMES | told
    assert words in " ".join(run("service", "show", "chat").out.split())


def test_the_list_says_what_came_from_caches_where_somebody_says_it(run, llm):
    out = run("backend", "list").out
    assert "CACHED" in out
    assert "40.0%" in out
    for backend in llm["backends"]:
        backend["reported"] = REPORTED | {"cached_ratio": None}
    assert "CACHED" not in run("backend", "list").out


def test_a_backend_says_what_failed_there(agent, run):
    assert "failures    not counted\n" in run("backend", "show", "chat/gpu-1").out
    backend = agent.services[0]["backends"][0]
    backend |= {"error_answers_total": 0, "hangups_total": 0}
    assert "failures    none seen\n" in run("backend", "show", "chat/gpu-1").out
    backend |= {"answers_total": 400, "error_answers_total": 100, "hangups_total": 1}
    out = run("backend", "show", "chat/gpu-1").out
    said = "100 answers with status 429 or 5xx (25.0% of all), 1 request left without an answer"
    assert f"failures    {said}\n" in out
    backend |= {"error_answers_total": None, "hangups_total": None, "ejections_total": 2}
    assert "failures    not counted, ejected 2 times\n" in run("backend", "show", "chat/gpu-1").out


def test_a_service_says_when_backends_are_ejected_and_when_it_panics(agent, run):
    assert "outliers" not in run("service", "show", "chat").out
    agent.services[0] |= {
        "outlier": {"eject_s": 30.0, "threshold": 0.5, "window_s": 30.0, "requests": 10,
                    "most_ejected": 2},
        "panic": 0.4,
    }  # fmt: skip
    out = " ".join(run("service", "show", "chat").out.split())
    assert "outliers a backend at which 50% of 10 or more requests or connections fail" in out
    assert "gets no new flows for 30s (at most 2 at the same time)" in out
    assert "panic while fewer than 40% of the backends are up, all get new flows" in out


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"is_missed": True, "answers_last_minute": 40, "late_share_last_minute": 0.25},
         "95% of answers begin within 2s: MISSED, 75.0% of 40 answers of the last minute did"),
        ({"is_missed": False, "answers_last_minute": 1, "late_share_last_minute": 0.0},
         "95% of answers begin within 2s: kept, 100.0% of 1 answer of the last minute did"),
        ({"is_missed": False, "answers_last_minute": 0, "late_share_last_minute": None},
         "95% of answers begin within 2s (none in the last minute)"),
    ],
)  # fmt: skip
def test_a_service_says_whether_it_keeps_its_objective(agent, run, told, words):
    objective = {"objective": "first_byte_p95", "percentile": 95, "within_s": 2.0}
    agent.services[0] |= {"slo": [objective | told]}
    assert f"objectives {words}" in " ".join(run("service", "show", "chat").out.split())
