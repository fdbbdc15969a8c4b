"""Owns the Prometheus side of metrics: a snapshot as metric families and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.metrics.families import FAMILIES, Family, Kind
from agent.state.snapshot import Snapshot


class SnapshotCollector(Collector):
    """Collects from the snapshot of the moment; holds no state of its own."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        for family in FAMILIES:
            yield _metric(family, snapshot)

    def describe(self) -> Iterator[Metric]:
        """The names alone, so that registering takes no snapshot."""
        for family in FAMILIES:
            yield _empty(family)


def render(snapshot: Snapshot) -> bytes:
    """The snapshot in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: snapshot))
    return generate_latest(registry)


def _metric(family: Family, snapshot: Snapshot) -> Metric:
    metric = _empty(family)
    for labels, value in family.samples(snapshot):
        metric.add_metric(labels, float(value))
    return metric


def _empty(family: Family) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    return kind(family.name, family.help, labels=family.labels)
