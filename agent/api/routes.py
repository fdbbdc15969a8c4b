"""Defines what each route of the API is for, what it takes and what it answers.

The server registers the routes. The tests check that both lists agree, and that the server accepts
exactly these parameters and fields.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.api import fleetshapes, requests, shapes
from agent.config.edit import EditOp
from agent.model import BackendState, Protocol, Role, ServiceState
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
class Lesser:
    """Requests of a route for which a lower role suffices.

    ``applies`` decides that from the body, and raises RequestError if that is invalid. ``when``
    says it in words.
    """

    role: Role
    when: str
    applies: Callable[[Mapping[str, object]], bool]


@dataclass(frozen=True, slots=True)
class Route:
    """One route. ``role``: the least role that it needs, unless one of ``lesser`` applies.

    ``answer`` and ``body`` are types of ``shapes``; None: no JSON, or no body. ``example``: the
    path and query of an example, and ``sent`` its body.
    """

    method: str
    path: str
    role: Role
    name: str  # operationId: what generated clients call it
    summary: str
    example: str
    answer: Any = None
    parameters: tuple[Parameter, ...] = ()
    placeholders: tuple[Parameter, ...] = ()  # of the path
    body: Any = None
    sent: Mapping[str, object] | None = None
    lesser: tuple[Lesser, ...] = ()
    is_body_optional: bool = False
    content_type: str = JSON
    is_on_metrics_port: bool = False

    def is_order(self, body: Mapping[str, object]) -> bool:
        """Return whether a request asks for a change, and not only what one would do."""
        return self.method == "POST" and body.get("dry_run") is not True


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
_AUDIT = (
    Parameter("since_s", "Only records of the last so many seconds.", _ANY_NUMBER),
    _limit(requests.USUAL_RECORDS, requests.MAX_RECORDS),
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

_IF_DRY_RUN = Lesser(Role.VIEWER, "with `dry_run`", lambda body: body.get("dry_run") is True)
_IF_ONLY_WEIGHTS = Lesser(
    Role.OPERATOR,
    "if all edits are `backend.set` and set only `weight` and `state`",
    requests.sets_only_weights,
)

_LOOK = (
    Route(
        "GET",
        "/v1/status",
        Role.VIEWER,
        "status",
        "Returns the state of the whole balancer, and what is wrong now.",
        "/v1/status",
        shapes.Status,
    ),
    Route(
        "GET",
        "/v1/list/{of}",
        Role.VIEWER,
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
        Role.VIEWER,
        "services",
        "Returns all services with their backends.",
        "/v1/services",
        shapes.Services,
    ),
    Route(
        "GET",
        "/v1/services/{name}",
        Role.VIEWER,
        "service",
        "Returns one service with its backends.",
        "/v1/services/chat",
        shapes.Service,
        placeholders=(_SERVICE,),
    ),
    Route(
        "GET",
        "/v1/services/{name}/origins",
        Role.VIEWER,
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
        Role.VIEWER,
        "scales",
        "Returns how many backends each service should have.",
        "/v1/scale",
        shapes.Scales,
        is_on_metrics_port=True,
    ),
    Route(
        "GET",
        "/v1/scale/{name}",
        Role.VIEWER,
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
        Role.VIEWER,
        "flows",
        "Returns recorded flows.",
        "/v1/flows?service=chat&state=established&limit=10",
        shapes.Flows,
        _FLOWS,
    ),
    Route(
        "GET",
        "/v1/explain",
        Role.VIEWER,
        "explain",
        "Returns what happens to the next packet of a flow, and why, step by step.",
        "/v1/explain?protocol=tcp&client=192.0.2.7&client_port=40000&vip=10.0.0.10&port=80",
        shapes.Explanation,
        _EXPLAIN,
    ),
    Route(
        "GET",
        "/v1/trace",
        Role.OPERATOR,
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
        Role.VIEWER,
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
        Role.VIEWER,
        "config",
        "Returns the running configuration, and how it differs from the file.",
        "/v1/config",
        shapes.Configuration,
    ),
    Route(
        "POST",
        "/v1/edit",
        Role.ADMIN,
        "edit",
        "Changes the running configuration: makes all of the edits, or none.",
        "/v1/edit",
        shapes.Made,
        body=shapes.EditBody | shapes.EditsBody,
        lesser=(_IF_DRY_RUN, _IF_ONLY_WEIGHTS),
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
        Role.VIEWER,
        "history",
        "Returns the stored versions of the running configuration.",
        "/v1/history",
        shapes.History,
    ),
    Route(
        "GET",
        "/v1/history/diff",
        Role.VIEWER,
        "historyDiff",
        "Returns the changes between two versions.",
        "/v1/history/diff?old=1",
        shapes.Changes,
        _DIFF,
    ),
    Route(
        "POST",
        "/v1/rollback",
        Role.ADMIN,
        "rollback",
        "Restores a version, or one service of it.",
        "/v1/rollback",
        shapes.Made,
        body=shapes.RollbackBody,
        lesser=(_IF_DRY_RUN,),
        sent={"version": 1, "dry_run": True},
    ),
    Route(
        "POST",
        "/v1/reload",
        Role.ADMIN,
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
        "/v1/fleet",
        Role.VIEWER,
        "fleet",
        "Returns the fleet: its balancers, the version of each, and the rollout.",
        "/v1/fleet",
        fleetshapes.FleetOverview,
    ),
    Route(
        "GET",
        "/v1/fleet/history",
        Role.VIEWER,
        "fleetHistory",
        "Returns the newest versions of the fleet's services.",
        "/v1/fleet/history?limit=5",
        fleetshapes.FleetHistory,
        (_limit(20, requests.MAX_FLEET_VERSIONS),),
    ),
    Route(
        "GET",
        "/v1/fleet/versions/{number}",
        Role.VIEWER,
        "fleetVersion",
        "Returns one version of the fleet's services.",
        "/v1/fleet/versions/1",
        fleetshapes.WholeFleetVersion,
        placeholders=(
            Parameter("number", "Its number.", _number(1, requests.MAX_NUMBER), is_required=True),
        ),
    ),
    Route(
        "GET",
        "/v1/fleet/diff",
        Role.VIEWER,
        "fleetDiff",
        "Returns the changes between two versions of the fleet's services.",
        "/v1/fleet/diff?old=1",
        shapes.Changes,
        _DIFF,
    ),
    Route(
        "GET",
        "/v1/fleet/compare",
        Role.VIEWER,
        "fleetCompare",
        "Returns the services that two balancers of the fleet do not treat alike.",
        "/v1/fleet/compare?one=lb1&other=lb2",
        fleetshapes.FleetComparison,
        tuple(
            Parameter(name, "The name of a balancer.", is_required=True)
            for name in requests.COMPARE_PARAMETERS
        ),
    ),
    Route(
        "POST",
        "/v1/fleet/rollback",
        Role.ADMIN,
        "fleetRollback",
        "Makes a new version with the services of an old one, or with one service of it.",
        "/v1/fleet/rollback",
        shapes.Made,
        body=shapes.RollbackBody,
        sent={"version": 1, "dry_run": True},
        lesser=(_IF_DRY_RUN,),
    ),
    Route(
        "POST",
        "/v1/fleet/forget",
        Role.ADMIN,
        "fleetForget",
        "Forgets a balancer that does not report any more, so that nobody misses it.",
        "/v1/fleet/forget",
        fleetshapes.FleetOverview,
        body=fleetshapes.ForgetBody,
        sent={"node": "lb3"},
    ),
    Route(
        "POST",
        "/v1/fleet/{verb}",
        Role.ADMIN,
        "fleetOrder",
        "Writes what runs here as the fleet's first version (`import`), ends a rollout (`promote`, "
        "`abort`), or keeps this balancer at its version (`freeze`) and no longer (`thaw`).",
        "/v1/fleet/freeze",
        fleetshapes.FleetOverview,
        placeholders=(
            Parameter("verb", "What to do.", _one_of(requests.FLEET_VERBS), is_required=True),
        ),
        body=fleetshapes.FleetBody,
        sent={"message": "the store is being moved"},
        is_body_optional=True,
    ),
    Route(
        "GET",
        "/v1/reverts",
        Role.VIEWER,
        "reverts",
        "Returns the changes that end by themselves.",
        "/v1/reverts",
        shapes.Reverts,
    ),
    Route(
        "GET",
        "/v1/discovery",
        Role.VIEWER,
        "discovery",
        "Returns the sources of backends, and what they have named.",
        "/v1/discovery",
        shapes.Sources,
    ),
    Route(
        "POST",
        "/v1/discovery/{name}/accept",
        Role.OPERATOR,
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
        Role.VIEWER,
        "guard",
        "Returns blocks, lists and limits, what they have dropped, and threats and alerts.",
        "/v1/guard",
        shapes.Guard,
    ),
    Route(
        "GET",
        "/v1/guard/test",
        Role.VIEWER,
        "guardTest",
        "Returns what each service does with a new flow from an address.",
        "/v1/guard/test?address=192.0.2.7",
        shapes.GuardTest,
        (Parameter("address", "The address of a client.", is_required=True),),
    ),
    Route(
        "GET",
        "/v1/guard/top",
        Role.VIEWER,
        "guardTop",
        "Returns the sources with the most open flows, or with the most waiting bytes.",
        "/v1/guard/top?by=waiting&limit=5",
        shapes.Top,
        _TOP,
    ),
    Route(
        "POST",
        "/v1/guard/block",
        Role.OPERATOR,
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
        Role.OPERATOR,
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
        Role.VIEWER,
        "failover",
        "Returns failover: instances, the failover process, and flow sync.",
        "/v1/failover",
        shapes.Failover,
    ),
    Route(
        "POST",
        "/v1/failover/{verb}",
        Role.OPERATOR,
        "failoverMove",
        "Moves the VIPs: gives them up, takes them, or lets priorities decide again.",
        "/v1/failover/handover",
        shapes.Moved,
        placeholders=(
            Parameter("verb", "What to do.", _one_of(_values(MoveVerb)), is_required=True),
        ),
        body=shapes.MoveBody,
        lesser=(_IF_DRY_RUN,),
        sent={"dry_run": True},
    ),
)
_WATCH = (
    Route(
        "GET",
        "/v1/whoami",
        Role.VIEWER,
        "whoami",
        "Returns who the caller is, and what the caller may do.",
        "/v1/whoami",
        shapes.Whoami,
    ),
    Route(
        "GET",
        "/v1/api",
        Role.VIEWER,
        "remoteApi",
        "Returns where `lb-agent api` is to serve the API over TLS, and with which files.",
        "/v1/api",
        shapes.RemoteApi,
    ),
    Route(
        "GET",
        "/v1/audit",
        Role.VIEWER,
        "audit",
        "Returns records of the audit log, the newest last, and its head.",
        "/v1/audit?since_s=3600&limit=100",
        shapes.Audit,
        _AUDIT,
    ),
    Route(
        "GET",
        "/metrics",
        Role.VIEWER,
        "metrics",
        "Returns the metrics as Prometheus reads them.",
        "/metrics",
        content_type=TEXT,
        is_on_metrics_port=True,
    ),
    Route(
        "GET",
        "/healthz",
        Role.VIEWER,
        "healthz",
        "Answers with 200 while the program is attached, and with 503 while it is not.",
        "/healthz",
        content_type=TEXT,
        is_on_metrics_port=True,
    ),
    Route(
        "GET",
        "/v1/openapi.json",
        Role.VIEWER,
        "openapi",
        "Returns the description of the API: an OpenAPI 3.1 document.",
        "/v1/openapi.json",
        dict[str, object],
    ),
)
ROUTES = (*_LOOK, *_CONFIGURE, *_PROTECT, *_WATCH)
