"""Defines what each route of the API is for, what it takes and what it answers.

The server registers the routes. The tests check that both lists agree, and that the server accepts
exactly these parameters and fields.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.api import requests, shapes
from agent.config.edit import EditOp
from agent.model import BackendState, Protocol, ServiceState
from agent.state.events import DEFAULT_SAMPLE, MAX_SAMPLE, EventKind
from agent.state.moves import MoveVerb
from agent.state.queries import FlowQuery, ListQuery, SortBy, TopQuery

type Schema = Mapping[str, object]

JSON = "application/json"
LINES = "application/x-ndjson"
TEXT = "text/plain"

_TEXT: Schema = {"type": "string"}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a query or of a path."""

    name: str
    text: str
    schema: Schema = field(default_factory=lambda: _TEXT)
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One route. ``answer`` and ``body`` are types of ``shapes``; None: no JSON, or no body.

    ``example``: the path and query of an example, and ``sent`` its body.
    """

    method: str
    path: str
    name: str  # operationId: what generated clients call it
    summary: str
    example: str
    answer: Any = None
    parameters: tuple[Parameter, ...] = ()
    placeholders: tuple[Parameter, ...] = ()  # of the path
    body: Any = None
    sent: Mapping[str, object] | None = None
    is_body_optional: bool = False
    content_type: str = JSON
    is_on_metrics_port: bool = False


def _one_of(values: Iterable[str]) -> Schema:
    return {"type": "string", "enum": list(values)}


def _values(kind: type[enum.Enum]) -> list[str]:
    return [str(each.value) for each in kind]


def _several_of(values: Iterable[str]) -> Schema:
    """Return the schema of a list with commas."""
    one = "|".join(values)
    return {"type": "string", "pattern": f"^({one})(,({one}))*$"}


def _number(low: int, high: int, default: int | None = None) -> Schema:
    found: dict[str, object] = {"type": "integer", "minimum": low, "maximum": high}
    return found if default is None else {**found, "default": default}


def _limit(default: int, most: int = requests.MAX_FLOWS) -> Parameter:
    return Parameter("limit", "The largest number of entries.", _number(1, most, default))


_ANY_NUMBER = _number(0, requests.MAX_NUMBER)
_OF_SERVICE = Parameter("service", "Only those of this service.")
_SERVICE = Parameter("name", "The name of a service.", is_required=True)
_LISTED_STATES = dict.fromkeys([*_values(BackendState), *_values(ServiceState)])

_LIST = (
    Parameter(
        "sort",
        "The sort key: names are sorted from A to Z, states the worst first, numbers the largest "
        "first.",
        {**_one_of(_values(SortBy)), "default": SortBy.NAME.value},
    ),
    _limit(ListQuery().limit),
    Parameter("offset", "How many entries to leave out at the top.", _ANY_NUMBER),
    _OF_SERVICE,
    Parameter("backend", "Only the backends of this name."),
    Parameter("state", "Only those in this state, or in these.", _several_of(_LISTED_STATES)),
    Parameter("match", "Only those with this text in their name or address."),
)
_FLOWS = (
    _OF_SERVICE,
    Parameter("backend", "Only those to the backends of this name."),
    Parameter("client", "Only those of clients in this prefix, or with this address."),
    Parameter(
        "state",
        "Only those in this state; `awaiting`: those with a request that waits for its answer.",
        _one_of(requests.FLOW_STATES),
    ),
    _limit(FlowQuery().limit),
    Parameter(
        "hottest",
        "`true`: those with the most waiting bytes first. Otherwise the most recently active ones "
        "come first.",
        {**_one_of(("true", "false")), "default": "false"},
    ),
)
_EXPLAIN = (
    Parameter("protocol", "The protocol.", _one_of(_values(Protocol)), is_required=True),
    Parameter("client", "The client's address.", is_required=True),
    Parameter("client_port", "The client's port.", _PORT, is_required=True),
    Parameter("vip", "The address that the client connects to.", is_required=True),
    Parameter("port", "The port that the client connects to.", _PORT, is_required=True),
)
_TRACE = (
    Parameter(
        "kind",
        "Only events of this kind, or of these. By default: all but "
        + " and ".join(f"`{kind.value}`" for kind in EventKind if kind.is_sampled)
        + ".",
        _several_of(_values(EventKind)),
    ),
    _OF_SERVICE,
    Parameter(
        "sample",
        "Report one in so many events of the kinds that come with each packet; a power of two.",
        _number(1, MAX_SAMPLE, DEFAULT_SAMPLE),
    ),
    Parameter("filter", "Only events that match this expression, as `lbctl trace` takes it."),
)
_EVENTS = (
    Parameter("since_s", "Only events of the last so many seconds.", _ANY_NUMBER),
    Parameter("after", "Only events with a larger number than this.", _ANY_NUMBER),
    Parameter("service", "Only those about this service or its backends."),
    Parameter("backend", "Only those about this backend: `SERVICE/BACKEND`."),
    Parameter(
        "level",
        "Only events of this level, and more severe ones.",
        {**_one_of(("info", "warning", "error")), "default": "info"},
    ),
    Parameter("event", "Only events of this kind."),
    _limit(requests.MAX_EVENTS, requests.MAX_EVENTS),
)
_VERSION = _number(1, requests.MAX_NUMBER)
_DIFF = (
    Parameter("old", "The number of the older version.", _VERSION, is_required=True),
    Parameter(
        "new", "The number of the newer version. By default: the running configuration.", _VERSION
    ),
)
_TOP = (
    _OF_SERVICE,
    Parameter(
        "by",
        "What to rank by: open flows, or waiting bytes.",
        {**_one_of(("flows", "waiting")), "default": "flows"},
    ),
    _limit(TopQuery().limit),
)

_LOOK = (
    Route(
        "GET",
        "/v1/status",
        "status",
        "Returns the state of the whole balancer, and what is wrong now.",
        "/v1/status",
        shapes.Status,
    ),
    Route(
        "GET",
        "/v1/list/{of}",
        "list",
        "Returns a page of the backends of all services, or of the services.",
        "/v1/list/backends?sort=waiting&limit=10",
        shapes.BackendPage | shapes.ServicePage,
        _LIST,
        (Parameter("of", "What to list.", _one_of(("backends", "services")), is_required=True),),
    ),
    Route(
        "GET",
        "/v1/services",
        "services",
        "Returns all services with their backends.",
        "/v1/services",
        shapes.Services,
    ),
    Route(
        "GET",
        "/v1/services/{name}",
        "service",
        "Returns one service with its backends.",
        "/v1/services/chat",
        shapes.Service,
        placeholders=(_SERVICE,),
    ),
    Route(
        "GET",
        "/v1/services/{name}/origins",
        "serviceOrigins",
        "Returns the settings of a service that are not at their default, and where each comes "
        "from.",
        "/v1/services/chat/origins",
        shapes.Origins,
        placeholders=(_SERVICE,),
    ),
    Route(
        "GET",
        "/v1/scale",
        "scales",
        "Returns how many backends each service should have.",
        "/v1/scale",
        shapes.Scales,
        is_on_metrics_port=True,
    ),
    Route(
        "GET",
        "/v1/scale/{name}",
        "scale",
        "Returns how many backends a service should have, and why.",
        "/v1/scale/chat",
        shapes.Scale,
        placeholders=(_SERVICE,),
        is_on_metrics_port=True,
    ),
    Route(
        "GET",
        "/v1/flows",
        "flows",
        "Returns recorded flows.",
        "/v1/flows?service=chat&state=established&limit=10",
        shapes.Flows,
        _FLOWS,
    ),
    Route(
        "GET",
        "/v1/explain",
        "explain",
        "Returns what happens to the next packet of a flow, and why, step by step.",
        "/v1/explain?protocol=tcp&client=192.0.2.7&client_port=40000&vip=10.0.0.10&port=80",
        shapes.Explanation,
        _EXPLAIN,
    ),
    Route(
        "GET",
        "/v1/trace",
        "trace",
        "Sends the data plane's decisions as they are made, one line of JSON each, until the "
        "client leaves. At least every second, a line says how many were lost.",
        "/v1/trace?kind=drop,pick&service=chat",
        shapes.TraceEvent | shapes.TraceLost,
        _TRACE,
        content_type=LINES,
    ),
    Route(
        "GET",
        "/v1/events",
        "events",
        "Returns events of the agent's log at level info and above.",
        "/v1/events?level=warning&since_s=3600",
        shapes.Events,
        _EVENTS,
    ),
)
_CONFIGURE = (
    Route(
        "GET",
        "/v1/config",
        "config",
        "Returns the running configuration, and how it differs from the file.",
        "/v1/config",
        shapes.Configuration,
    ),
    Route(
        "POST",
        "/v1/edit",
        "edit",
        "Changes the running configuration: makes all of the edits, or none.",
        "/v1/edit",
        shapes.Made,
        body=shapes.EditBody | shapes.EditsBody,
        sent={
            "op": EditOp.BACKEND_SET.value,
            "service": "chat",
            "backend": "gpu-1",
            "values": {"state": "drain"},
            "for_s": 3600,
            "message": "new driver",
        },
    ),
    Route(
        "GET",
        "/v1/history",
        "history",
        "Returns the stored versions of the running configuration.",
        "/v1/history",
        shapes.History,
    ),
    Route(
        "GET",
        "/v1/history/diff",
        "historyDiff",
        "Returns the changes between two versions.",
        "/v1/history/diff?old=1",
        shapes.Changes,
        _DIFF,
    ),
    Route(
        "POST",
        "/v1/rollback",
        "rollback",
        "Restores a version, or one service of it.",
        "/v1/rollback",
        shapes.Made,
        body=shapes.RollbackBody,
        sent={"version": 1, "dry_run": True},
    ),
    Route(
        "POST",
        "/v1/reload",
        "reload",
        "Reads the configuration file again, as SIGHUP does.",
        "/v1/reload",
        shapes.Made,
        body=shapes.ChangeBody,
        sent={"dry_run": True},
        is_body_optional=True,
    ),
    Route(
        "GET",
        "/v1/reverts",
        "reverts",
        "Returns the changes that end by themselves.",
        "/v1/reverts",
        shapes.Reverts,
    ),
    Route(
        "GET",
        "/v1/discovery",
        "discovery",
        "Returns the sources of backends, and what they have named.",
        "/v1/discovery",
        shapes.Sources,
    ),
    Route(
        "POST",
        "/v1/discovery/{name}/accept",
        "discoveryAccept",
        "Uses the answer of a service's source that was held because it looked like a mistake.",
        "/v1/discovery/chat/accept",
        shapes.Sources,
        placeholders=(_SERVICE,),
    ),
)
_PROTECT = (
    Route(
        "GET",
        "/v1/guard",
        "guard",
        "Returns blocks, lists and limits, and how many packets they have dropped.",
        "/v1/guard",
        shapes.Guard,
    ),
    Route(
        "GET",
        "/v1/guard/test",
        "guardTest",
        "Returns what each service does with a new flow from an address.",
        "/v1/guard/test?address=192.0.2.7",
        shapes.GuardTest,
        (Parameter("address", "The address of a client.", is_required=True),),
    ),
    Route(
        "GET",
        "/v1/guard/top",
        "guardTop",
        "Returns the sources with the most open flows, or with the most waiting bytes.",
        "/v1/guard/top?by=waiting&limit=5",
        shapes.Top,
        _TOP,
    ),
    Route(
        "POST",
        "/v1/guard/block",
        "guardBlock",
        "Drops packets from some sources for a time, and ends their flows.",
        "/v1/guard/block",
        shapes.Blocked,
        body=shapes.BlockBody,
        sent={"prefixes": ["192.0.2.7", "2001:db8::/48"], "for_s": 3600, "why": "port scans"},
    ),
    Route(
        "POST",
        "/v1/guard/unblock",
        "guardUnblock",
        "Serves blocked sources again.",
        "/v1/guard/unblock",
        shapes.Unblocked,
        body=shapes.UnblockBody,
        sent={"prefixes": ["192.0.2.7"]},
    ),
    Route(
        "GET",
        "/v1/failover",
        "failover",
        "Returns failover: instances, the failover process, and flow sync.",
        "/v1/failover",
        shapes.Failover,
    ),
    Route(
        "POST",
        "/v1/failover/{verb}",
        "failoverMove",
        "Moves the VIPs: gives them up, takes them, or lets priorities decide again.",
        "/v1/failover/handover",
        shapes.Moved,
        placeholders=(
            Parameter("verb", "What to do.", _one_of(_values(MoveVerb)), is_required=True),
        ),
        body=shapes.MoveBody,
        sent={"dry_run": True},
    ),
)
_WATCH = (
    Route(
        "GET",
        "/metrics",
        "metrics",
        "Returns the metrics as Prometheus reads them.",
        "/metrics",
        content_type=TEXT,
        is_on_metrics_port=True,
    ),
    Route(
        "GET",
        "/healthz",
        "healthz",
        "Answers with 200 while the program is attached, and with 503 while it is not.",
        "/healthz",
        content_type=TEXT,
        is_on_metrics_port=True,
    ),
    Route(
        "GET",
        "/v1/openapi.json",
        "openapi",
        "Returns the description of the API: an OpenAPI 3.1 document.",
        "/v1/openapi.json",
        dict[str, object],
    ),
)
ROUTES = (*_LOOK, *_CONFIGURE, *_PROTECT, *_WATCH)
