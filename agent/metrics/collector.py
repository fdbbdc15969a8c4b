"""Owns the Prometheus side of metrics: turns a snapshot into metric families and into text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.dataplane.latency import OCTAVE_ENDS_S
from agent.metrics.families import chosen
from agent.metrics.family import Family, Kind, Sample
from agent.model import BackendMetrics
from agent.state.snapshot import Latency, Snapshot

_ENDS = tuple(map(str, OCTAVE_ENDS_S))


@dataclass(frozen=True, slots=True)
class _Only(Collector):
    """Collects one metric, so that the library renders it alone."""

    metric: Metric

    def collect(self) -> Iterator[Metric]:
        yield self.metric


def render(snapshot: Snapshot, of_backends: BackendMetrics = BackendMetrics.ALL) -> bytes:
    """Return the snapshot in Prometheus' text format.

    One family is rendered after the other. Together, the lines of ten thousand backends would take
    several times the memory of the page, and the agent would keep a part of that for good.
    """
    page = io.BytesIO()
    for family in chosen(of_backends):
        page.write(generate_latest(_Only(_metric(family, family.samples(snapshot)))))
    return page.getvalue()


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
    upto = zip(_ENDS, map(float, times.octaves), strict=True)
    return [*upto, ("+Inf", float(times.count))]
