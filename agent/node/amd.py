"""Owns amdsmi, the management library of AMD's GPUs, which ROCm installs."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from agent.logs import get_logger
from agent.node import figures
from agent.node.known import KnownGpus
from agent.node.reading import Driver, Gpu, GpuReading, Throttle

log = get_logger()

RETRY_S = 10.0  # pause before a driver that is missing is tried again
_DRIVER_NOT_LOADED = 34  # AMDSMI_STATUS_DRIVER_NOT_LOADED

_THROTTLES = (
    ("active_ppt_pwr", Throttle.SW_POWER_CAP),
    ("active_prochot_thrm", Throttle.HW_THERMAL),
    ("active_socket_thrm", Throttle.SW_THERMAL),
    ("active_vr_thrm", Throttle.SW_THERMAL),
    ("active_hbm_thrm", Throttle.SW_THERMAL),
)


def library() -> Any:
    """Return the binding, or None. ROCm installs it, and without its library it fails variously."""
    try:
        return importlib.import_module("amdsmi")
    except ModuleNotFoundError:
        return None
    except (ImportError, OSError, AttributeError, KeyError, RuntimeError) as error:
        log.warning("gpu_driver_down", vendor="amd", problem=f"amdsmi: {_text(error)}")
        return None


class Amd:
    """Reads every AMD GPU through the binding ``smi``. One thread at a time may call it."""

    def __init__(self, smi: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._smi = smi
        self._clock = clock
        self._known = KnownGpus()
        self._open = False
        self._was_open = False
        self._driver = Driver.ABSENT
        self._problem = ""
        self._retry_at = -math.inf

    def read(self) -> GpuReading:
        """Take one reading. A driver that is missing is tried again every ``RETRY_S``."""
        if not self._open and not self._start():
            return self._without()
        try:
            gpus = list(self._gpus())
        except self._smi.AmdSmiException as error:
            self._open = False
            self._quietly("amdsmi_shut_down")
            if self._driver is not Driver.UP:  # one that was up is tried at the next reading, once
                self._retry_at = self._clock() + RETRY_S
            self._set_down(Driver.UNREADABLE, f"the AMD driver does not answer: {_text(error)}")
            return self._without()
        self._set_up()
        return GpuReading(Driver.UP, "", self._known.complete(gpus, self._clock()))

    def _without(self) -> GpuReading:
        gpus: tuple[Gpu, ...] = ()
        if self._driver is Driver.ABSENT:
            gpus = self._known.complete((), self._clock())
        return GpuReading(self._driver, self._problem, gpus)

    def _start(self) -> bool:
        now = self._clock()
        if now < self._retry_at:
            return False
        try:
            self._smi.amdsmi_init()
        except self._smi.AmdSmiException as error:
            self._retry_at = now + RETRY_S
            unloaded = getattr(error, "err_code", None) == _DRIVER_NOT_LOADED
            absent = unloaded or not self._was_open
            driver = Driver.ABSENT if absent else Driver.UNREADABLE
            self._set_down(driver, f"no AMD driver: {_text(error)}")
            return False
        self._open = self._was_open = True
        return True

    def _set_down(self, driver: Driver, problem: str) -> None:
        """Record that the driver is not up, and log it once for every change."""
        self._driver = driver
        if problem != self._problem:
            log.warning("gpu_driver_down", vendor="amd", problem=problem)
        self._problem = problem

    def _set_up(self) -> None:
        """Record that the driver is up, and log it once for every change.

        Call it after a whole reading, because a driver that has only just started may not answer.
        """
        if self._driver is Driver.UP:
            return
        self._driver, self._problem = Driver.UP, ""
        log.info("gpu_driver_up", vendor="amd")

    def _gpus(self) -> Iterator[Gpu]:
        for number, device in enumerate(self._smi.amdsmi_get_processor_handles()):
            uuid = self._quietly("amdsmi_get_gpu_device_uuid", device)
            if uuid is not None:
                yield self._gpu(str(number), uuid, device)
            elif not self._known.has(str(number)):
                yield Gpu(str(number), "", up=False)

    def _gpu(self, index: str, uuid: str, device: Any) -> Gpu:
        smi = self._smi
        vram = smi.AmdSmiMemoryType.VRAM
        power = self._facts("amdsmi_get_power_info", device)
        clock = self._facts("amdsmi_get_clock_info", device, smi.AmdSmiClkType.GFX)
        now_watts = figures.watts(power.get("current_socket_power"))
        if not now_watts:  # GPUs before MI300 only report the mean
            now_watts = figures.watts(power.get("average_socket_power"))
        return Gpu(
            index,
            uuid,
            name=self._facts("amdsmi_get_gpu_asic_info", device).get("market_name"),
            utilization=figures.ratio(
                self._facts("amdsmi_get_gpu_activity", device).get("gfx_activity")
            ),
            memory_used_bytes=figures.number_of_bytes(
                self._quietly("amdsmi_get_gpu_memory_usage", device, vram)
            ),
            memory_total_bytes=figures.number_of_bytes(
                self._quietly("amdsmi_get_gpu_memory_total", device, vram)
            ),
            power_watts=now_watts,
            power_limit_watts=_power_limit(power.get("power_limit")),
            temperature_celsius=figures.celsius(
                self._quietly(
                    "amdsmi_get_temp_metric",
                    device,
                    smi.AmdSmiTemperatureType.HOTSPOT,
                    smi.AmdSmiTemperatureMetric.CURRENT,
                )
            ),
            sm_clock_hertz=figures.hertz(clock.get("clk")),
            sm_clock_max_hertz=figures.hertz(clock.get("max_clk")),
            throttles=self._throttles(device),
            ecc_uncorrected=figures.count(
                self._facts("amdsmi_get_gpu_total_ecc_count", device).get("uncorrectable_count")
            ),
        )

    def _throttles(self, device: Any) -> frozenset[Throttle] | None:
        status = self._facts("amdsmi_get_violation_status", device)
        known = [(reason, status[key]) for key, reason in _THROTTLES if _is_known(status.get(key))]
        return frozenset(reason for reason, active in known if active) if known else None

    def _facts(self, function: str, *arguments: Any) -> dict[str, Any]:
        found = self._quietly(function, *arguments)
        return found if isinstance(found, dict) else {}

    def _quietly(self, function: str, *arguments: Any) -> Any:
        """Call a function; None where this GPU, driver, user or version has no such figure."""
        try:
            return getattr(self._smi, function)(*arguments)
        except (self._smi.AmdSmiException, AttributeError):
            return None


def _is_known(value: object) -> bool:
    return isinstance(value, bool)  # it is "N/A" if not


def _power_limit(value: object) -> float | None:
    """Return a power limit in watts, which some versions give in microwatts and others in watts.

    The two can be told apart, because no GPU has a limit of 0.01 W or 10 kW.
    """
    whole = figures.watts(value, 1_000_000)
    return whole if whole is not None and whole >= 1 else figures.watts(value)


def _text(error: Exception) -> str:
    return " ".join(str(error).split())
