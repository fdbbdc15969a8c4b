"""AMD's library, the host, and the threads that read them."""

import sys
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from agent.node import amd
from agent.node.host import Host
from agent.node.known import MISSES
from agent.node.reading import Driver, GpuReading, Throttle, merged
from agent.node.sampler import Sampler


class AmdSmiError(Exception):
    def __init__(self, code):
        super().__init__(f"Error code:\n\t{code}")
        self.err_code = code


NOT_SUPPORTED = AmdSmiError(2)


class FakeAmdsmi:
    """Answers as amdsmi of ROCm 6 does; an error in place of an answer is raised."""

    AmdSmiException = AmdSmiError
    AmdSmiMemoryType = SimpleNamespace(VRAM=0)
    AmdSmiClkType = SimpleNamespace(GFX=1)
    AmdSmiTemperatureType = SimpleNamespace(HOTSPOT=1)
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT=0)

    def __init__(self, **changed):
        self.calls = Counter()
        self.answers = {
            "init": None,
            "shut_down": None,
            "get_processor_handles": ["first"],
            "get_gpu_device_uuid": "18ff74a1-0000-1000-8000",
            "get_gpu_asic_info": {"market_name": "AMD Instinct MI300X"},
            "get_gpu_activity": {"gfx_activity": 87, "umc_activity": 3},
            "get_gpu_memory_usage": 100 << 30,
            "get_gpu_memory_total": 192 << 30,
            "get_power_info": {
                "current_socket_power": 700,
                "average_socket_power": "N/A",
                "power_limit": 750_000_000,
            },
            "get_temp_metric": 71,
            "get_clock_info": {"clk": 1300, "max_clk": 2100},
            "get_violation_status": {
                "active_ppt_pwr": True,
                "active_socket_thrm": False,
                "active_vr_thrm": "N/A",
                "active_hbm_thrm": True,
            },
            "get_gpu_total_ecc_count": {"correctable_count": 9, "uncorrectable_count": 1},
        } | changed

    def __getattr__(self, name):
        short = name.removeprefix("amdsmi_")
        try:
            answer = self.answers[short]
        except KeyError:
            raise AttributeError(name) from None

        def call(*arguments):
            self.calls[short] += 1
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def test_every_figure_of_an_amd_gpu():
    reading = amd.Amd(FakeAmdsmi()).read()
    (gpu,) = reading.gpus
    assert reading.driver is Driver.UP
    assert (gpu.uuid, gpu.name) == ("18ff74a1-0000-1000-8000", "AMD Instinct MI300X")
    assert gpu.utilization == 0.87
    assert (gpu.memory_used_bytes, gpu.memory_total_bytes) == (100 << 30, 192 << 30)
    assert (gpu.power_watts, gpu.power_limit_watts) == (700, 750)
    assert gpu.temperature_celsius == 71
    assert (gpu.sm_clock_hertz, gpu.sm_clock_max_hertz) == (1.3e9, 2.1e9)
    assert gpu.throttles == {Throttle.SW_POWER_CAP, Throttle.SW_THERMAL}
    assert gpu.ecc_uncorrected == 1


@pytest.mark.parametrize(
    ("call", "figure"),
    [
        ("get_gpu_asic_info", "name"),
        ("get_gpu_activity", "utilization"),
        ("get_gpu_memory_usage", "memory_used_bytes"),
        ("get_gpu_memory_total", "memory_total_bytes"),
        ("get_power_info", "power_watts"),
        ("get_temp_metric", "temperature_celsius"),
        ("get_clock_info", "sm_clock_hertz"),
        ("get_violation_status", "throttles"),
        ("get_gpu_total_ecc_count", "ecc_uncorrected"),
    ],
)
def test_an_amd_figure_is_missing_on_its_own(call, figure):
    (gpu,) = amd.Amd(FakeAmdsmi(**{call: NOT_SUPPORTED})).read().gpus
    assert gpu.up
    assert getattr(gpu, figure) is None
    assert sum(getattr(gpu, name) is None for name in ("name", "utilization", "throttles")) <= 1


def test_an_older_amd_gpu_has_a_mean_of_power_and_a_limit_in_watts():
    power = {"current_socket_power": "N/A", "average_socket_power": 250, "power_limit": 300}
    (gpu,) = amd.Amd(FakeAmdsmi(get_power_info=power)).read().gpus
    assert (gpu.power_watts, gpu.power_limit_watts) == (250, 300)


def test_an_amd_driver_that_is_unloaded_loses_its_gpus():
    smi = FakeAmdsmi()
    source = amd.Amd(smi)
    source.read()
    smi.answers |= {"get_processor_handles": AmdSmiError(32), "init": AmdSmiError(34)}
    assert source.read().driver is Driver.UNREADABLE
    for _ in range(MISSES):
        reading = source.read()
    assert (reading.driver, reading.gpus[0].up) == (Driver.ABSENT, False)
    assert reading.problem == "no AMD driver: Error code: 34"


@pytest.mark.parametrize("answered", [False, True], ids=["from-the-start", "later"])
def test_an_amd_driver_that_starts_and_does_not_answer_is_down_once(answered):
    now = [1000.0]
    smi = FakeAmdsmi()
    source = amd.Amd(smi, lambda: now[0])
    if answered:
        source.read()
    handles = smi.answers["get_processor_handles"]
    smi.answers["get_processor_handles"] = AmdSmiError(32)
    smi.calls.clear()
    with capture_logs() as logs:
        for _ in range(50):
            reading = source.read()
            now[0] += amd.RETRY_S / 10
        assert (reading.driver, reading.gpus) == (Driver.UNREADABLE, ())
        assert reading.problem == "the AMD driver does not answer: Error code: 32"
        smi.answers["get_processor_handles"] = handles
        now[0] += amd.RETRY_S
        assert source.read().driver is Driver.UP
        source.read()
    assert [entry["event"] for entry in logs] == ["gpu_driver_down", "gpu_driver_up"]
    assert smi.calls["init"] <= 5 + 1


def test_an_amd_driver_that_forgot_us_is_asked_anew_at_the_next_reading():
    smi = FakeAmdsmi()
    source = amd.Amd(smi)
    source.read()
    handles = smi.answers["get_processor_handles"]
    smi.answers["get_processor_handles"] = AmdSmiError(32)
    assert source.read().driver is Driver.UNREADABLE
    smi.answers["get_processor_handles"] = handles
    assert source.read().driver is Driver.UP


def test_without_rocm_there_is_no_binding():
    with capture_logs() as logs:
        assert amd.library() is None
    assert not logs


def test_a_binding_without_its_library_is_said_and_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "amdsmi.py").write_text("raise KeyError('libamd_smi.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with capture_logs() as logs:
        assert amd.library() is None
    sys.modules.pop("amdsmi", None)
    assert [entry["vendor"] for entry in logs] == ["amd"]


def test_the_host_has_memory_and_network_and_from_the_second_reading_on_processors():
    host = Host()
    first, second = host.read(), host.read()
    assert first.cpu_utilization is None
    assert 0 <= second.cpu_utilization <= 1
    assert 0 < first.memory_used_bytes < first.memory_total_bytes
    assert "lo" not in [interface.name for interface in first.interfaces]


def test_readings_of_two_drivers_become_one():
    up, absent = GpuReading(Driver.UP), GpuReading(Driver.ABSENT, "no AMD driver")
    assert merged([up, absent]) == GpuReading(Driver.UP)
    assert merged([absent, absent]).problem == "no AMD driver; no AMD driver"
    assert merged([up, None]) is None


def test_a_sampler_keeps_the_last_readings_and_their_age():
    now = [100.0]
    numbers = iter(range(10))
    sampler = Sampler("x", lambda: next(numbers), 1.0, keep=3, clock=lambda: now[0])
    assert sampler.last is None
    now[0] += 2
    assert sampler.age_s == 2
    for _ in range(5):
        sampler.sample()
    now[0] += 7
    assert (sampler.readings, sampler.last, sampler.age_s) == ((2, 3, 4), 4, 7)


def test_a_source_that_fails_is_said_once_and_tried_again():
    answers = iter([ValueError("odd"), ValueError("odd"), 7])

    def read():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    sampler = Sampler("x", read, 1.0)
    with capture_logs() as logs:
        for _ in range(3):
            sampler.sample()
    assert [entry["event"] for entry in logs] == ["reading_failed"]
    assert sampler.last == 7


def test_a_source_that_hangs_keeps_nobody_from_stopping():
    entered, never = threading.Event(), threading.Event()

    def hang():
        entered.set()
        never.wait(10)

    sampler = Sampler("x", hang, 0.01)
    sampler.start()
    assert entered.wait(60)
    sampler.stop()
    assert sampler.last is None
    never.set()
