"""Defines the readings of a host and its GPUs; None is a figure that a GPU or driver lacks."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Throttle(enum.Enum):
    """Why a GPU's clock is not as high as it could be."""

    IDLE = "gpu-idle"
    CLOCKS_SETTING = "clocks-setting"
    SW_POWER_CAP = "sw-power-cap"
    HW_SLOWDOWN = "hw-slowdown"
    SYNC_BOOST = "sync-boost"
    SW_THERMAL = "sw-thermal"
    HW_THERMAL = "hw-thermal"
    HW_POWER_BRAKE = "hw-power-brake"
    DISPLAY_CLOCK = "display-clock"


class Recovery(enum.Enum):
    """The action that the driver requires before it trusts the GPU again."""

    NONE = "none"
    GPU_RESET = "gpu-reset"
    NODE_REBOOT = "node-reboot"
    DRAIN_P2P = "drain-p2p"
    DRAIN_AND_RESET = "drain-and-reset"
    RECOVER_IMEX_DOMAIN = "recover-imex-domain"
    BUS_RESET = "bus-reset"
    SYSTEM_REBOOT = "system-reboot"
    OTHER = "other"  # an action that is newer than this list


@dataclass(frozen=True, slots=True)
class Fault:
    """The last XID that blames the hardware."""

    xid: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of it, in which case ``mig`` is its profile.

    ``index`` is the driver's number, or ``GPU:INSTANCE`` for an instance. The uuid is the identity;
    it is empty for a GPU that was lost before it could be asked.
    """

    index: str
    uuid: str
    up: bool = True  # False: the GPU no longer answers
    name: str | None = None
    mig: str | None = None
    utilization: float | None = None  # share of time in which some kernel ran, 0 to 1
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: float | None = None
    sm_clock_hertz: float | None = None
    sm_clock_max_hertz: float | None = None
    throttles: frozenset[Throttle] | None = None
    ecc_uncorrected: int | None = None
    recovery: Recovery | None = None
    xids: tuple[tuple[int, int], ...] = ()  # number, how often since the agent started
    fault: Fault | None = None


class Driver(enum.Enum):
    """Whether GPUs can be read.

    ABSENT: nothing on this host can use a GPU of this kind. UNREADABLE: something may use one, but
    we cannot read it, for example because of another version of the library, or in a container
    without the device files.
    """

    UP = "up"
    ABSENT = "absent"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class GpuReading:
    """All GPUs of one driver. If it is absent, the GPUs seen before are included as lost.

    ``replaced``: another driver was loaded, which only a new process can talk to.
    """

    driver: Driver
    problem: str = ""  # why the driver is not up
    gpus: tuple[Gpu, ...] = ()
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """The traffic of a network interface since the host started."""

    name: str
    received_bytes: int
    transmitted_bytes: int


@dataclass(frozen=True, slots=True)
class HostReading:
    """The host without its GPUs."""

    cpu_utilization: float | None
    memory_used_bytes: int
    memory_total_bytes: int
    interfaces: tuple[Interface, ...]


@dataclass(frozen=True, slots=True)
class NodeReading:
    """Everything known at one moment.

    ``gpus`` None: nothing was read yet. ``gpu_age_s``: the age of the oldest last reading of any
    driver; without a reading it counts from the start. ``clock_shares``: the mean share of its
    maximum clock that each GPU had lately, by uuid.
    """

    gpus: GpuReading | None
    gpu_age_s: float
    clock_shares: dict[str, float]
    host: HostReading | None


def merged(readings: Iterable[GpuReading | None]) -> GpuReading | None:
    """Return the GPUs of all drivers as one reading; None until each driver was read once."""
    present = []
    for reading in readings:
        if reading is None:
            return None
        present.append(reading)
    order = (Driver.UP, Driver.UNREADABLE, Driver.ABSENT)
    driver = min((reading.driver for reading in present), key=order.index)
    return GpuReading(
        driver=driver,
        problem="; ".join(reading.problem for reading in present if reading.problem)
        if driver is not Driver.UP
        else "",
        gpus=tuple(gpu for reading in present for gpu in reading.gpus),
        replaced=any(reading.replaced for reading in present),
    )
