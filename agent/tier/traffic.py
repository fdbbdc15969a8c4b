"""Makes totals of what HAProxy counts, over its reloads, and the page for Prometheus. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.tier.render import Refusal, backend_of, refused_by

type Rows = Iterable[Mapping[str, str]]
type Series = tuple[str, str]  # a name, and what it is of

STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx")


@dataclass(frozen=True, slots=True)
class Engines:
    """The requests to one VIP. ``current``: at its engines now; ``queued``: that wait for that."""

    name: str
    current: int
    queued: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at HAProxy. ``counts`` begin again with each of its workers."""

    counts: Mapping[Series, int]
    connections: int
    engines: tuple[Engines, ...]


def read(rows: Rows, engines: Iterable[tuple[str, int]]) -> Reading:
    """Return what the rows of ``show stat`` say."""
    found = {(row["pxname"], row["svname"]): row for row in rows}
    front = found.get(("tier", "FRONTEND"), {})
    plain = found.get(("plain", "FRONTEND"), {})
    counts = {
        ("connections", ""): _number(front, "conn_tot"),
        ("handshakes", "full"): _number(front, "ssl_sess") - _number(front, "ssl_reused_sess"),
        ("handshakes", "resumed"): _number(front, "ssl_reused_sess"),
        ("handshakes", "failed"): _number(front, "ssl_failed_handshake"),
        ("received_bytes", ""): _number(front, "bin"),
        ("sent_bytes", ""): _number(front, "bout"),
        **{("answers", each): _number(front, f"hrsp_{each}") for each in STATUSES},
        ("refused", "connections"): _number(front, "dcon") + _number(plain, "dcon"),
        **{
            ("refused", each.value): _number(found.get((refused_by(each), "BACKEND"), {}), "stot")
            for each in Refusal
        },
    }
    seen = []
    for end in engines:
        name = backend_of(end)
        row = found.get((name, "BACKEND"), {})
        queued = _number(row, "qcur")
        seen.append(Engines(name, _number(row, "scur") - queued, queued))
        counts[("requests", name)] = _number(row, "stot")
        counts[("failed", name)] = _number(row, "econ") + _number(row, "eresp")
    return Reading(counts, _number(front, "scur"), tuple(seen))


def _number(row: Mapping[str, str], column: str) -> int:
    text = row.get(column) or "0"
    return int(text) if text.isdecimal() else 0


@dataclass(slots=True)
class Totals:
    """Counters that go on where a new worker of HAProxy begins again."""

    _ended: dict[Series, int] = field(default_factory=dict)
    _last: dict[Series, int] = field(default_factory=dict)

    def add(self, counts: Mapping[Series, int]) -> None:
        """Take a new look in."""
        for series, value in counts.items():
            last = self._last.get(series, 0)
            if value < last:
                self._ended[series] = self._ended.get(series, 0) + last
            self._last[series] = value

    def values(self) -> dict[Series, int]:
        """Return the totals."""
        return {each: self._ended.get(each, 0) + value for each, value in self._last.items()}


@dataclass(slots=True)
class Seen:
    """What the page shows."""

    totals: Totals = field(default_factory=Totals)
    reading: Reading | None = None
    leaving: tuple[int, ...] = ()  # connections of each worker that a reload has replaced
    ends_s: Mapping[str, float] = field(default_factory=dict)  # of certificates, by name
    problems: int = 0
    reloads: int = 0
    exchanges: int = 0


_COUNTERS = (
    ("connections", "", "Connections of clients."),
    ("handshakes", "result", "TLS handshakes."),
    ("received_bytes", "", "Bytes of requests."),
    ("sent_bytes", "", "Bytes of answers."),
    ("answers", "status", "Answers by class of status, refusals included."),
    ("refused", "why", "Requests that were refused, by reason, and connections."),
    ("requests", "engines", "Requests to the engines of a VIP."),
    ("failed", "engines", "Connections and answers of engines that failed."),
)


class TierCollector(Collector):
    """Makes the metrics of what was seen last."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """Yield the families, for each scrape."""
        seen, values = self._seen, self._seen.totals.values()
        for name, label, text in _COUNTERS:
            family = CounterMetricFamily(
                f"steelyard_tier_{name}", text, labels=[label] if label else []
            )
            for (of, value), count in sorted(values.items()):
                if of == name:
                    family.add_metric([value] if label else [], count)
            yield family
        reading = seen.reading
        yield _gauge("up", "Whether HAProxy answers.", int(reading is not None))
        yield _gauge("problems", "Problems that lbctl tier status shows.", seen.problems)
        yield CounterMetricFamily(
            "steelyard_tier_reloads", "New workers of HAProxy.", value=seen.reloads
        )
        yield CounterMetricFamily(
            "steelyard_tier_certificate_exchanges",
            "Certificates that were exchanged without a reload.",
            value=seen.exchanges,
        )
        open_ = _gauge("open_connections", "Connections of clients at the newest worker.", None)
        yield _gauge(
            "leaving_connections",
            "Connections at workers that a reload has replaced.",
            sum(seen.leaving),
        )
        current = GaugeMetricFamily(
            "steelyard_tier_engine_requests", "Requests at engines now.", labels=["engines"]
        )
        queued = GaugeMetricFamily(
            "steelyard_tier_queued_requests", "Requests that wait for an engine.",
            labels=["engines"],
        )  # fmt: skip
        if reading is not None:
            open_.add_metric([], reading.connections)
            for each in reading.engines:
                current.add_metric([each.name], each.current)
                queued.add_metric([each.name], each.queued)
        ends = GaugeMetricFamily(
            "steelyard_tier_certificate_expires_timestamp_seconds",
            "When a certificate expires, in seconds since the epoch.",
            labels=["certificate"],
        )
        for name, end_s in sorted(seen.ends_s.items()):
            ends.add_metric([name], end_s)
        yield from (open_, current, queued, ends)


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"steelyard_tier_{name}", text, value=value)
