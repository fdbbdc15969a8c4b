"""What is read of NVIDIA's driver, and what is left when parts of it fail."""

import pynvml
import pytest
from structlog.testing import capture_logs

from agent.node.known import MISSES
from agent.node.nvml import RETRY_S, Nvml
from agent.node.reading import Driver, Recovery, Throttle
from tests.unit.node.fakes import FakeGpu, FakeNvml

ABSENT = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
UNLOADED = pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
GONE = pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
MISMATCH = pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

MISSING = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_NOT_FOUND,
    pynvml.NVML_ERROR_UNKNOWN,
)
FIGURES = {
    "utilization": ("utilization",),
    "memory": ("memory_used_bytes", "memory_total_bytes"),
    "power_mw": ("power_watts",),
    "limit_mw": ("power_limit_watts",),
    "temperature": ("temperature_celsius",),
    "clock_mhz": ("sm_clock_hertz",),
    "max_clock_mhz": ("sm_clock_max_hertz",),
    "throttles": ("throttles",),
    "ecc": ("ecc_uncorrected",),
    "recovery": ("recovery",),
}
NAMES = [name for names in FIGURES.values() for name in names]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_every_figure_of_a_gpu():
    (gpu,) = Nvml(FakeNvml(FakeGpu("GPU-a", throttles=0x24, recovery=4, ecc=2))).read().gpus
    assert (gpu.index, gpu.uuid, gpu.up, gpu.name) == ("0", "GPU-a", True, "NVIDIA H100 80GB HBM3")
    assert gpu.utilization == 0.63
    assert (gpu.memory_used_bytes, gpu.memory_total_bytes) == (20 << 30, 80 << 30)
    assert (gpu.power_watts, gpu.power_limit_watts) == (412.0, 700.0)
    assert gpu.temperature_celsius == 61
    assert (gpu.sm_clock_hertz, gpu.sm_clock_max_hertz) == (1.98e9, 1.98e9)
    assert gpu.throttles == {Throttle.SW_POWER_CAP, Throttle.SW_THERMAL}
    assert (gpu.ecc_uncorrected, gpu.recovery) == (2, Recovery.DRAIN_AND_RESET)


@pytest.mark.parametrize("code", MISSING)
@pytest.mark.parametrize("source", FIGURES)
def test_a_figure_is_missing_on_its_own(source, code):
    broken = FakeGpu("GPU-a", **{source: pynvml.NVMLError(code)})
    first, second = Nvml(FakeNvml(broken, FakeGpu("GPU-b"))).read().gpus
    assert first.up
    assert {name for name in NAMES if getattr(first, name) is None} == set(FIGURES[source])
    assert all(getattr(second, name) is not None for name in NAMES)


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetFieldValues", "nvmlDeviceGetTemperature", "nvmlEventSetCreate"]
)
def test_a_binding_without_a_function_has_the_others(function):
    driver = FakeNvml(FakeGpu("GPU-a"))
    driver.missing = {function}
    (gpu,) = Nvml(driver).read().gpus
    assert gpu.up
    assert gpu.power_watts == 412.0


def test_an_older_driver_has_throttle_reasons_under_their_old_name():
    driver = FakeNvml(FakeGpu("GPU-a", throttles=0x40))
    driver.missing = {"nvmlDeviceGetCurrentClocksEventReasons"}
    (gpu,) = Nvml(driver).read().gpus
    assert gpu.throttles == {Throttle.HW_THERMAL}


@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        ("power_mw", "power_watts", 0xFFFFFFFF),
        ("clock_mhz", "sm_clock_hertz", 0xFFFFFFFF),
        ("utilization", "utilization", 101),
        ("temperature", "temperature_celsius", 0xFFFFFFFF),
        ("ecc", "ecc_uncorrected", (1 << 64) - 1),
        ("memory", "memory_used_bytes", ((1 << 64) - 1, (1 << 64) - 1)),
    ],
)
def test_a_number_that_means_not_available_is_no_figure(field, name, value):
    (gpu,) = Nvml(FakeNvml(FakeGpu("GPU-a", **{field: value}))).read().gpus
    assert getattr(gpu, name) is None


def test_a_recovery_action_of_the_future_is_one():
    (gpu,) = Nvml(FakeNvml(FakeGpu("GPU-a", recovery=99))).read().gpus
    assert gpu.recovery is Recovery.OTHER


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (number, name.removeprefix("NVML_GPU_RECOVERY_ACTION_").lower().replace("_", "-"))
        for name, number in vars(pynvml).items()
        if name.startswith("NVML_GPU_RECOVERY_ACTION_")
    ],
)
def test_recovery_actions_have_the_names_of_the_binding(number, name):
    (gpu,) = Nvml(FakeNvml(FakeGpu("GPU-a", recovery=number))).read().gpus
    assert gpu.recovery.value == name


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED])
def test_a_lost_gpu_keeps_its_identity_and_the_others_their_figures(code):
    lost, well = FakeGpu("GPU-a"), FakeGpu("GPU-b")
    source = Nvml(FakeNvml(lost, well))
    source.read()
    lost.lost = code
    reading = source.read()
    assert reading.driver is Driver.UP
    by_uuid = {gpu.uuid: gpu for gpu in reading.gpus}
    assert set(by_uuid) == {"GPU-a", "GPU-b"}
    assert (by_uuid["GPU-a"].index, by_uuid["GPU-a"].up) == ("0", False)
    assert by_uuid["GPU-a"].power_watts is None
    assert by_uuid["GPU-b"].power_watts == 412.0
    lost.lost = None
    assert all(gpu.up for gpu in source.read().gpus)


def test_a_gpu_that_is_lost_in_the_middle_of_a_reading_is_lost():
    gpu = FakeGpu("GPU-a")
    source = Nvml(FakeNvml(gpu))
    source.read()
    gpu.power_mw = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    (read,) = source.read().gpus
    assert (read.uuid, read.up) == ("GPU-a", False)


def test_a_gpu_that_was_lost_before_the_start_has_a_number_and_no_uuid():
    first, second = Nvml(FakeNvml(FakeGpu("GPU-a", lost=15), FakeGpu("GPU-b"))).read().gpus
    assert (first.index, first.uuid, first.up) == ("0", "", False)
    assert second.up


def test_one_failed_reading_is_no_loss_and_several_are():
    gpu = FakeGpu("GPU-a")
    source = Nvml(FakeNvml(gpu))
    source.read()
    gpu.lost = pynvml.NVML_ERROR_UNKNOWN
    ups = [source.read().gpus[0].up for _ in range(MISSES)]
    assert ups == [True] * (MISSES - 1) + [False]


def test_a_gpu_that_we_may_not_see_is_none():
    (gpu,) = Nvml(FakeNvml(FakeGpu("GPU-a", lost=4), FakeGpu("GPU-b"))).read().gpus
    assert gpu.uuid == "GPU-b"


def test_mig_instances_have_their_memory_and_their_gpu_the_rest():
    parts = {
        1: FakeGpu("MIG-x", name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", memory=(1 << 30, 10 << 30)),
        3: FakeGpu("MIG-y", name="NVIDIA H100 80GB HBM3 MIG 3g.40gb"),
    }
    unsupported = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    whole = FakeGpu("GPU-a", mig=parts, utilization=unsupported)
    gpu, small, large = Nvml(FakeNvml(whole)).read().gpus
    assert (gpu.mig, gpu.utilization, gpu.power_watts) == (None, None, 412.0)
    assert (small.index, small.uuid, small.mig) == ("0:1", "MIG-x", "1g.10gb")
    assert (small.memory_used_bytes, small.power_watts) == (1 << 30, None)
    assert (large.index, large.mig) == ("0:3", "3g.40gb")


def test_xids_are_counted_by_gpu_and_those_of_the_hardware_are_faults(clock):
    one, two = FakeGpu("GPU-a"), FakeGpu("GPU-b")
    driver = FakeNvml(one, two)
    source = Nvml(driver, clock)
    source.read()
    assert driver.watched == ["GPU-a", "GPU-b"]
    driver.events = [(two, 13), (two, 13), (two, 79), (one, 31)]
    source.read()
    clock.now += 5
    first, second = source.read().gpus
    assert (first.xids, first.fault) == (((31, 1),), None)
    assert second.xids == ((13, 2), (79, 1))
    assert (second.fault.xid, second.fault.age_s) == (79, 5)


def test_a_lost_gpu_has_the_xid_that_it_was_lost_with():
    gpu = FakeGpu("GPU-a")
    driver = FakeNvml(gpu)
    source = Nvml(driver)
    source.read()
    gpu.lost = pynvml.NVML_ERROR_GPU_IS_LOST
    driver.events = [(gpu, 79)]
    (read,) = source.read().gpus
    assert (read.up, read.xids) == (False, ((79, 1),))


def test_when_a_lost_gpu_breaks_the_events_those_of_the_others_go_on():
    lost, well = FakeGpu("GPU-a"), FakeGpu("GPU-b")
    driver = FakeNvml(lost, well)
    source = Nvml(driver)
    source.read()
    lost.lost = pynvml.NVML_ERROR_GPU_IS_LOST
    driver.wait_error = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    assert source.read().driver is Driver.UP
    assert driver.watched == ["GPU-b"]
    driver.events = [(well, 48)]
    assert source.read().gpus[0].xids == ((48, 1),)


def test_a_flood_of_xids_ends_the_reading_and_takes_no_memory():
    gpu = FakeGpu("GPU-a")
    driver = FakeNvml(gpu)
    source = Nvml(driver)
    source.read()
    driver.events = [(gpu, number) for number in range(1000)]
    for _ in range(20):
        (read,) = source.read().gpus
    assert not driver.events
    assert len(read.xids) == 64


def test_no_driver_is_said_once_and_looked_for_now_and_then(clock):
    driver = FakeNvml(FakeGpu("GPU-a"))
    driver.init_error = ABSENT
    source = Nvml(driver, clock)
    with capture_logs() as logs:
        for _ in range(50):
            reading = source.read()
            clock.now += RETRY_S / 10
    assert (reading.driver, reading.gpus) == (Driver.ABSENT, ())
    assert reading.problem == "no NVIDIA driver: NVML Shared Library Not Found"
    assert [entry["problem"] for entry in logs] == [reading.problem]
    assert driver.inits == 5


def test_a_driver_that_is_loaded_later_is_found(clock):
    driver = FakeNvml(FakeGpu("GPU-a"))
    driver.init_error = UNLOADED
    source = Nvml(driver, clock)
    assert source.read().driver is Driver.ABSENT
    driver.init_error = None
    clock.now += RETRY_S
    reading = source.read()
    assert (reading.driver, reading.problem) == (Driver.UP, "")
    assert [gpu.uuid for gpu in reading.gpus] == ["GPU-a"]


def test_gpus_of_a_driver_that_is_unloaded_are_lost_and_their_faults_forgiven(clock):
    gpu = FakeGpu("GPU-a")
    driver = FakeNvml(gpu)
    source = Nvml(driver, clock)
    source.read()
    driver.events = [(gpu, 79)]
    source.read()
    driver.count_error, driver.init_error = GONE, UNLOADED
    for _ in range(MISSES):
        reading = source.read()
    assert reading.driver is Driver.ABSENT
    assert [(one.uuid, one.up) for one in reading.gpus] == [("GPU-a", False)]
    driver.count_error = driver.init_error = None
    clock.now += RETRY_S
    (back,) = source.read().gpus
    assert (back.up, back.fault, back.xids) == (True, None, ((79, 1),))


def test_a_driver_that_forgot_us_is_asked_anew_at_once():
    driver = FakeNvml(FakeGpu("GPU-a"))
    source = Nvml(driver)
    source.read()
    real = driver.nvmlDeviceGetCount
    answers = iter([GONE])

    def once():
        error = next(answers, None)
        if error is not None:
            raise error
        return real()

    driver.nvmlDeviceGetCount = once
    assert source.read().driver is Driver.UP
    assert driver.inits == 2


@pytest.mark.parametrize("answered", [False, True], ids=["from-the-start", "later"])
def test_a_driver_that_starts_and_does_not_answer_is_down_once(clock, answered):
    driver = FakeNvml(FakeGpu("GPU-a"))
    source = Nvml(driver, clock)
    if answered:
        source.read()
    driver.inits, driver.count_error = 0, pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)
    with capture_logs() as logs:
        for _ in range(50):
            reading = source.read()
            clock.now += RETRY_S / 10
        assert (reading.driver, reading.gpus) == (Driver.UNREADABLE, ())
        assert reading.problem == "the NVIDIA driver does not answer: Unknown Error"
        driver.count_error = None
        clock.now += RETRY_S
        assert source.read().driver is Driver.UP
        source.read()
    assert [entry["event"] for entry in logs] == ["gpu_driver_down", "gpu_driver_up"]
    assert driver.inits <= 2 * 5 + 1


def test_a_library_of_another_version_tells_nothing_about_the_gpus():
    driver = FakeNvml(FakeGpu("GPU-a"))
    driver.init_error = MISMATCH
    reading = Nvml(driver).read()
    assert (reading.driver, reading.gpus, reading.replaced) == (Driver.UNREADABLE, (), False)


def test_another_driver_than_the_one_that_was_there_needs_another_process():
    driver = FakeNvml(FakeGpu("GPU-a"))
    source = Nvml(driver)
    source.read()
    driver.count_error, driver.init_error = GONE, MISMATCH
    assert source.read().replaced


def test_the_real_binding_on_a_host_without_a_driver_or_with_one():
    reading = Nvml().read()
    assert (reading.driver is Driver.UP) == (reading.problem == "")
