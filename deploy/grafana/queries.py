"""Decides what is asked of Prometheus: aggregates of a series by labels, named by these labels."""

from __future__ import annotations

from dataclasses import dataclass

INTERVAL = "[$__rate_interval]"  # Grafana's: four scrapes at least

SERVICE = ("service",)
BACKEND = ("service", "backend")
OBJECTIVE = ("service", "objective")
NODE = ("instance",)
ROUTER = ("router", "instance")
PEER = ("peer", "instance")


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and how its series are called. ``shape`` is Grafana's format of the answer."""

    expression: str
    legend: str = ""
    shape: str = "time_series"
    instant: bool = False


def rate(series: str, by: tuple[str, ...], name: str = "", *, factor: int = 1) -> Query:
    """By how much a counter grows in a second, times ``factor``."""
    times = "" if factor == 1 else f"{factor} * "
    return Query(f"{times}{_rate(series, by)}", legend(by, name))


def rate_of_flows(series: str, by: tuple[str, ...], name: str = "") -> Query:
    """A rate of new or established flows. Balancers that exchange flows each count all of them, so
    theirs are not added up.
    """
    return Query(f"max by ({', '.join(by)}) (rate({series}{INTERVAL}))", legend(by, name))


def growth(series: str, by: tuple[str, ...], name: str = "") -> Query:
    """By how much a counter grows from one point of the graph to the next, for what is rare."""
    return Query(f"sum by ({', '.join(by)}) (increase({series}{INTERVAL}))", legend(by, name))


def total(series: str, by: tuple[str, ...], name: str = "") -> Query:
    """The sum."""
    return _aggregate("sum", series, by, name)


def most(series: str, by: tuple[str, ...], name: str = "") -> Query:
    """The largest."""
    return _aggregate("max", series, by, name)


def least(series: str, by: tuple[str, ...], name: str = "") -> Query:
    """The smallest."""
    return _aggregate("min", series, by, name)


def mean(series: str, by: tuple[str, ...], name: str = "") -> Query:
    """The mean."""
    return _aggregate("avg", series, by, name)


def quantiles(histogram: str, by: tuple[str, ...], *shares: float) -> tuple[Query, ...]:
    """Below which time so large a share of what a histogram counted was."""
    buckets = _rate(f"{histogram}_bucket", (*by, "le"))
    return tuple(
        Query(f"histogram_quantile({share}, {buckets})", legend(by, f"p{round(share * 100)}"))
        for share in shares
    )


def ratio(part: Query, whole: Query, matching: str = "") -> Query:
    """One beside the other, named as the first. ``matching``: PromQL's words for it."""
    over = f" / {matching} " if matching else " / "
    return Query(part.expression + over + whole.expression, part.legend)


def above_zero(query: Query) -> Query:
    """Only what is more than nothing, where most series are."""
    return Query(f"{query.expression} > 0", query.legend)


def legend(by: tuple[str, ...], name: str = "") -> str:
    """How a series with these labels is called, as in `chat/gpu-1 effective on lb1`."""
    subject = "/".join(f"{{{{{label}}}}}" for label in by if label in BACKEND)
    others = (f"{{{{{label}}}}}" for label in by if label not in (*BACKEND, "instance"))
    words = [word for word in (subject, *others, name) if word]
    node = "{{instance}}"
    if "instance" in by:
        words.append(f"on {node}" if words else node)
    return " ".join(words)


def _rate(series: str, by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)}) (rate({series}{INTERVAL}))"


def _aggregate(function: str, series: str, by: tuple[str, ...], name: str) -> Query:
    return Query(f"{function} by ({', '.join(by)}) ({series})", legend(by, name))
