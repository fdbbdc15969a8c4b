"""Owns the node agent's metrics: the last readings as Prometheus text.

The names and labels are an interface, because the balancer's agent reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.node.reading import Driver, Gpu, HostReading, NodeReading, Recovery, Throttle
from agent.node.verdict import (
    SILENT_S,
    ServerState,
    Verdict,
    chosen,
    drain_reason,
    missing_of,
    verdict,
)
from agent.telemetry import xid

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Figure:
    """One metric with a value for each GPU."""

    name: str
    help: str
    value: Callable[[Gpu], float | None]
    counter: bool = False


_FIGURES = (
    _Figure("up", "1 when the GPU answers, 0 when it is lost.", lambda gpu: float(gpu.up)),
    _Figure(
        "drain",
        "1 when the GPU should get no new work: a recovery action or an XID of the hardware.",
        lambda gpu: float(bool(drain_reason(gpu))),
    ),
    _Figure(
        "utilization_ratio",
        "Share of time in which some kernel ran; it does not say how much of the GPU was used.",
        lambda gpu: gpu.utilization,
    ),
    _Figure("memory_used_bytes", "Memory in use.", lambda gpu: gpu.memory_used_bytes),
    _Figure("memory_total_bytes", "Memory.", lambda gpu: gpu.memory_total_bytes),
    _Figure("power_watts", "Power drawn.", lambda gpu: gpu.power_watts),
    _Figure("power_limit_watts", "The limit in force.", lambda gpu: gpu.power_limit_watts),
    _Figure("temperature_celsius", "Temperature.", lambda gpu: gpu.temperature_celsius),
    _Figure("sm_clock_hertz", "Clock of the multiprocessors.", lambda gpu: gpu.sm_clock_hertz),
    _Figure("sm_clock_max_hertz", "The highest SM clock.", lambda gpu: gpu.sm_clock_max_hertz),
    _Figure(
        "ecc_uncorrected_total",
        "Uncorrected memory errors since the driver was loaded.",
        lambda gpu: gpu.ecc_uncorrected,
        counter=True,
    ),
)


class NodeCollector(Collector):
    """Collects one reading, for the GPUs that ``engine`` names; if it names none, for all."""

    def __init__(self, node: NodeReading, engine: tuple[str, ...]) -> None:
        self._node = node
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        gpus = _present(self._node, self._engine)
        yield from _state(self._node, verdict(self._node, self._engine))
        yield from _figures(gpus)
        yield from _events(gpus)
        if self._node.host is not None:
            yield from _host(self._node.host)

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, as a collector renders one reading once."""
        return iter(())


def render(node: NodeReading, engine: tuple[str, ...] = ()) -> bytes:
    """Return the reading in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(node, engine))
    return generate_latest(registry)


def _present(node: NodeReading, engine: tuple[str, ...]) -> tuple[Gpu, ...]:
    """Return the GPUs to show. A named one that is missing counts as lost.

    All count as lost when the driver hangs.
    """
    if node.gpus is None or node.gpus.driver is Driver.UNREADABLE:
        return ()
    gpus = (
        *chosen(node.gpus, engine),
        *(Gpu(name, "", up=False) for name in missing_of(node.gpus, engine)),
    )
    if node.gpu_age_s <= SILENT_S:
        return gpus
    return tuple(  # without figures, because old ones would mislead
        Gpu(gpu.index, gpu.uuid, up=False, name=gpu.name, mig=gpu.mig, xids=gpu.xids)
        for gpu in gpus
    )


def _state(node: NodeReading, decided: Verdict) -> Iterator[Metric]:
    answers = node.gpus is not None and node.gpus.driver is Driver.UP
    driver_up = answers and node.gpu_age_s <= SILENT_S
    yield GaugeMetricFamily(
        "steelyard_node_gpu_driver_up", "1 when a GPU driver answers.", float(driver_up)
    )
    yield GaugeMetricFamily(
        "steelyard_node_gpu_reading_age_seconds",
        "Age of the GPUs' figures; it grows while the driver hangs.",
        node.gpu_age_s,
    )
    weight = 0.0 if decided.word is ServerState.DOWN else decided.percent
    if weight is not None:
        yield GaugeMetricFamily(
            "steelyard_node_weight_ratio",
            "Share of its weight that the host should have, as the agent check says; 0: no work.",
            weight / 100,
        )


def _figures(gpus: tuple[Gpu, ...]) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "steelyard_node_gpu_info", "Which GPU it is.", labels=("gpu", "uuid", "name", "mig")
    )
    for gpu in gpus:
        if gpu.name is not None:
            info.add_metric(_labels(gpu, gpu.name), 1)
    yield info
    for figure in _FIGURES:
        kind = CounterMetricFamily if figure.counter else GaugeMetricFamily
        metric = kind(
            f"steelyard_node_gpu_{figure.name}", figure.help, labels=("gpu", "uuid", "mig")
        )
        for gpu in gpus:
            value = figure.value(gpu)
            if value is not None:
                metric.add_metric(_labels(gpu), value)
        yield metric


def _events(gpus: tuple[Gpu, ...]) -> Iterator[Metric]:
    throttles = GaugeMetricFamily(
        "steelyard_node_gpu_throttle_active",
        "1 for each reason why the clock is not higher.",
        labels=("gpu", "uuid", "reason", "mig"),
    )
    actions = GaugeMetricFamily(
        "steelyard_node_gpu_recovery_action",
        "1 for the action that the driver requires before it trusts the GPU again.",
        labels=("gpu", "uuid", "action", "mig"),
    )
    xids = CounterMetricFamily(
        "steelyard_node_gpu_xid_errors",
        "Errors that the driver reported since the agent started, by number and what is to blame.",
        labels=("gpu", "uuid", "xid", "blames", "mig"),
    )
    for gpu in gpus:
        if gpu.throttles is not None:
            for reason in Throttle:
                throttles.add_metric(_labels(gpu, reason.value), float(reason in gpu.throttles))
        if gpu.recovery is not None:
            for action in Recovery:
                actions.add_metric(_labels(gpu, action.value), float(action is gpu.recovery))
        for number, times in gpu.xids:
            xids.add_metric(_labels(gpu, str(number), xid.blames(number).value), times)
    yield from (throttles, actions, xids)


def _host(host: HostReading) -> Iterator[Metric]:
    if host.cpu_utilization is not None:
        yield GaugeMetricFamily(
            "steelyard_node_cpu_utilization_ratio",
            "Share of CPU time that was used since the last reading.",
            host.cpu_utilization,
        )
    yield GaugeMetricFamily(
        "steelyard_node_memory_used_bytes", "Memory in use.", host.memory_used_bytes
    )
    yield GaugeMetricFamily(
        "steelyard_node_memory_total_bytes", "Memory of the host.", host.memory_total_bytes
    )
    received = CounterMetricFamily(
        "steelyard_node_network_receive_bytes", "Bytes received.", labels=("interface",)
    )
    transmitted = CounterMetricFamily(
        "steelyard_node_network_transmit_bytes", "Bytes sent.", labels=("interface",)
    )
    for interface in host.interfaces:
        received.add_metric((interface.name,), interface.received_bytes)
        transmitted.add_metric((interface.name,), interface.transmitted_bytes)
    yield from (received, transmitted)


def _labels(gpu: Gpu, *more: str) -> tuple[str, ...]:
    """Return the label values. ``mig`` is last, because a whole GPU has none."""
    return (gpu.index, gpu.uuid, *more, *(() if gpu.mig is None else (gpu.mig,)))
