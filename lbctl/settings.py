"""The settings of services and backends as options, and in the form of the configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import click

from agent.model import (
    MAX_PRIORITY,
    MAX_WEIGHT,
    PERCENTILES,
    SOURCES,
    AffinityBy,
    CheckKind,
    Detect,
    DownFlows,
    Forward,
    GuardMode,
    Limits,
    ModelSource,
    NoBackend,
    NodeKind,
    Protocol,
    Scale,
    Scheduler,
    SynProtection,
    TelemetryKind,
    Via,
)
from lbctl.options import ADDRESS, PORT, SERVER_ID, VIP, Decorator, WordType
from lbctl.suggest import did_you_mean

LIMITS = tuple(each.name for each in fields(Limits))
SCALE_KEYS = tuple(each.name for each in fields(Scale))
DISCOVER_KEYS = (
    "file", "http", "dns", "kubernetes", "interval", "timeout", "port", "server", "ca_file",
    "token_file", "kubeconfig", "port_name", "min", "max", "most_removed", "drain",
)  # fmt: skip
FLOW_STATES = ("embryonic", "acked", "established", "closing")
# Options that begin with one of these go under that key of the configuration.
_SECTIONS = ("health", "outlier", "slo", "telemetry", "node", "model", "affinity", "rebalance")
# Options whose value 0 restores the default.
_ZERO_IS_DEFAULT = frozenset({"source_prefix", "affinity_prefix", "quic_server_id_bytes"})
_BACKEND = "NAME=ADDRESS[,weight=N][,port=N][,backup][,priority=N][,zone=NAME][,quic-server-id=HEX]"


def _timeouts(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, object]:
    result: dict[str, object] = {}
    for text in given:
        state, equals, duration = text.partition("=")
        if not equals or state not in FLOW_STATES:
            raise click.BadParameter(
                f"{text!r} is not STATE=DURATION, STATE one of {', '.join(FLOW_STATES)}", ctx, param
            )
        result[state] = seconds(duration)
    return result


def _numbers(known: tuple[str, ...], form: str) -> Callable[..., dict[str, object]]:
    """Return a callback that reads texts such as ``new_flows=50/s``, each for one of the keys."""

    def read(
        ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
    ) -> dict[str, object]:
        result: dict[str, object] = {}
        for text in given:
            key, equals, most = text.partition("=")
            if not equals or key not in known:
                hint = did_you_mean(key, known)
                raise click.BadParameter(f"{text!r} is not {form}: {hint}", ctx, param)
            result[key] = int(most) if most.isascii() and most.isdecimal() else most
        return result

    return read


def discover_settings(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, object]:
    """Return the keys of `discover` in texts such as ``dns=NAME``; `none` is no source."""
    result: dict[str, object] = {}
    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if text == "none":
            result |= dict.fromkeys(SOURCES)
        elif equals and key.startswith("match.") and key != "match.":
            labels[key.removeprefix("match.")] = value
        elif equals and key in DISCOVER_KEYS:
            number = re.fullmatch(r"(\d+)(\.\d+)?", value, re.ASCII)
            convert = str if number is None else float if number[2] else int
            result[key] = convert(value)
        else:
            hint = did_you_mean(key, (*DISCOVER_KEYS, "match.LABEL"))
            raise click.BadParameter(f"{text!r} is not KEY=VALUE: {hint}", ctx, param)
    return result | ({"match": labels} if labels else {})


def seconds(text: str) -> object:
    """Return a bare number as seconds; the agent reads a value with a unit."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else text


def _duration(_ctx: click.Context, _param: click.Parameter, given: str | None) -> object:
    return None if given is None else seconds(given)


def _share(_ctx: click.Context, _param: click.Parameter, given: str | None) -> object:
    """Return a bare number as a share; the agent reads a value that ends with %."""
    if given is None:
        return None
    return float(given) if re.fullmatch(r"\d+(\.\d+)?", given) else given


def _names(_ctx: click.Context, _param: click.Parameter, given: str | None) -> object:
    """Return the names of lists; `none` is an empty list."""
    if given is None:
        return None
    return [] if given == "none" else [name.strip() for name in given.split(",")]


def _statuses(_ctx: click.Context, _param: click.Parameter, given: str | None) -> object:
    """Keep 200-399 as a range, and make a list of 200,204."""
    if given is None:
        return None
    parts = [int(part) if part.isdigit() else part for part in given.split(",")]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


_SETTINGS = (
    click.option(
        "--vip",
        type=VIP,
        help="The address that clients connect to, or a prefix, as in 192.0.2.0/24.",
    ),
    click.option("--port", type=PORT, help="1 to 65535, a range such as 8000-8100, or any."),
    click.option("--protocol", type=WordType(Protocol), help="tcp or udp."),
    click.option(
        "--forward",
        type=WordType(Forward),
        help="How packets reach the backends: with a new MAC address (dsr), in an outer header "
        "(ipip, gue), with a new destination (nat), or source as well (fullnat).",
    ),
    click.option("--scheduler", type=WordType(Scheduler), help="How a backend is chosen."),
    click.option(
        "--draws",
        type=click.IntRange(2, 8),
        metavar="N",
        help="least-load: how many backends are compared, 2 to 8.",
    ),
    click.option(
        "--bytes-per-connection",
        type=click.IntRange(1, 1_000_000),
        metavar="N",
        help="least-load: waiting request bytes that weigh as much as one connection.",
    ),
    click.option(
        "--count-waiting/--no-count-waiting",
        default=None,
        help="tcp: count the request bytes that wait for their answer.",
    ),
    click.option(
        "--source-prefix",
        type=click.IntRange(0, 128),
        metavar="BITS",
        help="source: bits of the client's address that count, as in 24; 0: all.",
    ),
    click.option(
        "--source-bound",
        type=click.FloatRange(0, 100),
        metavar="FACTOR",
        help="source: multiple of its share of connections a backend may have, as in 1.25; 0: any.",
    ),
    click.option(
        "--slow-start",
        metavar="DURATION",
        callback=_duration,
        help="Time until a backend that comes up reaches its weight, as in 30s; 0: at once.",
    ),
    click.option(
        "--no-backend",
        type=WordType(NoBackend),
        help="What happens to new flows when no backend is usable.",
    ),
    click.option(
        "--syn-protection",
        type=WordType(SynProtection),
        help="tcp: whether new clients have to prove that they are at their address.",
    ),
    click.option(
        "--syn-cookies/--no-syn-cookies",
        default=None,
        help="With --syn-protection, if servers run `lb-agent companion`: SYN cookies instead.",
    ),
    click.option(
        "--allow",
        callback=_names,
        metavar="LIST[,LIST]",
        help="Only sources on these lists may begin a flow; none: all may.",
    ),
    click.option(
        "--deny",
        callback=_names,
        metavar="LIST[,LIST]",
        help="Sources on these lists may begin no flow; none: nobody is denied.",
    ),
    click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="LIMIT=VALUE",
        callback=_numbers(LIMITS, "LIMIT=VALUE"),
        help="A key of `limits`, as in new_flows_per_source=50/s; none: no limit. May be repeated.",
    ),
    click.option(
        "--guard",
        type=WordType(GuardMode),
        help="What happens to sources that are blocked, denied, not allowed or beyond a limit.",
    ),
    click.option(
        "--detect",
        type=WordType(Detect),
        help="What happens to sources that behave unlike all others.",
    ),
    click.option(
        "--trusted",
        callback=_names,
        metavar="LIST[,LIST]",
        help="Sources on these lists are never suspected; none: all can be.",
    ),
    click.option(
        "--quic-server-id-bytes",
        type=click.IntRange(0, 8),
        metavar="N",
        help="udp: length of the server id in QUIC connection ids; 0: ids are not used.",
    ),
    click.option(
        "--down-flows",
        type=WordType(DownFlows),
        help="What happens to the flows of a backend that goes down.",
    ),
    click.option(
        "--reset-after",
        metavar="DURATION",
        callback=_duration,
        help="How long a backend is down before its flows are reset, as in 5s.",
    ),
    click.option(
        "--timeout",
        "timeouts",
        multiple=True,
        metavar="STATE=DURATION",
        callback=_timeouts,
        help="Idle time after which a flow is forgotten, as in established=15m; may be repeated.",
    ),
    click.option("--health", "health_type", type=WordType(CheckKind), help="Kind of health check."),
    click.option(
        "--health-via",
        type=WordType(Via),
        help="What is checked besides a server's own address.",
    ),
    click.option(
        "--health-port",
        type=click.IntRange(1, 65_535),
        metavar="PORT",
        help="A port other than the backend's or the service's.",
    ),
    click.option("--health-interval", metavar="DURATION", callback=_duration, help="As in 2s."),
    click.option("--health-timeout", metavar="DURATION", callback=_duration, help="As in 500ms."),
    click.option(
        "--health-rise",
        type=click.IntRange(1),
        metavar="N",
        help="Passes in a row until it is up.",
    ),
    click.option(
        "--health-fall",
        type=click.IntRange(1),
        metavar="N",
        help="Failures in a row until it is down.",
    ),
    click.option(
        "--health-jitter",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Random part of the interval, 0 to 1.",
    ),
    click.option("--health-method", metavar="METHOD", help="HTTP method."),
    click.option("--health-path", metavar="PATH", help="HTTP path, as in /health."),
    click.option("--health-host", metavar="NAME", help="Host header and TLS server name."),
    click.option(
        "--health-expect-status",
        metavar="STATUS",
        callback=_statuses,
        help="Statuses that pass, as in 200-399, or 200,204.",
    ),
    click.option(
        "--health-tls/--health-no-tls",
        default=None,
        help="completion, grpc: whether the server speaks TLS.",
    ),
    click.option(
        "--health-verify-tls/--health-no-verify-tls",
        default=None,
        help="Whether the certificate must be valid.",
    ),
    click.option(
        "--health-model", metavar="NAME", help="completion: the model that is asked for a token."
    ),
    click.option(
        "--health-every",
        metavar="DURATION",
        callback=_duration,
        help="completion: time from one to the next, as in 30s.",
    ),
    click.option(
        "--health-answer-within",
        metavar="DURATION",
        callback=_duration,
        help="completion: time until the token must come, as in 10s.",
    ),
    click.option(
        "--health-grpc-service", metavar="NAME", help="grpc: the service that is asked about."
    ),
    click.option(
        "--health-send", metavar="TEXT", help="tcp, udp: the text to send; hex:00ff is two bytes."
    ),
    click.option(
        "--health-expect", metavar="TEXT", help="tcp, udp: text that the reply must contain."
    ),
    click.option("--health-query", metavar="NAME", help="dns: the name in the question."),
    click.option("--health-record", metavar="TYPE", help="dns: its type, as in A."),
    click.option(
        "--health-command", metavar="COMMAND", help="exec: a program and its arguments, no shell."
    ),
    click.option(
        "--telemetry",
        "telemetry_type",
        type=WordType(TelemetryKind),
        help="The engine whose queues are read, as in vllm; none: engines are not asked.",
    ),
    click.option(
        "--telemetry-port",
        type=click.IntRange(1, 65_535),
        metavar="PORT",
        help="Port of the engine's metrics.",
    ),
    click.option(
        "--telemetry-interval",
        metavar="DURATION",
        callback=_duration,
        help="Time from one report to the next, as in 200ms.",
    ),
    click.option(
        "--node",
        "node_type",
        type=WordType(NodeKind),
        help="Where the state of the GPUs is read; none: nowhere.",
    ),
    click.option(
        "--node-port",
        type=click.IntRange(1, 65_535),
        metavar="PORT",
        help="A port other than the usual one.",
    ),
    click.option(
        "--learn-speed/--no-learn-speed",
        default=None,
        help="least-load of tcp: let weights follow how fast backends answer.",
    ),
    click.option(
        "--rtt-per-connection",
        metavar="DURATION",
        callback=_duration,
        help="least-load: round trip that weighs as much as one connection; 0: not used.",
    ),
    click.option(
        "--model",
        "model_name",
        metavar="NAME",
        help="Only backends that have loaded this model get new flows.",
    ),
    click.option(
        "--model-source",
        type=WordType(ModelSource),
        help="The list that says which models are loaded.",
    ),
    click.option(
        "--any-model",
        is_flag=True,
        help="Backends get new flows whichever models they have loaded.",
    ),
    click.option(
        "--outlier-eject",
        metavar="DURATION",
        callback=_duration,
        help="tcp: how long a backend at which clients fail gets no new flows, as in 30s; 0: none "
        "is ejected.",
    ),
    click.option(
        "--outlier-threshold",
        metavar="SHARE",
        callback=_share,
        help="Share of its newest requests or connections that must fail, as in 50%.",
    ),
    click.option(
        "--outlier-window",
        metavar="DURATION",
        callback=_duration,
        help="Requests older than this do not count, as in 30s.",
    ),
    click.option(
        "--outlier-requests",
        type=click.IntRange(1, 100),
        metavar="N",
        help="How many requests or connections are needed for a verdict.",
    ),
    click.option(
        "--outlier-max-ejected",
        metavar="SHARE",
        callback=_share,
        help="Share of the backends that may be ejected at the same time, as in 30%.",
    ),
    *(
        click.option(
            f"--slo-first-byte-p{percentile}",
            metavar="DURATION",
            callback=_duration,
            help=f"tcp: {percentile} % of first bytes should take less, as in 2s; 0: no objective.",
        )
        for percentile in PERCENTILES
    ),
    click.option(
        "--scale",
        "scale",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_numbers(SCALE_KEYS, "KEY=VALUE"),
        help="A key of `scale`, as in connections=64 or max=20; none: no target. May be repeated.",
    ),
    click.option(
        "--panic",
        metavar="SHARE",
        callback=_share,
        help="While fewer of the backends are up, all get new flows, as in 50%; 0: never.",
    ),
    click.option(
        "--affinity",
        "affinity_by",
        type=WordType(AffinityBy),
        help="least-load of tcp: what selects the home of a client's new flows.",
    ),
    click.option(
        "--affinity-prefix",
        type=click.IntRange(0, 128),
        metavar="BITS",
        help="Bits of the client's address that select its home, as in 24; 0: all.",
    ),
    click.option(
        "--affinity-escape",
        metavar="BYTES",
        help="How many more waiting bytes than another backend a home may have, as in 64KiB; auto: "
        "what its cache is worth.",
    ),
    click.option(
        "--rebalance-rate",
        type=click.FloatRange(0, 1000),
        metavar="N",
        help="tcp: how many idle connections of overloaded backends are reset per second, at most; "
        "0: none.",
    ),
    click.option(
        "--rebalance-idle",
        metavar="DURATION",
        callback=_duration,
        help="Only connections that have been silent for this long are reset, as in 30s.",
    ),
    click.option(
        "--discover",
        "discover",
        multiple=True,
        metavar="KEY=VALUE",
        callback=discover_settings,
        help="A key of `discover`, as in dns=gpu.example.org, file=/etc/gpu.yaml or "
        "match.model=llama; none: no source of backends. May be repeated.",
    ),
)


def service_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add every setting of a service except its backends."""
    for option in reversed(_SETTINGS):
        function = option(function)
    return function


def document(options: Mapping[str, object]) -> dict[str, object]:
    """Return the given options in the form of a service in the configuration."""
    any_model = options.get("any_model", False)
    values: dict[str, object] = {}
    sections: dict[str, dict[str, object]] = {}
    for key, value in options.items():
        if value in (None, {}, ()) or key == "any_model":
            continue
        section, _, inner = key.partition("_")
        given = (value or None) if key in _ZERO_IS_DEFAULT else value
        if section in _SECTIONS:
            sections.setdefault(section, {})[inner] = given
        else:
            values[key] = given
    if any_model and "model" in sections:
        raise click.UsageError(
            "--any-model contradicts --model and --model-source", click.get_current_context()
        )
    return values | sections | ({"model": None} if any_model else {})


def _backends(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> list[dict[str, object]]:
    result = []
    for text in given:
        first, *settings = text.split(",")
        match = re.fullmatch(r"([^=/]+)=([^=]+)", first)
        if match is None:
            raise click.BadParameter(f"{text!r} is not {_BACKEND}", ctx, param)
        name, address = match.groups()
        entry: dict[str, object] = {"name": name, "address": ADDRESS.convert(address, param, ctx)}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if key not in _OF_BACKEND or bool(equals) is (key == "backup"):
                known = [word for word in _OF_BACKEND if word != key]
                hint = f"not {_BACKEND}" if key in _OF_BACKEND else did_you_mean(key, known)
                raise click.BadParameter(f"{text!r}: {setting!r}: {hint}", ctx, param)
            entry[key.replace("-", "_")] = _OF_BACKEND[key].convert(value or True, param, ctx)
        result.append(entry)
    return result


_OF_BACKEND: dict[str, click.ParamType[Any]] = {
    "weight": click.IntRange(0, MAX_WEIGHT),
    "port": click.IntRange(1, 65_535),
    "backup": click.BOOL,
    "priority": click.IntRange(0, MAX_PRIORITY),
    "zone": click.STRING,
    "quic-server-id": SERVER_ID,
}

backends_option: Decorator = click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar=_BACKEND,
    callback=_backends,
    help="A backend of the service; may be repeated.",
)

WEIGHT = _OF_BACKEND["weight"]
weight_option: Decorator = click.option(
    "--weight",
    type=WEIGHT,
    metavar="N",
    help=f"0 (no new flows) to {MAX_WEIGHT}.",
)
backup_option: Decorator = click.option(
    "--backup/--no-backup",
    default=None,
    help="Whether it gets new flows only while no other backend is usable.",
)
priority_option: Decorator = click.option(
    "--priority",
    type=_OF_BACKEND["priority"],
    metavar="N",
    help=f"Backends with the lowest number get the new flows, 0 to {MAX_PRIORITY}.",
)
zone_option: Decorator = click.option(
    "--zone", metavar="NAME", help="The zone it is in: clients of that zone are sent there first."
)
server_id_option: Decorator = click.option(
    "--quic-server-id",
    type=SERVER_ID,
    help="The id that it puts into its QUIC connection ids, in hexadecimal.",
)
