"""The metrics page: names and labels that the balancer's agent reads."""

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from agent.node.page import render
from agent.node.reading import (
    Driver,
    Fault,
    Gpu,
    GpuReading,
    HostReading,
    Interface,
    NodeReading,
    Recovery,
    Throttle,
)
from agent.node.verdict import SILENT_S

GPU = Gpu(
    "0",
    "GPU-a",
    name="NVIDIA H100",
    utilization=0.5,
    memory_used_bytes=1 << 30,
    memory_total_bytes=80 << 30,
    power_watts=400.0,
    power_limit_watts=700.0,
    temperature_celsius=60.0,
    sm_clock_hertz=1.2e9,
    sm_clock_max_hertz=1.98e9,
    throttles=frozenset({Throttle.SW_THERMAL}),
    ecc_uncorrected=3,
    recovery=Recovery.GPU_RESET,
    xids=((13, 2), (79, 1)),
    fault=Fault(79, 1.0),
)
HOST = HostReading(0.25, 10, 100, (Interface("eth0", 5, 6),))
A = {"gpu": "0", "uuid": "GPU-a"}


def samples(*gpus, driver=Driver.UP, age_s=0.5, host=HOST, engine=()):
    node = NodeReading(GpuReading(driver, "", gpus), age_s, {}, host)
    text = render(node, engine).decode()
    return [
        (sample.name.removeprefix("steelyard_node_"), sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def test_every_figure_has_its_name():
    found = samples(GPU)
    for name, value in {
        "gpu_up": 1,
        "gpu_drain": 1,
        "gpu_utilization_ratio": 0.5,
        "gpu_memory_used_bytes": 1 << 30,
        "gpu_memory_total_bytes": 80 << 30,
        "gpu_power_watts": 400,
        "gpu_power_limit_watts": 700,
        "gpu_temperature_celsius": 60,
        "gpu_sm_clock_hertz": 1.2e9,
        "gpu_sm_clock_max_hertz": 1.98e9,
        "gpu_ecc_uncorrected_total": 3,
    }.items():
        assert (name, A, value) in found


def test_throttles_actions_and_xids():
    found = samples(GPU)
    assert ("gpu_throttle_active", {**A, "reason": "sw-thermal"}, 1) in found
    assert ("gpu_throttle_active", {**A, "reason": "hw-slowdown"}, 0) in found
    assert ("gpu_recovery_action", {**A, "action": "gpu-reset"}, 1) in found
    assert ("gpu_recovery_action", {**A, "action": "none"}, 0) in found
    assert ("gpu_xid_errors_total", {**A, "xid": "79", "blames": "hardware"}, 1) in found
    assert ("gpu_xid_errors_total", {**A, "xid": "13", "blames": "application"}, 2) in found


def test_what_a_gpu_does_not_have_is_absent():
    names = {name for name, labels, _ in samples(Gpu("0", "GPU-a")) if labels}
    assert {name for name in names if name.startswith("gpu_")} == {"gpu_up", "gpu_drain"}


def test_a_mig_instance_has_one_more_label():
    part = Gpu("0:1", "MIG-x", mig="1g.10gb", memory_used_bytes=7)
    labels = {"gpu": "0:1", "uuid": "MIG-x", "mig": "1g.10gb"}
    assert ("gpu_memory_used_bytes", labels, 7) in samples(GPU, part)


def test_host_driver_and_weight():
    found = samples(GPU)
    assert ("cpu_utilization_ratio", {}, 0.25) in found
    assert ("memory_used_bytes", {}, 10) in found
    assert ("memory_total_bytes", {}, 100) in found
    assert ("network_receive_bytes_total", {"interface": "eth0"}, 5) in found
    assert ("network_transmit_bytes_total", {"interface": "eth0"}, 6) in found
    assert ("gpu_driver_up", {}, 1) in found
    assert ("gpu_reading_age_seconds", {}, 0.5) in found
    assert ("weight_ratio", {}, 0) in found


def test_without_a_driver_there_are_the_host_s_figures():
    found = samples(driver=Driver.ABSENT)
    assert ("gpu_driver_up", {}, 0) in found
    assert ("memory_used_bytes", {}, 10) in found
    assert ("weight_ratio", {}, 1) in found


def test_when_nothing_is_known_no_weight_is_told():
    assert not [name for name, *_ in samples(driver=Driver.UNREADABLE) if name == "weight_ratio"]


def test_a_driver_that_hangs_has_lost_its_gpus():
    found = samples(GPU, age_s=SILENT_S + 1)
    assert ("gpu_driver_up", {}, 0) in found
    assert ("gpu_up", A, 0) in found
    assert not [name for name, *_ in found if name == "gpu_power_watts"]
    assert ("gpu_power_watts", A, 400) in samples(GPU, age_s=SILENT_S)


def test_before_the_first_reading_there_is_a_page():
    node = NodeReading(None, 0.1, {}, None)
    assert b"steelyard_node_gpu_driver_up 0.0\n" in render(node)


def test_names_of_a_strange_driver_are_escaped():
    strange = replace(GPU, name='a "b"\n\\c')
    names = [labels["name"] for name, labels, _ in samples(strange) if name == "gpu_info"]
    assert names == ['a "b"\n\\c']


def test_a_page_of_one_engine_has_its_gpus_and_the_missing_ones_as_lost():
    other = replace(GPU, index="1", uuid="GPU-b")
    part = Gpu("0:1", "MIG-x", mig="1g.10gb")
    found = samples(GPU, part, other, engine=("GPU-a", "7"))
    ups = {labels["gpu"]: value for name, labels, value in found if name == "gpu_up"}
    assert ups == {"0": 1, "0:1": 1, "7": 0}
    assert ("weight_ratio", {}, 0) in found
    assert not [
        labels
        for name, labels, _ in samples(driver=Driver.UNREADABLE, engine=("7",))
        if name == "gpu_up"
    ]
