"""Prometheus sees every number under the name that the reference promises."""

import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.dataplane import abi, latency
from agent.metrics.collector import render
from agent.metrics.families import BASIC, FAMILIES
from agent.metrics.family import Kind
from agent.model import BackendMetrics, ServiceKey
from agent.state.snapshot import Latency, Load

ODD = {"service": 'odd"name'}
GPU1 = ODD | {"backend": "gpu-1"}
GPU2 = ODD | {"backend": "gpu-2"}


@pytest.fixture
def samples(snapshot):
    """Every sample of the rendered text, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(snapshot).decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("steelyard_build_info", {"version": "0.1.0", "name": "edge-1"}, 1),
        ("steelyard_agent_start_time_seconds", {}, 1_690_000_000),
        ("steelyard_config_reload_problem", {}, 1),
        ("steelyard_config_changes_since_file", {}, 2),
        ("steelyard_reconcile_problem", {}, 0),
        ("steelyard_program_attached", {"interface": "eth0"}, 1),
        ("steelyard_program_compile_seconds", {}, 0.22),
        ("steelyard_flow_table_slots", {}, 1024),
        ("steelyard_flow_table_used_slots", {}, 8),
        ("steelyard_flow_table_flows", {"state": "established"}, 6),
        ("steelyard_passed_packets_total", {"reason": "not-vip"}, 12),
        ("steelyard_service_state", ODD | {"state": "degraded"}, 1),
        ("steelyard_service_state", ODD | {"state": "up"}, 0),
        ("steelyard_service_backends", ODD | {"state": "up"}, 1),
        ("steelyard_service_backends", ODD | {"state": "drain"}, 0),
        ("steelyard_service_packets_total", ODD, 2**60),
        ("steelyard_service_bytes_total", ODD, 2000),
        ("steelyard_service_new_flows_total", ODD, 10),
        ("steelyard_service_closed_flows_total", ODD, 2),
        ("steelyard_service_established_flows_total", ODD, 6),
        ("steelyard_service_unrecorded_flows_total", ODD, 1),
        ("steelyard_service_dropped_packets_total", ODD | {"reason": "no-backend"}, 3),
        ("steelyard_service_flows", ODD, 8),
        ("steelyard_backend_info", GPU1 | {"address": "10.0.0.21"}, 1),
        ("steelyard_backend_up", GPU1, 1),
        ("steelyard_backend_up", GPU2, 0),
        ("steelyard_backend_state", GPU2 | {"state": "down"}, 1),
        ("steelyard_backend_state", GPU2 | {"state": "up"}, 0),
        ("steelyard_backend_health_check_latency_seconds", GPU1, 0.0125),
        ("steelyard_backend_configured_weight", GPU1, 100),
        ("steelyard_backend_effective_weight", GPU1, 50),
        ("steelyard_backend_expected_share_ratio", GPU1, 0.5),
        ("steelyard_backend_actual_share_ratio", GPU1, 0.25),
        ("steelyard_backend_packets_total", GPU1, 10),
        ("steelyard_backend_bytes_total", GPU1, 1000),
        ("steelyard_backend_new_flows_total", GPU1, 5),
        ("steelyard_backend_closed_flows_total", GPU1, 1),
        ("steelyard_backend_established_flows_total", GPU1, 3),
        ("steelyard_backend_flows", GPU1, 4),
        ("steelyard_service_reply_packets_total", ODD, 16),
        ("steelyard_service_reply_bytes_total", ODD, 1600),
        ("steelyard_service_replied_packets_total", ODD, 4),
        ("steelyard_service_not_replied_packets_total", ODD, 1),
        ("steelyard_backend_reply_packets_total", GPU1, 8),
        ("steelyard_backend_reply_bytes_total", GPU1, 800),
        ("steelyard_program_jited_bytes", {}, 5000),
        ("steelyard_program_verified_instructions", {}, 12_345),
        ("steelyard_nat_ports", {"source": "198.51.100.200", "server": "192.0.2.1:80/tcp"}, 22_528),
        ("steelyard_nat_used_ports", {"source": "198.51.100.200", "server": "192.0.2.1:80/tcp"}, 5),
        ("steelyard_trace_lost_events_total", {}, 9),
        ("steelyard_open_connections", GPU1, 6),
        ("steelyard_open_connections", GPU2, 3),
        ("steelyard_load_score", GPU1, 7.5),
        ("steelyard_waiting_bytes", GPU1, 4096),
        ("steelyard_waiting_requests", GPU1, 2),
        ("steelyard_answers_total", GPU1, 7),
        ("steelyard_first_byte_seconds_bucket", GPU1 | {"le": "0.524288"}, 1),
        ("steelyard_first_byte_seconds_bucket", GPU1 | {"le": "1.048576"}, 3),
        ("steelyard_first_byte_seconds_bucket", GPU1 | {"le": "+Inf"}, 4),
        ("steelyard_first_byte_seconds_count", GPU1, 4),
        ("steelyard_first_byte_seconds_sum", GPU1, 3.25),
        ("steelyard_handshake_seconds_count", GPU1, 9),
    ],
)
def test_value(samples, name, labels, value):
    assert samples[name, frozenset(labels.items())] == value


def test_backend_never_checked_has_no_latency(samples):
    name = "steelyard_backend_health_check_latency_seconds"
    assert (name, frozenset(GPU2.items())) not in samples


def test_what_a_service_does_not_count_is_absent(samples):
    names = {name for name, labels in samples if labels >= frozenset(GPU2.items())}
    assert "steelyard_backend_flows" in names
    assert not any("waiting" in name or "_seconds_" in name for name in names)
    assert "steelyard_load_score" not in names


def test_a_histogram_has_a_series_an_octave(snapshot):
    counts = np.ones(abi.LATENCY_BUCKETS, dtype=np.uint64)
    times = Latency(latency.octaves(counts), count=44, sum_s=1.0)
    (service,) = snapshot.services
    loaded = replace(service.backends[0], load=Load(first_byte=times))
    changed = replace(snapshot, services=(replace(service, backends=(loaded,)),))
    found = [
        (sample.labels["le"], sample.value)
        for family in text_string_to_metric_families(render(changed).decode())
        for sample in family.samples
        if sample.name == "steelyard_first_byte_seconds_bucket"
    ]
    assert len(found) == abi.LATENCY_BUCKETS // 2 + 1
    assert found[:2] == [("6.4e-05", 1), ("0.000128", 3)]
    assert found[-2:] == [("134.217728", 43), ("+Inf", 44)]


def test_every_backend_is_in_exactly_one_state(samples):
    in_state = [
        value
        for (name, labels), value in samples.items()
        if name == "steelyard_backend_state" and frozenset(GPU1.items()) <= labels
    ]
    assert sum(in_state) == 1


def test_any_port_is_a_word(samples):
    (labels,) = [dict(labels) for name, labels in samples if name == "steelyard_service_info"]
    assert labels["port"] == "any"


def test_a_prefix_and_a_range_are_as_the_operator_wrote_them(snapshot):
    (service,) = snapshot.services
    key = ServiceKey(service.service.key.vip, 8000, service.service.key.protocol, 8010, 24)
    written = replace(service, service=replace(service.service, key=key))
    text = render(replace(snapshot, services=(written,))).decode()
    assert 'vip="10.0.0.10/24"' in text
    assert 'port="8000-8010"' in text


def test_program_that_is_not_attached_has_no_info(snapshot):
    bare = replace(snapshot, dataplane=replace(snapshot.dataplane, attached=False))
    text = render(bare).decode()
    assert 'steelyard_program_attached{interface="eth0"} 0.0' in text
    assert "steelyard_program_info{" not in text


def test_agent_without_services_can_be_scraped(snapshot):
    assert b"steelyard_build_info{" in render(replace(snapshot, services=()))


def test_the_lines_of_all_families_are_never_in_memory_at_once(snapshot):
    """What 10,000 backends left behind after three scrapes was more than 200 MB."""
    many = replace(snapshot, services=snapshot.services * 200)
    render(many)
    tracemalloc.start()
    try:
        page = render(many)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(page)


def test_names_follow_the_rules():
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert re.fullmatch(r"steelyard(_[a-z]+)+", family.name)
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert family.name.endswith("_info") == (family.kind is Kind.INFO)
        assert family.kind is not Kind.HISTOGRAM or family.name.endswith("_seconds")
        assert family.help.endswith(".")


def test_samples_have_a_value_for_every_label(snapshot):
    for family in FAMILIES:
        for labels, _ in family.samples(snapshot):
            assert len(labels) == len(family.labels), family.name


def test_basic_metrics_of_backends_are_those_and_no_others(snapshot):
    of_backends = {family.name for family in FAMILIES if family.is_of_backends}
    assert of_backends > BASIC
    whole, basic, none = (render(snapshot, level).decode() for level in BackendMetrics)
    told = {
        line.split("{")[0] for line in basic.splitlines() if line.startswith("steelyard_")
        and 'backend="' in line
    }  # fmt: skip
    assert told <= BASIC
    assert 'backend="' not in none
    state = [line for line in basic.splitlines() if line.startswith("steelyard_backend_state{")]
    backends = [backend for service in snapshot.services for backend in service.backends]
    assert len(state) == len(backends)
    assert set(state) < set(whole.splitlines())
    of_services = [line for line in whole.splitlines() if "steelyard_service_" in line]
    assert of_services == [line for line in none.splitlines() if "steelyard_service_" in line]
