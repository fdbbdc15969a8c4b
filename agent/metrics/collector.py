"""Owns the Prometheus side of metrics: turns a snapshot into metric families and into text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.metrics.families import chosen
from agent.metrics.family import Family, Kind, Sample
from agent.model import BackendMetrics
from agent.state.snapshot import Latency, Snapshot


class SnapshotCollector(Collector):
    """Collects metrics from the current snapshot. It has no state of its own."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], of_backends: BackendMetrics = BackendMetrics.ALL
    ) -> None:
        self._snapshot = snapshot
        self._families = tuple(chosen(of_backends))

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        for family in self._families:
            yield _metric(family, family.samples(snapshot))

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without samples, so that registering needs no snapshot."""
        for family in self._families:
            yield _metric(family, ())


def render(snapshot: Snapshot, of_backends: BackendMetrics = BackendMetrics.ALL) -> bytes:
    """Return the snapshot in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: snapshot, of_backends))
    return generate_latest(registry)


def _metric(family: Family, samples: Iterable[Sample]) -> Metric:
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, value in samples:
            if isinstance(value, Latency):
                histogram.add_metric(labels, _buckets(value), value.sum_s)
        return histogram
    kind = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, value in samples:
        if not isinstance(value, Latency):
            metric.add_metric(labels, float(value))
    return metric


def _buckets(times: Latency) -> list[tuple[str, float]]:
    upto = [(str(end), float(number)) for end, number in times.octaves]
    return [*upto, ("+Inf", float(times.count))]
