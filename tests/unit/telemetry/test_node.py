"""GPUs of a host, from our node agent's page and from dcgm-exporter's."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.model import NodeKind
from agent.node.page import render
from agent.node.reading import Driver, Fault, Gpu, GpuReading, NodeReading, Recovery, Throttle
from agent.telemetry.node import read_node
from agent.telemetry.report import Failure, GpuReport, NodeReport

PAGES = Path(__file__).with_name("pages")


def read(kind: NodeKind, page: str | bytes) -> NodeReport:
    report = read_node(kind, (PAGES / page).read_bytes() if isinstance(page, str) else page)
    assert isinstance(report, NodeReport), report
    return report


def test_the_node_agents_page_is_read() -> None:
    assert read(NodeKind.NODE_AGENT, "node_agent.prom").gpus == (
        GpuReport(
            name="0",
            uuid="GPU-aaaa",
            clock_share=0.75,
            throttled=("sw-thermal",),
            power_capped=True,
            utilization=0.95,
            memory_used_share=0.75,
            temperature_c=71,
        ),
        GpuReport(name="1", uuid="GPU-bbbb", lost=True, xid=48, recovery_action="node-reboot"),
    )


def test_what_the_node_agent_writes_is_what_we_read() -> None:
    gpus = (
        Gpu(
            "0",
            "GPU-a",
            name="NVIDIA H100",
            utilization=0.5,
            memory_used_bytes=20 << 30,
            memory_total_bytes=80 << 30,
            temperature_celsius=60.0,
            sm_clock_hertz=1.5e9,
            sm_clock_max_hertz=2e9,
            throttles=frozenset({Throttle.HW_THERMAL, Throttle.SW_POWER_CAP}),
            recovery=Recovery.NONE,
            xids=((13, 2), (79, 1)),  # the latter long ago: it is held against it no more
        ),
        Gpu("1", "GPU-b", up=False, recovery=Recovery.GPU_RESET, xids=((48, 1),),
            fault=Fault(48, 1.0)),
    )  # fmt: skip
    text = render(NodeReading(GpuReading(Driver.UP, "", gpus), 0.5, {}, None))
    assert read(NodeKind.NODE_AGENT, text).gpus == (
        GpuReport(
            name="0",
            uuid="GPU-a",
            clock_share=0.75,
            throttled=("hw-thermal",),
            power_capped=True,
            utilization=0.5,
            memory_used_share=0.25,
            temperature_c=60,
        ),
        GpuReport(name="1", uuid="GPU-b", lost=True, xid=48, recovery_action="gpu-reset"),
    )


def test_dcgms_page_is_read_and_its_sentinels_are_dropped() -> None:
    report = read(NodeKind.DCGM, "dcgm.prom")
    assert report.gpus == (
        GpuReport(
            name="0",
            uuid="GPU-604ac76c-d9cf-fef3-62e9-d92044ab6e52",
            clock_share=0.5,
            throttled=("hw-thermal", "sw-thermal"),  # 100 is 0x64: both, and the power cap
            power_capped=True,
            utilization=pytest.approx(0.95),
            memory_used_share=0.7,
            temperature_c=87,
        ),
        GpuReport(name="1", uuid="GPU-a8394b51-c086-568a-9f1a-c1e1c934c44c"),
    )
    assert report.dropped == 2


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 63, 68, 92, 94, 109, 154])
def test_an_xid_of_the_application_and_a_note_are_no_fault(xid: int) -> None:
    assert read(NodeKind.DCGM, f'DCGM_FI_DEV_XID_ERRORS{{gpu="0"}} {xid}\n'.encode()).gpus == (
        GpuReport(name="0"),
    )


def test_an_xid_of_the_hardware_is_told() -> None:
    page = b'DCGM_FI_DEV_XID_ERRORS{gpu="0",UUID="a"} 48\nDCGM_FI_DEV_XID_ERRORS{gpu="1"} 79\n'
    assert read(NodeKind.DCGM, page).gpus == (
        GpuReport(name="0", uuid="a", xid=48),
        GpuReport(name="1", xid=79, lost=True),
    )


def test_the_older_name_of_the_clock_reasons_is_read() -> None:
    page = b'DCGM_FI_DEV_CLOCK_THROTTLE_REASONS{gpu="0"} 8\n'
    assert read(NodeKind.DCGM, page).gpus[0].throttled == ("hw-slowdown",)


def test_mig_instances_of_dcgm_share_their_gpu() -> None:
    page = b"".join(
        b'DCGM_FI_DEV_FB_%s{gpu="0",UUID="a",GPU_I_ID="%d"} %d\n' % (name, instance, mib)
        for name, instance, mib in [(b"USED", 1, 10), (b"USED", 2, 20), (b"FREE", 1, 30),
                                    (b"FREE", 2, 0)]
    )  # fmt: skip
    assert read(NodeKind.DCGM, page).gpus == (GpuReport(name="0", uuid="a", memory_used_share=0.5),)


def test_a_clock_above_its_maximum_is_the_maximum() -> None:
    page = (
        b'steelyard_node_gpu_sm_clock_hertz{gpu="0",uuid="a"} 3e9\n'
        b'steelyard_node_gpu_sm_clock_max_hertz{gpu="0",uuid="a"} 2e9\n'
    )
    assert read(NodeKind.NODE_AGENT, page).gpus[0].clock_share == 1.0


@pytest.mark.parametrize("value", ["NaN", "-1", "2", "1e300", "9223372036854775794"])
def test_a_node_agent_that_lies_is_not_believed(value: str) -> None:
    page = f'steelyard_node_gpu_utilization_ratio{{gpu="0",uuid="a"}} {value}\n'.encode()
    assert read(NodeKind.NODE_AGENT, page) == NodeReport((GpuReport("0", "a"),), dropped=1)


def test_a_host_without_gpus_is_a_report_without_gpus() -> None:
    page = b"# HELP x\nsteelyard_node_cpu_utilization_ratio 0.2\n"
    assert read(NodeKind.NODE_AGENT, page) == NodeReport()


def test_gpus_without_end_are_bounded() -> None:
    page = b"".join(b'DCGM_FI_DEV_GPU_TEMP{gpu="%d"} 50\n' % n for n in range(2000))
    report = read(NodeKind.DCGM, page)
    assert (len(report.gpus), report.dropped) == (1024, 976)


@pytest.mark.parametrize("page", [b"", b"<html>", b"DCGM_FI_DEV_GPU_UTIL 5\n", b"up 1\n"])
def test_what_is_no_page_of_a_host_is_a_failure(page: bytes) -> None:
    assert isinstance(read_node(NodeKind.DCGM, page), Failure)
    assert isinstance(read_node(NodeKind.NODE_AGENT, page), Failure)
