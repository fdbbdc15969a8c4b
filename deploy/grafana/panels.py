"""Decides what a panel and a dashboard are in Grafana's JSON (schema 39: Grafana 10.4 and newer).

What is shown is in ``boards``; here is only how. Panels of a row lie side by side, from the
left, and go on in the next line where there is no more room.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deploy.grafana.queries import INTERVAL, Query, legend
from deploy.prometheus.promql import narrowed

type Json = dict[str, Any]

SCHEMA_VERSION = 39
TAG = "steelyard"
COLUMNS = 24  # of Grafana's grid
GOOD, FAIR, BAD, OFF = "green", "orange", "red", "#808080"

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_LAST = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
_QUERY_NAMES = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; ``options``, ``defaults`` and the rest are parts of Grafana's JSON."""

    kind: str
    title: str
    queries: tuple[Query, ...]
    about: str
    width: int
    options: Json
    defaults: Json
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and its panels, all of one height."""

    title: str
    panels: tuple[Panel, ...]
    height: int = 8


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard; ``variables``: labels by whose values the user can narrow it."""

    name: str  # of its file and in its address
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: tuple[str, ...] = ("instance", "service")

    def document(self) -> Json:
        """What Grafana imports."""
        return {
            "uid": f"steelyard-{self.name}",
            "title": f"Steelyard: {self.title}",
            "description": self.about,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "annotations": {"list": []},
            "links": [_LINKS],
            "templating": {"list": [_SOURCES, *(_VARIABLES[name] for name in self.variables)]},
            "panels": list(_placed(self.rows, self.variables)),
        }


# --- kinds of panels ----------------------------------------------------------------------


def stat(
    title: str,
    query: Query | str,
    about: str = "",
    *,
    bad: str = BAD,
    none: str = "none",
    by_name: bool = False,
) -> Panel:
    """One number, in the colour ``bad`` from 1 on. ``none`` is shown where there is no data.
    ``by_name``: the names of the series are shown, and their values are of no matter.
    """
    options = _LAST | {
        "colorMode": "background",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "name" if by_name else "auto",
    }
    asked = query if isinstance(query, Query) else Query(query)
    colours = _coloured({} if by_name else {1: bad})
    defaults = {"unit": "none", "noValue": none, **colours}
    return Panel("stat", title, (_at_once(asked),), about, 4, options, defaults)


def graph(
    title: str,
    unit: str,
    *queries: Query,
    about: str = "",
    width: int = 8,
    stacked: bool = False,
    top: float | None = None,
) -> Panel:
    """Lines over time. ``top``: where the axis ends, instead of at the highest value."""
    custom = {
        "drawStyle": "line",
        "fillOpacity": 30 if stacked else 5,
        "lineWidth": 1,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    defaults = {"unit": unit, "min": 0, "custom": custom} | ({"max": top} if top else {})
    options = {"legend": _legend(), "tooltip": {"mode": "multi", "sort": "desc"}}
    return Panel("timeseries", title, queries, about, width, options, defaults)


def gauges(title: str, query: Query, about: str = "") -> Panel:
    """A bar for each series, from 0 to 1: orange from 0.7, red from 0.9 on."""
    options = _LAST | {"displayMode": "basic", "orientation": "horizontal", "showUnfilled": True}
    defaults = {"unit": "percentunit", "min": 0, "max": 1, **_coloured({0.7: FAIR, 0.9: BAD})}
    return Panel("bargauge", title, (_at_once(query),), about, 8, options, defaults)


def heatmap(title: str, histogram: str, about: str = "") -> Panel:
    """How the values of a histogram are distributed, over time."""
    counts = f"sum by (le) (increase({histogram}_bucket{INTERVAL}))"
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "unit": "s"},
    }
    asked = Query(counts, "{{le}}", shape="heatmap")
    return Panel("heatmap", title, (asked,), about, 8, options, {})


@dataclass(frozen=True, slots=True)
class States:
    """The states in which something can be, with their colours, numbered from ``first``."""

    colours: Mapping[str, str]
    label: str = "state"  # of a series for each state, which is 1 or 0
    first: int = 1

    def of(self, series: str, by: tuple[str, ...]) -> Query:
        """The number of the state whose series is 1."""
        numbered = (
            f'{number} * {series}{{{self.label}="{state}"}}'
            for number, state in enumerate(self.colours, self.first)
        )
        return Query(f"sum by ({', '.join(by)}) ({' or '.join(numbered)})", legend(by))

    @property
    def mappings(self) -> list[Json]:
        """From numbers to words and colours."""
        words = {
            str(number): {"text": state, "color": colour, "index": number}
            for number, (state, colour) in enumerate(self.colours.items(), self.first)
        }
        return [{"type": "value", "options": words}]


def yes_no(*, yes: str, no: str) -> States:
    """The states of what is 1 or 0, in these colours."""
    return States({"no": no, "yes": yes}, first=0)


def timeline(title: str, states: States, query: Query, about: str = "", *, width: int = 8) -> Panel:
    """A bar for each series, coloured by the state that it was in."""
    custom = {"fillOpacity": 80, "lineWidth": 0}
    defaults = {"custom": custom, "mappings": states.mappings, "color": {"mode": "thresholds"}}
    options = {
        "alignValue": "left",
        "mergeValues": True,
        "rowHeight": 0.85,
        "showValue": "auto",
        "legend": _legend(),
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return Panel("state-timeline", title, (query,), about, width, options, defaults)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, its unit, and what it shows."""

    title: str
    unit: str
    query: Query
    states: States | None = None


def table(
    title: str, keys: Mapping[str, str], *columns: Column, about: str = "", width: int = 12
) -> Panel:
    """A row for each set of ``keys``, which are labels with their headings."""
    queries = tuple(replace(_at_once(c.query), shape="table") for c in columns)
    # With one query the value's column is `Value`, with several `Value #A` and so on.
    named = [f"Value #{ref}" for ref in _QUERY_NAMES] if len(columns) > 1 else ["Value"]
    headings = {**keys, **dict(zip(named, (c.title for c in columns), strict=False))}
    organized = {
        "excludeByName": {"Time": True},
        "indexByName": {name: place for place, name in enumerate(headings)},
        "renameByName": headings,
    }
    options = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": []}}
    defaults = {"noValue": "none", "custom": {"align": "auto", "filterable": True}}
    changes = ({"id": "merge", "options": {}}, {"id": "organize", "options": organized})
    parts = tuple(_column(column) for column in columns)
    return Panel("table", title, queries, about, width, options, defaults, parts, changes)


# --- JSON ---------------------------------------------------------------------------------


def _column(column: Column) -> Json:
    properties: list[Json] = [{"id": "unit", "value": column.unit}]
    if column.states:
        properties.append({"id": "mappings", "value": column.states.mappings})
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    return {"matcher": {"id": "byName", "options": column.title}, "properties": properties}


def _at_once(query: Query) -> Query:
    return replace(query, instant=True)


def _coloured(bad_from: Mapping[float, str]) -> Json:
    steps: list[Json] = [{"color": GOOD, "value": None}]
    steps += [{"color": colour, "value": value} for value, colour in bad_from.items()]
    return {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}}


def _legend() -> Json:
    return {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}


def _placed(rows: tuple[Row, ...], variables: tuple[str, ...]) -> Iterator[Json]:
    number, y = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "panels": [],
        }
        x, y = 0, y + 1
        for panel in row.panels:
            number += 1
            if x + panel.width > COLUMNS:
                x, y = 0, y + row.height
            place = {"h": row.height, "w": panel.width, "x": x, "y": y}
            yield _panel(panel, variables) | {"id": number, "gridPos": place}
            x += panel.width
        y += row.height


def _panel(panel: Panel, variables: tuple[str, ...]) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "targets": [
            _target(ref, query, variables)
            for ref, query in zip(_QUERY_NAMES, panel.queries, strict=False)
        ],
        "fieldConfig": {"defaults": panel.defaults, "overrides": list(panel.overrides)},
        "options": panel.options,
        "transformations": list(panel.transformations),
    }


def _target(ref: str, query: Query, variables: tuple[str, ...]) -> Json:
    return {
        "refId": ref,
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": narrowed(query.expression, variables),
        "format": query.shape,
        "instant": query.instant,
        "range": not query.instant,
        "legendFormat": query.legend or "__auto",
    }


def _variable(name: str, label: str, of: str) -> Json:
    return {
        "name": name,
        "type": "query",
        "label": label,
        "datasource": _SOURCE,
        "query": {"qryType": 1, "query": of, "refId": "PrometheusVariableQueryEditor"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # also what has no such label
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


_SOURCES: Json = {
    "name": "datasource",
    "type": "datasource",
    "label": "Prometheus",
    "query": "prometheus",
    "refresh": 1,
}
_VARIABLES = {
    "instance": _variable("instance", "Balancer", "label_values(steelyard_build_info, instance)"),
    "service": _variable(
        "service",
        "Service",
        'label_values(steelyard_service_info{instance=~"$instance"}, service)',
    ),
}
_LINKS: Json = {
    "title": "Steelyard",
    "type": "dashboards",
    "tags": [TAG],
    "icon": "external link",
    "tooltip": "",
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
}
