"""Decides the state of a host's GPUs from a page of our node agent or NVIDIA's dcgm-exporter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.model import NodeKind
from agent.telemetry.engines import Page, looks_like
from agent.telemetry.exposition import Hints, TooManySamplesError, labels_of
from agent.telemetry.report import Failure, GpuReport, NodeReport, plausible, share
from agent.telemetry.xid import Blames, blames

USUAL_PORTS = {NodeKind.NODE_AGENT: 9118, NodeKind.DCGM: 9400}
MOST_GPUS = 1024  # including MIG instances
MOST_BYTES = 1e15
MOST_CELSIUS = 200.0
MOST_HERTZ = 1e11

FALLEN_OFF_THE_BUS = 79

POWER_CAP = "sw-power-cap"
# The reasons that slow a GPU down against the operator's wish. Being idle, or keeping to clocks
# that were set on purpose, is not among them.
SLOWING = frozenset(("sw-thermal", "hw-thermal", "hw-slowdown", "hw-power-brake"))
# NVML's bits of the clock event reasons, which DCGM passes on.
_REASON_BITS = {
    0x04: POWER_CAP,
    0x08: "hw-slowdown",
    0x20: "sw-thermal",
    0x40: "hw-thermal",
    0x80: "hw-power-brake",
}

_OURS = b"steelyard_node_gpu_"
_DCGM = b"DCGM_FI_DEV_"


@dataclass(slots=True)
class _Gpu:
    """What a page has said about one GPU so far."""

    name: str
    uuid: str
    figures: dict[str, float] = field(default_factory=dict)
    reasons: set[str] = field(default_factory=set)
    xids: list[int] = field(default_factory=list)
    action: str | None = None

    def report(self) -> GpuReport:
        figures = self.figures
        # Our node agent counts XIDs since its start. While ``drain`` is 0, it no longer holds any
        # of them against the GPU.
        xid = None if figures.get("drain") == 0 else max(self.xids, default=None)
        return GpuReport(
            name=self.name,
            uuid=self.uuid,
            lost=figures.get("up") == 0 or xid == FALLEN_OFF_THE_BUS,
            clock_share=_ratio(figures.get("clock"), figures.get("clock_max")),
            throttled=tuple(sorted(self.reasons & SLOWING)),
            power_capped=POWER_CAP in self.reasons,
            xid=xid,
            recovery_action=self.action,
            utilization=figures.get("utilization"),
            memory_used_share=_ratio(figures.get("used"), figures.get("total")),
            temperature_c=figures.get("temperature"),
        )


class _Node:
    """The GPUs of one page, by UUID, or by number if there is no UUID."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.gpus: dict[str, _Gpu] = {}

    def each(self, name: bytes) -> Iterable[tuple[_Gpu, dict[str, str], float]]:
        """Yield the samples of a metric, each as its GPU, labels and value."""
        for raw, value in self.page.all(name):
            labels = labels_of(raw)
            number = labels.get("gpu", "")[:64]
            uuid = (labels.get("uuid") or labels.get("UUID") or "")[:64]
            key = uuid or number
            if not key or (key not in self.gpus and len(self.gpus) >= MOST_GPUS):
                self.page.dropped += 1
                continue
            yield self.gpus.setdefault(key, _Gpu(number or uuid, uuid)), labels, value

    def figure(
        self,
        figure: str,
        name: bytes,
        most: float,
        scale: float = 1.0,
        merge: Callable[[float, float], float] = max,
    ) -> None:
        """Record one figure of each GPU. Several samples of a GPU (MIG instances) are merged."""
        for gpu, _, value in self.each(name):
            if not plausible(value * scale, most):
                self.page.dropped += 1
                continue
            old = gpu.figures.get(figure)
            gpu.figures[figure] = value * scale if old is None else merge(old, value * scale)


def read_node(kind: NodeKind, text: bytes, hints: Hints | None = None) -> NodeReport | Failure:
    """Return what the page of a host says about its GPUs; Failure if it is not such a page.

    The page of a node agent on a host without a GPU gives a report without GPUs.
    """
    node = _Node(Page(text, hints))
    try:
        if kind is NodeKind.DCGM:
            _dcgm(node)
        else:
            _ours(node)
    except TooManySamplesError as error:
        return Failure(str(error))
    if not node.gpus and not (kind is NodeKind.NODE_AGENT and b"\nsteelyard_node_" in text):
        return Failure(f"{looks_like(text)}no GPU of {kind.value} is on the page")
    gpus = sorted(node.gpus.values(), key=lambda gpu: (len(gpu.name), gpu.name, gpu.uuid))
    return NodeReport(tuple(gpu.report() for gpu in gpus), node.page.dropped)


def _ours(node: _Node) -> None:
    node.figure("up", _OURS + b"up", 1)
    node.figure("drain", _OURS + b"drain", 1)
    node.figure("utilization", _OURS + b"utilization_ratio", 1)
    node.figure("used", _OURS + b"memory_used_bytes", MOST_BYTES)
    node.figure("total", _OURS + b"memory_total_bytes", MOST_BYTES)
    node.figure("temperature", _OURS + b"temperature_celsius", MOST_CELSIUS)
    node.figure("clock", _OURS + b"sm_clock_hertz", MOST_HERTZ)
    node.figure("clock_max", _OURS + b"sm_clock_max_hertz", MOST_HERTZ)
    for gpu, labels, value in node.each(_OURS + b"throttle_active"):
        if value == 1:
            gpu.reasons.add(labels.get("reason", ""))
    for gpu, labels, value in node.each(_OURS + b"xid_errors_total"):
        number = labels.get("xid", "")
        if value > 0 and labels.get("blames") == "hardware" and number.isdecimal():
            gpu.xids.append(int(number[:5]))
    for gpu, labels, value in node.each(_OURS + b"recovery_action"):
        action = labels.get("action", "")[:64]
        if value == 1 and action not in ("", "none"):
            gpu.action = action


def _dcgm(node: _Node) -> None:
    node.figure("utilization", _DCGM + b"GPU_UTIL", 1, scale=0.01)
    node.figure("used", _DCGM + b"FB_USED", MOST_BYTES, scale=2**20, merge=float.__add__)
    node.figure("free", _DCGM + b"FB_FREE", MOST_BYTES, scale=2**20, merge=float.__add__)
    node.figure("temperature", _DCGM + b"GPU_TEMP", MOST_CELSIUS)
    node.figure("clock", _DCGM + b"SM_CLOCK", MOST_HERTZ, scale=1e6)
    node.figure("clock_max", _DCGM + b"MAX_SM_CLOCK", MOST_HERTZ, scale=1e6)
    for gpu in node.gpus.values():
        if "used" in gpu.figures and "free" in gpu.figures:
            gpu.figures["total"] = gpu.figures["used"] + gpu.figures["free"]
    reasons = b"CLOCKS_EVENT_REASONS", b"CLOCK_THROTTLE_REASONS"  # the names since 3.3 and before
    for gpu, _, value in (one for name in reasons for one in node.each(_DCGM + name)):
        if not plausible(value, 0xFFFF):
            node.page.dropped += 1
            continue
        gpu.reasons |= {name for bit, name in _REASON_BITS.items() if int(value) & bit}
    for gpu, _, value in node.each(_DCGM + b"XID_ERRORS"):
        if not plausible(value, 9999):
            node.page.dropped += 1
        elif value and blames(int(value)) is Blames.HARDWARE:
            gpu.xids.append(int(value))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return share(min(part, whole) / whole) if part is not None and whole else None
