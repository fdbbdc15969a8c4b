"""Decides what a request asks for: JSON and query parameters become values, or a RequestError.

All functions are pure. ``agent.config`` decides what a change may contain.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from agent.api import filters, tracefilter
from agent.config.edit import Edit, EditOp
from agent.config.layers import OVERRIDABLE
from agent.errors import NotFoundError, RequestError
from agent.fleet.versions import Trial
from agent.logs import LogLevel
from agent.model import Address, BackendState, Config, Network, Protocol, ServiceState
from agent.state.blocks import DEFAULT_S
from agent.state.events import DEFAULT_SAMPLE, MAX_SAMPLE, EventKind, TraceQuery
from agent.state.guardview import BlockOrder
from agent.state.journal import Query
from agent.state.moves import MoveOrder, MoveVerb
from agent.state.queries import FiveTuple, FlowQuery, ListQuery, SortBy, TopQuery

MAX_FLOWS = 10_000
FLOW_STATES = ("embryonic", "acked", "established", "closing", "awaiting")
ONE_EDIT_FIELDS = ("op", "service", "backend", "values")
HOW_FIELDS = ("dry_run", "confirmed", "message")
EDIT_FIELDS = (*ONE_EDIT_FIELDS, *HOW_FIELDS, "for_s", "canary")
EDITS_FIELDS = ("edits", *HOW_FIELDS, "for_s", "canary")
CANARY_FIELDS = ("nodes", "bake_s")
MAX_CANARIES = 1000
MAX_BAKE_S = 7 * 86_400.0
FLEET_VERBS = ("import", "promote", "abort", "freeze", "thaw")
FLEET_FIELDS = ("message",)
FORGET_FIELDS = ("node",)
FLEET_HISTORY_PARAMETERS = ("limit",)
COMPARE_PARAMETERS = ("one", "other")
MAX_FLEET_VERSIONS = 1000
MAX_FOR_S = 30 * 86_400.0
MAX_EDITS = 10_000
RELOAD_FIELDS = HOW_FIELDS
ROLLBACK_FIELDS = ("version", "service", *HOW_FIELDS)
EVENT_PARAMETERS = ("since_s", "after", "service", "backend", "level", "event", "limit")
AUDIT_PARAMETERS = ("since_s", "limit")
MAX_RECORDS = 10_000
USUAL_RECORDS = 100
DIFF_PARAMETERS = ("old", "new")
MAX_EVENTS = 10_000
MAX_NUMBER = 10**9
MOVE_FIELDS = ("instance", "force", "dry_run", "message")
FLOW_PARAMETERS = ("service", "backend", "client", "state", "limit", "hottest")
TRACE_PARAMETERS = ("kind", "service", "sample", "filter")
TRACE_KINDS = frozenset(kind for kind in EventKind if not kind.is_sampled)
TOP_PARAMETERS = ("service", "by", "limit")
BLOCK_FIELDS = ("prefixes", "for_s", "why", "confirmed")
UNBLOCK_FIELDS = ("prefixes",)
MAX_PREFIXES = 1024  # in one order
MAX_WHY = 200  # characters, of a reason or a message
EXPLAIN_PARAMETERS = ("protocol", "client", "client_port", "vip", "port")


def parameters(pairs: Iterable[tuple[str, str]], known: Collection[str]) -> dict[str, str]:
    """Return query parameters by name. Unknown, empty and repeated ones are refused."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise _unknown("parameter", name, known)
        if name in found:
            raise RequestError(
                "given more than once", where=f"parameter {name}", remedy="give it once"
            )
        if not value:
            raise RequestError(
                "is empty", where=f"parameter {name}", remedy="give it a value, or leave it out"
            )
        found[name] = value
    return found


def flow_query(given: Mapping[str, str], config: Config) -> FlowQuery:
    """Return the filters of GET /v1/flows.

    Names are checked, so that a typing error does not give an empty answer.
    """
    service, backend, state = given.get("service"), given.get("backend"), given.get("state")
    if service is not None:
        _check_service(service, config, "parameter service")
    if backend is not None:
        _check_backend(service, backend, config, "parameter backend")
    if state is not None and state not in FLOW_STATES:
        raise RequestError(
            f"{state!r} is not a state of a flow",
            where="parameter state",
            remedy=f"use one of {', '.join(FLOW_STATES)}",
        )
    client = _prefix(given["client"]) if "client" in given else None
    limit = _number(given, "limit", 1, MAX_FLOWS) if "limit" in given else 100
    hottest = given.get("hottest", "false")
    if hottest not in ("true", "false"):
        raise RequestError(
            f"{hottest!r} is neither true nor false",
            where="parameter hottest",
            remedy="use hottest=true",
        )
    return FlowQuery(service, backend, client, state, limit, hottest == "true")


def trace_query(given: Mapping[str, str], config: Config) -> TraceQuery:
    """Return what GET /v1/trace should show.

    Names are checked, so that a typing error does not give a trace without events.
    """
    service = given.get("service")
    if service is not None:
        _check_service(service, config, "parameter service")
    matches = None
    if "filter" in given:
        expression = tracefilter.parse(given["filter"])
        for name in filters.names(expression, "service"):
            _check_service(name, config, "filter")
        for name in filters.names(expression, "backend"):
            owner, _, backend = name.rpartition("/")
            _check_backend(owner or None, backend, config, "filter")
        matches = expression.matches
        service = service or filters.only_service(expression)
    sample = _number(given, "sample", 1, MAX_SAMPLE) if "sample" in given else DEFAULT_SAMPLE
    if sample & (sample - 1):
        raise RequestError(
            f"{sample} is not a power of two",
            where="parameter sample",
            remedy=f"use 1, 2, 4 and so on, up to {MAX_SAMPLE}",
        )
    return TraceQuery(_kinds(given.get("kind")), service, sample, matches)


def _kinds(text: str | None) -> frozenset[EventKind]:
    if text is None:
        return TRACE_KINDS
    known = {kind.value: kind for kind in EventKind}
    for word in text.split(","):
        if word not in known:
            raise RequestError(
                f"{word!r} is not a kind of event",
                where="parameter kind",
                remedy=_nearest(word, known),
            )
    return frozenset(known[word] for word in text.split(","))


def five_tuple(given: Mapping[str, str]) -> FiveTuple:
    """Return the flow that GET /v1/explain asks about. Every parameter is required."""
    for name in EXPLAIN_PARAMETERS:
        if name not in given:
            raise RequestError(
                "is missing",
                where=f"parameter {name}",
                remedy=f"give all of {', '.join(EXPLAIN_PARAMETERS)}",
            )
    try:
        protocol = Protocol(given["protocol"])
    except ValueError as error:
        raise RequestError(
            f"{given['protocol']!r} is not a protocol that is balanced",
            where="parameter protocol",
            remedy=f"use {' or '.join(p.value for p in Protocol)}",
        ) from error
    client, vip = _address(given, "client"), _address(given, "vip")
    if client.version != vip.version:
        raise RequestError(
            f"{client} and {vip} are not of the same address family",
            where="parameter client",
            remedy="give two IPv4 or two IPv6 addresses",
        )
    return FiveTuple(
        protocol,
        client,
        _number(given, "client_port", 1, 65535),
        vip,
        _number(given, "port", 1, 65535),
    )


def json_object(body: bytes) -> dict[str, object]:
    """Return the JSON object in a body."""
    try:
        value = json.loads(
            body, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite
        )
        # The parser accepts half a surrogate pair, which cannot be written later.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        detail = str(error) if isinstance(error, json.JSONDecodeError) else _detail(error)
        raise RequestError(
            f"is not JSON: {detail}",
            where="request body",
            remedy="send one JSON object in UTF-8",
        ) from error
    if not isinstance(value, dict):
        raise RequestError(
            "is not a JSON object", where="request body", remedy='send an object, like {"op": …}'
        )
    return value


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """How to make a change: whether only to report it, whether it may cut open flows, its reason,
    how long it lasts (None: until it is changed again), and which balancers of the fleet try it
    first (None: none).
    """

    dry_run: bool
    confirmed: bool
    message: str = ""
    for_s: float | None = None
    trial: Trial | None = None


def _how(body: Mapping[str, object]) -> ChangeOptions:
    return ChangeOptions(
        _flag(body, "dry_run"),
        _flag(body, "confirmed"),
        _text(body, "message", "say in a few words why this is changed"),
    )


def _text(body: Mapping[str, object], name: str, remedy: str) -> str:
    """Return a line of text, which is empty if the field is missing."""
    text = body.get(name, "")
    if not isinstance(text, str) or len(text) > MAX_WHY or not text.isprintable():
        raise RequestError(
            f"is not a line of text of up to {MAX_WHY} characters",
            where=f"field {name}",
            remedy=remedy,
        )
    return text


def reload_request(body: Mapping[str, object]) -> ChangeOptions:
    """Return how POST /v1/reload should be carried out."""
    for name in body:
        if name not in RELOAD_FIELDS:
            raise _unknown("field", name, RELOAD_FIELDS)
    return _how(body)


def edit_request(body: Mapping[str, object]) -> tuple[tuple[Edit, ...], ChangeOptions]:
    """Return the changes of POST /v1/edit (one, or a list of ``edits``), and how to make them."""
    several = body.get("edits")
    known = EDITS_FIELDS if several is not None else EDIT_FIELDS
    for name in body:
        if name not in known:
            raise _unknown("field", name, known)
    if several is None:
        return _timed((_edit(body, ""),), body)
    if not isinstance(several, list) or not 0 < len(several) <= MAX_EDITS:
        raise RequestError(
            f"is not a list of 1 to {MAX_EDITS} edits",
            where="field edits",
            remedy='send a list of objects, like [{"op": "backend.set", …}]',
        )
    edits = []
    for number, each in enumerate(several, 1):
        where = f", edit {number}"
        if not isinstance(each, dict):
            raise RequestError(
                "is not an object", where=f"field edits{where}", remedy='like {"op": …}'
            )
        for name in each:
            if name not in ONE_EDIT_FIELDS:
                raise _unknown("field", name, ONE_EDIT_FIELDS)
        edits.append(_edit(each, where))
    return _timed(tuple(edits), body)


def sets_only_weights(body: Mapping[str, object]) -> bool:
    """Return whether the changes of POST /v1/edit concern only weights and states of backends."""
    edits, _ = edit_request(body)
    return all(_is_weight(edit) for edit in edits)


def _is_weight(edit: Edit) -> bool:
    """Return whether an edit sets nothing but the weight and the state of a backend."""
    return edit.op is EditOp.BACKEND_SET and set(edit.values) <= set(OVERRIDABLE)


def _timed(
    edits: tuple[Edit, ...], body: Mapping[str, object]
) -> tuple[tuple[Edit, ...], ChangeOptions]:
    """Return edits and how to make them, which may be for a limited time."""
    how, for_s = replace(_how(body), trial=_trial(body)), body.get("for_s")
    if for_s is None:
        return edits, how
    is_number = isinstance(for_s, int | float) and not isinstance(for_s, bool)
    if not is_number or not 0 < float(str(for_s)) <= MAX_FOR_S:
        raise RequestError(
            f"is not a number of seconds up to {MAX_FOR_S:.0f}",
            where="field for_s",
            remedy="say for how long the change holds, like 3600",
        )
    for edit in edits:
        if not _is_weight(edit):
            raise RequestError(
                "only weight and state of backends can be changed for a time",
                where="field for_s",
                remedy="leave for_s out",
            )
    return edits, replace(how, for_s=float(str(for_s)))


def _trial(body: Mapping[str, object]) -> Trial | None:
    """Return which balancers are to try a change first."""
    given = body.get("canary")
    if given is None:
        return None
    remedy = 'like {"nodes": ["lb3"], "bake_s": 300}'
    if not isinstance(given, dict):
        raise RequestError("is not an object", where="field canary", remedy=remedy)
    for name in given:
        if name not in CANARY_FIELDS:
            raise _unknown("field", f"canary.{name}", [f"canary.{each}" for each in CANARY_FIELDS])
    nodes, bake_s = given.get("nodes"), given.get("bake_s", 0)
    listed = nodes if isinstance(nodes, list) else []
    if not 0 < len(listed) <= MAX_CANARIES or not all(isinstance(n, str) and n for n in listed):
        raise RequestError(
            "is not a list of balancers' names", where="field canary.nodes", remedy=remedy
        )
    is_number = isinstance(bake_s, int | float) and not isinstance(bake_s, bool)
    if not is_number or not 0 <= bake_s <= MAX_BAKE_S:
        raise RequestError(
            f"is not a number of seconds up to {MAX_BAKE_S:.0f}",
            where="field canary.bake_s",
            remedy=remedy,
        )
    return Trial(tuple(dict.fromkeys(listed)), float(bake_s))


def fleet_order(verb: str, body: Mapping[str, object]) -> str:
    """Check what POST /v1/fleet/VERB asks for, and return its reason."""
    if verb not in FLEET_VERBS:
        raise NotFoundError(
            f"there is no /v1/fleet/{verb}",
            where="the path",
            remedy=f"use one of {', '.join(FLEET_VERBS)}, forget, rollback",
        )
    for name in body:
        if name not in FLEET_FIELDS:
            raise _unknown("field", name, FLEET_FIELDS)
    return _how(body).message


def forgotten(body: Mapping[str, object]) -> str:
    """Return which balancer POST /v1/fleet/forget names."""
    for name in body:
        if name not in FORGET_FIELDS:
            raise _unknown("field", name, FORGET_FIELDS)
    node = _name(body, "node")
    if not node:
        raise RequestError(
            "is missing",
            where="field node",
            remedy="name a balancer that does not report: lbctl fleet status",
        )
    return node


def fleet_history(given: Mapping[str, str]) -> int:
    """Return how many versions GET /v1/fleet/history asks for."""
    return _number(given, "limit", 1, MAX_FLEET_VERSIONS) if "limit" in given else 20


def fleet_version(text: str) -> int:
    """Return the number of a version in a path."""
    return _number({"version": text}, "version", 1, MAX_NUMBER)


def compared(given: Mapping[str, str]) -> tuple[str, str]:
    """Return which balancers GET /v1/fleet/compare compares."""
    for name in COMPARE_PARAMETERS:
        if name not in given:
            raise RequestError(
                "is missing",
                where=f"parameter {name}",
                remedy="name two balancers: lbctl fleet status",
            )
    return given["one"], given["other"]


def _edit(body: Mapping[str, object], where: str) -> Edit:
    operations = [op.value for op in EditOp]
    op = body.get("op")
    if not isinstance(op, str) or op not in operations:
        raise RequestError(
            f"{op!r} is not an operation" if "op" in body else "is missing",
            where=f"field op{where}",
            remedy=f"use one of {', '.join(operations)}",
        )
    values = body.get("values")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RequestError(
            "is not an object",
            where=f"field values{where}",
            remedy='send an object, like {"weight": 50}',
        )
    return Edit(EditOp(op), _name(body, "service"), _name(body, "backend"), values)


@dataclass(frozen=True, slots=True)
class Rollback:
    """Which version to restore: all of its services (None), or one."""

    version: int
    service: str | None
    how: ChangeOptions


def rollback_request(body: Mapping[str, object]) -> Rollback:
    """Return what POST /v1/rollback asks for."""
    for name in body:
        if name not in ROLLBACK_FIELDS:
            raise _unknown("field", name, ROLLBACK_FIELDS)
    version = body.get("version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise RequestError(
            f"{version!r} is not a number" if "version" in body else "is missing",
            where="field version",
            remedy="use the number of a version: lbctl history",
        )
    return Rollback(version, _name(body, "service"), _how(body))


def diff_request(given: Mapping[str, str]) -> tuple[int, int | None]:
    """Return the two versions that GET /v1/history/diff compares; None means what runs now."""
    new = _number(given, "new", 1, MAX_NUMBER) if "new" in given else None
    if "old" not in given:
        raise RequestError(
            "is missing", where="parameter old", remedy="use the number of a version: lbctl history"
        )
    return _number(given, "old", 1, MAX_NUMBER), new


def event_query(given: Mapping[str, str], now: float) -> Query:
    """Return the query of GET /v1/events for entries of the journal; ``now`` is the time of it."""
    level = given.get("level", LogLevel.INFO.value)
    levels = [each.value for each in LogLevel if each is not LogLevel.DEBUG]
    if level not in levels:
        raise RequestError(
            f"{level!r} is not a level",
            where="parameter level",
            remedy=f"use one of {', '.join(levels)}",
        )
    backend = given.get("backend")
    if backend is not None and not all(backend.partition("/")):
        raise RequestError(
            f"{backend!r} does not name a backend",
            where="parameter backend",
            remedy="use SERVICE/BACKEND, as in chat/gpu-1",
        )
    return Query(
        now - _number(given, "since_s", 0, MAX_NUMBER) if "since_s" in given else 0.0,
        _number(given, "after", 0, MAX_NUMBER) if "after" in given else 0,
        given.get("service"),
        backend,
        LogLevel(level),
        given.get("event"),
        _number(given, "limit", 1, MAX_EVENTS) if "limit" in given else MAX_EVENTS,
    )


def audit_query(given: Mapping[str, str], now: float) -> tuple[float, int]:
    """Return since when (Unix time) GET /v1/audit shows records, and how many at most."""
    return (
        now - _number(given, "since_s", 0, MAX_NUMBER) if "since_s" in given else 0.0,
        _number(given, "limit", 1, MAX_RECORDS) if "limit" in given else USUAL_RECORDS,
    )


def block_order(body: Mapping[str, object]) -> BlockOrder:
    """Return what POST /v1/guard/block asks to block."""
    for name in body:
        if name not in BLOCK_FIELDS:
            raise _unknown("field", name, BLOCK_FIELDS)
    for_s = body.get("for_s", DEFAULT_S)
    if isinstance(for_s, bool) or not isinstance(for_s, int | float):
        raise RequestError(
            f"{for_s!r} is not a number of seconds",
            where="field for_s",
            remedy="use a number such as 600",
        )
    why = _text(body, "why", "say in a few words why these are blocked")
    return BlockOrder(_prefixes(body), float(for_s), why, _flag(body, "confirmed"))


def unblock_order(body: Mapping[str, object]) -> tuple[Network, ...]:
    """Return the prefixes that POST /v1/guard/unblock asks to serve again."""
    for name in body:
        if name not in UNBLOCK_FIELDS:
            raise _unknown("field", name, UNBLOCK_FIELDS)
    return _prefixes(body)


def _prefixes(body: Mapping[str, object]) -> tuple[Network, ...]:
    given = body.get("prefixes")
    if not isinstance(given, list) or not 0 < len(given) <= MAX_PREFIXES:
        raise RequestError(
            f"is not a list of 1 to {MAX_PREFIXES} prefixes",
            where="field prefixes",
            remedy='send a list, like ["192.0.2.7", "2001:db8::/48"]',
        )
    return tuple(dict.fromkeys(_whole_prefix(str(text)) for text in given))


def _whole_prefix(text: str) -> Network:
    """Return a prefix, and refuse an address inside a prefix.

    An operator who blocks 192.0.2.7/24 may have meant a single host.
    """
    network = _prefix(text, "field prefixes")
    first = text.partition("/")[0]
    if ipaddress.ip_address(first) != network.network_address:
        raise RequestError(
            f"{text} is an address inside of {network}",
            where="field prefixes",
            remedy=f"give {network}, or {first} alone",
        )
    return network


def tested_address(given: Mapping[str, str]) -> Address:
    """Return the address that GET /v1/guard/test asks about."""
    if "address" not in given:
        raise RequestError(
            "is missing", where="parameter address", remedy="name the address of a client"
        )
    return _address(given, "address")


LIST_PARAMETERS = ("sort", "limit", "offset", "service", "backend", "state", "match")
_LISTS = {
    "backends": [state.value for state in BackendState],
    "services": [state.value for state in ServiceState],
}


def list_query(of: str, given: Mapping[str, str]) -> tuple[str, ListQuery]:
    """Return what GET /v1/list/backends or /v1/list/services should show."""
    if of not in _LISTS:
        raise NotFoundError(
            f"there is no list of {of!r}", where="path", remedy=_nearest(of, _LISTS)
        )
    sorts = {each.value: each for each in SortBy}
    sort, states = given.get("sort", SortBy.NAME.value), given.get("state", "").split(",")
    if sort not in sorts:
        raise RequestError(
            f"{sort!r} is not something to sort by",
            where="parameter sort",
            remedy=f"use one of {', '.join(sorts)}",
        )
    for state in filter(None, states):
        if state not in _LISTS[of]:
            raise RequestError(
                f"{state!r} is not a state",
                where="parameter state",
                remedy=f"use one of {', '.join(_LISTS[of])}",
            )
    limit = _number(given, "limit", 1, MAX_FLOWS) if "limit" in given else ListQuery().limit
    return of, ListQuery(
        sorts[sort],
        limit,
        _number(given, "offset", 0, MAX_NUMBER) if "offset" in given else 0,
        given.get("service", ""),
        given.get("backend", ""),
        frozenset(filter(None, states)),
        given.get("match", ""),
    )


def top_query(given: Mapping[str, str], config: Config) -> TopQuery:
    """Return what GET /v1/guard/top should show."""
    service, by = given.get("service"), given.get("by", "flows")
    if service is not None:
        _check_service(service, config, "parameter service")
    if by not in ("flows", "waiting"):
        raise RequestError(
            f"{by!r} is not something to rank by",
            where="parameter by",
            remedy="use flows or waiting",
        )
    limit = _number(given, "limit", 1, MAX_FLOWS) if "limit" in given else 20
    return TopQuery(service, by == "waiting", limit)


def move_order(verb: str, body: Mapping[str, object]) -> MoveOrder:
    """Return what POST /v1/failover/VERB asks for."""
    for name in body:
        if name not in MOVE_FIELDS:
            raise _unknown("field", name, MOVE_FIELDS)
    verbs = {each.value: each for each in MoveVerb}
    if verb not in verbs:
        raise NotFoundError(
            f"{verb!r} is not something that failover does",
            where="path",
            remedy=_nearest(verb, verbs),
        )
    flags = {name: _flag(body, name) for name in ("force", "dry_run")}
    message = _text(body, "message", "say in a few words why the VIPs move")
    return MoveOrder(verbs[verb], _name(body, "instance"), **flags, message=message)


def _flag(body: Mapping[str, object], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(
            f"{value!r} is not true or false", where=f"field {name}", remedy="use true or false"
        )
    return value


def _check_service(name: str, config: Config, where: str) -> None:
    known = [service.name for service in config.services]
    if name not in known:
        raise NotFoundError(
            f"there is no service {name!r}", where=where, remedy=_nearest(name, known)
        )


def _check_backend(service: str | None, name: str, config: Config, where: str) -> None:
    known = {b.name for s in config.services if service in (None, s.name) for b in s.backends}
    if name not in known:
        of_service = f" of service {service!r}" if service is not None else ""
        raise NotFoundError(
            f"there is no backend {name!r}{of_service}", where=where, remedy=_nearest(name, known)
        )


def _name(body: Mapping[str, object], field: str) -> str | None:
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise RequestError(
            f"{value!r} is not a name", where=f"field {field}", remedy="use a string, or null"
        )
    return value


def _prefix(text: str, where: str = "parameter client") -> Network:
    try:
        if "%" in text:
            raise ValueError("packets do not name an interface")
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise RequestError(
            f"{text!r} is neither an address nor a prefix",
            where=where,
            remedy="write it like 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32",
        ) from error


def _address(given: Mapping[str, str], name: str) -> Address:
    try:
        address = ipaddress.ip_address(given[name])
    except ValueError as error:
        raise RequestError(
            f"{given[name]!r} is not an IP address",
            where=f"parameter {name}",
            remedy="write it like 192.0.2.7 or 2001:db8::7",
        ) from error
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise RequestError(
            f"{given[name]!r} names an interface, which packets do not",
            where=f"parameter {name}",
            remedy=f"leave out %{address.scope_id}",
        )
    return address


def _number(given: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = given[name]
    # int() would accept " 1", "1_0" and digits of other scripts.
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None
    if number is None or not low <= number <= high:
        raise RequestError(
            f"{text!r} is not a number from {low} to {high}",
            where=f"parameter {name}",
            remedy=f"use a number from {low} to {high}",
        )
    return number


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} comes twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _detail(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    return str(error)


def _unknown(kind: str, name: str, known: Collection[str]) -> RequestError:
    return RequestError(
        f"there is no {kind} of that name",
        where=f"{kind} {name}",
        remedy=_nearest(name, known),
    )


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if not known:
        return "leave it out: there are none"
    shown = ", ".join(sorted(known)[:10])
    return f"use one of {shown}" + (", …" if len(known) > 10 else "")
