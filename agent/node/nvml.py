"""Owns NVML, NVIDIA's management library: the only module that imports its binding."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from agent.logs import get_logger
from agent.node import figures
from agent.node.known import KnownGpus
from agent.node.reading import Driver, Gpu, GpuReading, Recovery, Throttle

log = get_logger()

RETRY_S = 10.0  # pause before a driver that is missing is tried again
_MOST_EVENTS = 64  # events taken in one reading; the rest waits in the driver
_EVENT_WAIT_MS = 1
_RECOVERY_FIELD = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION; older bindings have no name for it

# nvmlClocksEventReasons
_THROTTLES = (
    (0x001, Throttle.IDLE),
    (0x002, Throttle.CLOCKS_SETTING),
    (0x004, Throttle.SW_POWER_CAP),
    (0x008, Throttle.HW_SLOWDOWN),
    (0x010, Throttle.SYNC_BOOST),
    (0x020, Throttle.SW_THERMAL),
    (0x040, Throttle.HW_THERMAL),
    (0x080, Throttle.HW_POWER_BRAKE),
    (0x100, Throttle.DISPLAY_CLOCK),
)

# nvmlDeviceGpuRecoveryAction_t, in the order of its numbers
_RECOVERIES = (
    Recovery.NONE,
    Recovery.GPU_RESET,
    Recovery.NODE_REBOOT,
    Recovery.DRAIN_P2P,
    Recovery.DRAIN_AND_RESET,
    Recovery.RECOVER_IMEX_DOMAIN,
    Recovery.BUS_RESET,
    Recovery.SYSTEM_REBOOT,
)


class Nvml:
    """Reads every GPU and MIG instance through ``library``, which is the binding or a test's fake.

    One thread at a time may call it.
    """

    def __init__(self, library: Any = pynvml, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml = library
        self._clock = clock
        self._known = KnownGpus()
        self._open = False
        self._was_open = False
        self._replaced = False
        self._driver = Driver.ABSENT
        self._problem = ""
        self._retry_at = -math.inf
        self._events: Any = None
        self._uuids: dict[int | None, str] = {}  # by the device's address
        # The errors after which nothing else can be read: the GPU is gone, or the driver is.
        self._lost = (library.NVMLError_GpuIsLost, library.NVMLError_ResetRequired)
        self._over = (library.NVMLError_Uninitialized, library.NVMLError_DriverNotLoaded)

    def read(self) -> GpuReading:
        """Take one reading. A driver that is missing is tried again every ``RETRY_S``."""
        for again in (False, True):  # a driver that went away is tried again at once, once
            if not self._open and not self._start():
                break
            try:
                gpus = list(self._gpus())
                self._take_events()
            except self._nvml.NVMLError as error:
                self._stop()
                self._set_down(Driver.UNREADABLE, f"the NVIDIA driver does not answer: {error}")
                if again:
                    self._retry_at = self._clock() + RETRY_S
            else:
                self._set_up()
                return GpuReading(Driver.UP, "", self._known.complete(gpus, self._clock()))
        return self._without()

    def _without(self) -> GpuReading:
        gpus: tuple[Gpu, ...] = ()
        if self._driver is Driver.ABSENT:
            gpus = self._known.complete((), self._clock())
        return GpuReading(self._driver, self._problem, gpus, self._replaced)

    # --- the driver -----------------------------------------------------------------------------

    def _start(self) -> bool:
        lib, now = self._nvml, self._clock()
        if now < self._retry_at:
            return False
        try:
            lib.nvmlInit()
        except lib.NVMLError as error:
            self._retry_at = now + RETRY_S
            if isinstance(error, (lib.NVMLError_LibraryNotFound, lib.NVMLError_DriverNotLoaded)):
                self._known.forgive()
                self._set_down(Driver.ABSENT, f"no NVIDIA driver: {error}")
                return False
            # The library stays loaded in this process. If it has worked before and its version no
            # longer matches, another driver was loaded.
            self._replaced = self._was_open and isinstance(
                error, lib.NVMLError_LibRmVersionMismatch
            )
            self._set_down(Driver.UNREADABLE, f"the NVIDIA driver does not answer: {error}")
            return False
        self._open = self._was_open = True
        self._watch()
        return True

    def _stop(self) -> None:
        self._unwatch()
        self._quietly("nvmlShutdown")
        self._open, self._uuids = False, {}

    def _set_down(self, driver: Driver, problem: str) -> None:
        """Record that the driver is not up, and log it once for every change."""
        self._driver = driver
        if problem != self._problem:
            log.warning("gpu_driver_down", vendor="nvidia", problem=problem)
        self._problem = problem

    def _set_up(self) -> None:
        """Record that the driver is up, and log it once for every change.

        Call it after a whole reading, because a driver that has only just started may not answer.
        """
        if self._driver is Driver.UP:
            return
        self._driver, self._problem = Driver.UP, ""
        version = self._quietly("nvmlSystemGetDriverVersion")
        log.info("gpu_driver_up", vendor="nvidia", version=version)

    # --- devices --------------------------------------------------------------------------------

    def _gpus(self) -> Iterator[Gpu]:
        lib = self._nvml
        for number in range(lib.nvmlDeviceGetCount()):
            index = str(number)
            try:
                device = lib.nvmlDeviceGetHandleByIndex(number)
                found = [self._gpu(index, device), *self._instances(index, device)]
            except self._over:
                raise
            except lib.NVMLError_NoPermission:
                continue  # a container may use only some of the host's GPUs
            except lib.NVMLError as error:
                if isinstance(error, self._lost) or not self._known.has(index):
                    yield Gpu(index, "", up=False)
                continue
            yield from found

    def _gpu(self, index: str, device: Any) -> Gpu:
        lib = self._nvml
        uuid = lib.nvmlDeviceGetUUID(device)
        self._uuids[_address(device)] = uuid
        memory = self._get("nvmlDeviceGetMemoryInfo", device)
        rates = self._get("nvmlDeviceGetUtilizationRates", device)
        return Gpu(
            index,
            uuid,
            name=self._get("nvmlDeviceGetName", device),
            utilization=figures.ratio(rates and rates.gpu),
            memory_used_bytes=figures.number_of_bytes(memory and memory.used),
            memory_total_bytes=figures.number_of_bytes(memory and memory.total),
            power_watts=figures.watts(self._get("nvmlDeviceGetPowerUsage", device), 1000),
            power_limit_watts=figures.watts(
                self._get("nvmlDeviceGetEnforcedPowerLimit", device), 1000
            ),
            temperature_celsius=figures.celsius(
                self._get("nvmlDeviceGetTemperature", device, lib.NVML_TEMPERATURE_GPU)
            ),
            sm_clock_hertz=figures.hertz(
                self._get("nvmlDeviceGetClockInfo", device, lib.NVML_CLOCK_SM)
            ),
            sm_clock_max_hertz=figures.hertz(
                self._get("nvmlDeviceGetMaxClockInfo", device, lib.NVML_CLOCK_SM)
            ),
            throttles=self._throttles(device),
            ecc_uncorrected=figures.count(
                self._get(
                    "nvmlDeviceGetTotalEccErrors",
                    device,
                    lib.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                    lib.NVML_VOLATILE_ECC,
                )
            ),
            recovery=self._recovery(device),
        )

    def _instances(self, index: str, device: Any) -> Iterator[Gpu]:
        """Yield the MIG instances. Memory is their own; clocks and power are the whole GPU's."""
        mode = self._get("nvmlDeviceGetMigMode", device)
        if not mode or mode[0] != 1:
            return
        for number in range(self._get("nvmlDeviceGetMaxMigDeviceCount", device) or 0):
            part = self._get("nvmlDeviceGetMigDeviceHandleByIndex", device, number)
            uuid = None if part is None else self._get("nvmlDeviceGetUUID", part)
            if uuid is None:
                continue
            memory = self._get("nvmlDeviceGetMemoryInfo", part)
            name = self._get("nvmlDeviceGetName", part)
            yield Gpu(
                f"{index}:{number}",
                uuid,
                name=name,
                mig=(name or "").rpartition("MIG ")[2] or "unknown",
                memory_used_bytes=figures.number_of_bytes(memory and memory.used),
                memory_total_bytes=figures.number_of_bytes(memory and memory.total),
            )

    def _throttles(self, device: Any) -> frozenset[Throttle] | None:
        mask = self._get("nvmlDeviceGetCurrentClocksEventReasons", device)
        if mask is None:  # its name in drivers before 535
            mask = self._get("nvmlDeviceGetCurrentClocksThrottleReasons", device)
        if mask is None:
            return None
        return frozenset(reason for bit, reason in _THROTTLES if mask & bit)

    def _recovery(self, device: Any) -> Recovery | None:
        values = self._get("nvmlDeviceGetFieldValues", device, [_RECOVERY_FIELD])
        if values is None or values[0].nvmlReturn != self._nvml.NVML_SUCCESS:
            return None
        number = values[0].value.uiVal
        return _RECOVERIES[number] if number < len(_RECOVERIES) else Recovery.OTHER

    # --- events ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Register for XIDs; a driver without events, as in a virtual machine, reports none."""
        events = self._quietly("nvmlEventSetCreate")
        if events is None:
            return
        self._events = events
        for number in range(self._quietly("nvmlDeviceGetCount") or 0):
            device = self._quietly("nvmlDeviceGetHandleByIndex", number)
            if device is not None:
                kind = self._nvml.nvmlEventTypeXidCriticalError
                self._quietly("nvmlDeviceRegisterEvents", device, kind, events)

    def _unwatch(self) -> None:
        if self._events is not None:
            self._quietly("nvmlEventSetFree", self._events)
        self._events = None

    def _take_events(self) -> None:
        """Take the XIDs that have come since the last reading."""
        if self._events is None:
            return
        lib = self._nvml
        for _ in range(_MOST_EVENTS):
            try:
                event = lib.nvmlEventSetWait_v2(self._events, _EVENT_WAIT_MS)
            except lib.NVMLError_Timeout:
                return
            except lib.NVMLError:  # a GPU of the set is lost, so register again with the others
                self._unwatch()
                self._watch()
                return
            uuid = self._uuids.get(_address(event.device), "")
            self._known.note_xid(uuid, event.eventData, self._clock())
            log.warning("gpu_xid", uuid=uuid, xid=event.eventData)

    # --- one call -------------------------------------------------------------------------------

    def _get(self, function: str, *arguments: Any) -> Any:
        """Call a function; None where this GPU, driver, user or binding has no such figure.

        Raises NVMLError when the GPU or the driver itself is gone.
        """
        try:
            return getattr(self._nvml, function)(*arguments)
        except (*self._lost, *self._over):
            raise
        except (self._nvml.NVMLError, AttributeError):
            return None

    def _quietly(self, function: str, *arguments: Any) -> Any:
        try:
            return self._get(function, *arguments)
        except self._nvml.NVMLError:
            return None


def _address(device: Any) -> int | None:
    """Return where a handle points, which is what two handles of one device have in common."""
    return ctypes.cast(device, ctypes.c_void_p).value
