"""A driver that does what a test says: NVML's functions with the real binding's errors."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml


@dataclass
class FakeGpu:
    """One device; an error in place of a value is raised."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    utilization: Any = 63
    memory: Any = (20 << 30, 80 << 30)
    power_mw: Any = 412_000
    limit_mw: Any = 700_000
    temperature: Any = 61
    clock_mhz: Any = 1980
    max_clock_mhz: Any = 1980
    throttles: Any = 0
    ecc: Any = 0
    recovery: Any = 0
    mig: dict[int, FakeGpu] = field(default_factory=dict)
    lost: int | None = None  # what every call then fails with
    handle: Any = None

    def __post_init__(self) -> None:
        self.handle = ctypes.pointer(pynvml.struct_c_nvmlDevice_t())


def _value(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


class FakeNvml:
    """Looks like the module pynvml, with ``gpus`` behind it."""

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = list(gpus)
        self.init_error: Exception | None = None
        self.count_error: Exception | None = None
        self.wait_error: Exception | None = None
        self.events: list[tuple[FakeGpu, int]] = []
        self.watched: list[str] = []
        self.inits = 0
        self.missing: set[str] = set()  # functions that the binding does not have

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml") and not name.startswith("nvmlEventType"):
            raise AttributeError(name)
        return getattr(pynvml, name)  # its constants and its errors are the true ones

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "missing"):
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    def _find(self, handle: Any) -> FakeGpu:
        parts = [part for gpu in self.gpus for part in gpu.mig.values()]
        for gpu in (*self.gpus, *parts):
            if _points(gpu.handle) == _points(handle):
                if gpu.lost is not None:
                    raise pynvml.NVMLError(gpu.lost)
                return gpu
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def nvmlInit(self) -> None:  # noqa: N802
        self.inits += 1
        _value(self.init_error)

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        _value(self.count_error)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        gpu = self.gpus[index]
        if gpu.lost is not None:
            raise pynvml.NVMLError(gpu.lost)
        # Like the real one: another pointer object each time, to the same device.
        return ctypes.cast(gpu.handle, ctypes.POINTER(pynvml.struct_c_nvmlDevice_t))

    def nvmlDeviceGetUUID(self, handle: Any) -> str:  # noqa: N802
        return self._find(handle).uuid

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        return self._find(handle).name

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=_value(self._find(handle).utilization), memory=0)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        used, total = _value(self._find(handle).memory)
        return SimpleNamespace(used=used, total=total, free=total - used)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        return _value(self._find(handle).power_mw)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:  # noqa: N802
        return _value(self._find(handle).limit_mw)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:  # noqa: N802
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return _value(self._find(handle).temperature)

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:  # noqa: N802
        assert kind == pynvml.NVML_CLOCK_SM
        return _value(self._find(handle).clock_mhz)

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int:  # noqa: N802
        assert kind == pynvml.NVML_CLOCK_SM
        return _value(self._find(handle).max_clock_mhz)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:  # noqa: N802
        return _value(self._find(handle).throttles)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:  # noqa: N802
        return _value(self._find(handle).throttles)

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: int, counter: int) -> int:  # noqa: N802
        assert kind == pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        assert counter == pynvml.NVML_VOLATILE_ECC
        return _value(self._find(handle).ecc)

    def nvmlDeviceGetFieldValues(self, handle: Any, fields: list[int]) -> Any:  # noqa: N802
        assert fields == [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
        found = self._find(handle).recovery
        values = (pynvml.c_nvmlFieldValue_t * 1)()
        if isinstance(found, pynvml.NVMLError):  # an error of one field is in the field
            values[0].nvmlReturn = found.value
        else:
            values[0].value.uiVal = found
        return values

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:  # noqa: N802
        found = self._find(handle)
        if not found.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:  # noqa: N802
        self._find(handle)
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:  # noqa: N802
        part = self._find(handle).mig.get(index)
        if part is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return part.handle

    def nvmlEventSetCreate(self) -> object:  # noqa: N802
        self.watched = []
        return object()

    def nvmlEventSetFree(self, events: object) -> None:  # noqa: N802
        pass

    def nvmlDeviceRegisterEvents(self, handle: Any, kinds: int, events: object) -> None:  # noqa: N802
        assert kinds == pynvml.nvmlEventTypeXidCriticalError
        self.watched.append(self._find(handle).uuid)

    def nvmlEventSetWait_v2(self, events: object, timeout_ms: int) -> Any:  # noqa: N802
        error, self.wait_error = self.wait_error, None
        _value(error)
        if not self.events:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        gpu, xid = self.events.pop(0)
        event = pynvml.c_nvmlEventData_t()
        event.device = gpu.handle
        event.eventType = pynvml.nvmlEventTypeXidCriticalError
        event.eventData = xid
        return event


def _points(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
