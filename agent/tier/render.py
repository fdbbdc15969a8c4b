"""Writes HAProxy's configuration of a tier, and its maps. Pure.

Every reason to refuse a request is a backend of its own without servers, so HAProxy itself counts
how often each was given.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.model import Network
from agent.tier.keys import LIMITS, Key
from agent.tier.settings import (
    Affinity,
    AffinityBy,
    Profile,
    ProxyProtocol,
    Route,
    Tier,
    engines_of,
)

# wiki.mozilla.org/Security/Server_Side_TLS, 5.7, without DHE, which needs parameters of its own.
_CURVES = "X25519:prime256v1:secp384r1"
_CIPHERS = ":".join(
    f"ECDHE-{key}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for key in ("ECDSA", "RSA")
)
_SUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
BUFFER_BYTES = 1 << 16  # what is read of a body for its model and tokens, less 1 KiB
_MOST_CLIENTS = "1m"  # entries of the table of limits; the oldest go first
_MOST_SOURCES = "200k"  # entries of the table of connections
_MINUTE = "1m"
PROXIES = "proxies"  # the map of the prefixes of trusted proxies


class Refusal(enum.StrEnum):
    """Why a request is refused: the name of a backend, and of a metric's label."""

    KEY = "key"
    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"
    BODY = "body"
    LENGTH = "length"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a refused client gets, in the shape of OpenAI's errors."""

    status: int
    message: str
    kind: str
    code: str
    retry_s: int | None = None


_ANSWERS: Mapping[Refusal, _Answer] = {
    Refusal.KEY: _Answer(
        401, "The API key is missing or not known.", "invalid_request_error", "invalid_api_key"
    ),
    Refusal.REQUESTS: _Answer(
        429, "Too many requests in a minute.", "requests", "rate_limit_exceeded", 60
    ),
    Refusal.TOKENS: _Answer(
        429, "Too many tokens were asked for in a minute.", "tokens", "rate_limit_exceeded", 60
    ),
    Refusal.CONCURRENT: _Answer(
        429, "Too many requests at the same time.", "requests", "rate_limit_exceeded", 1
    ),
    Refusal.BODY: _Answer(
        413, "The body of the request is too large.", "invalid_request_error", "request_too_large"
    ),
    Refusal.LENGTH: _Answer(
        411, "The request has a body without Content-Length.", "invalid_request_error",
        "length_required",
    ),
    Refusal.QUEUE: _Answer(
        429, "All engines are busy, and too many requests wait.", "server_error",
        "engine_overloaded", 5,
    ),
}  # fmt: skip
# What HAProxy answers by itself.
_FAILURES: Mapping[int, _Answer] = {
    400: _Answer(400, "The request is not HTTP.", "invalid_request_error", "bad_request"),
    408: _Answer(408, "The request took too long to arrive.", "invalid_request_error", "timeout"),
    500: _Answer(500, "The request cannot be handled.", "server_error", "internal_error"),
    502: _Answer(502, "The engine broke off its answer.", "server_error", "bad_gateway"),
    503: _Answer(503, "No engine is free, or none can be reached.", "server_error",
                 "engine_overloaded", 5),
    504: _Answer(504, "The engine did not answer in time.", "server_error", "gateway_timeout"),
}  # fmt: skip


def backend_of(end: tuple[str, int]) -> str:
    """Return what HAProxy calls the engines behind an address and port."""
    return f"{end[0]}-{end[1]}"


def refused_by(refusal: Refusal) -> str:
    """Return what HAProxy calls the backend that refuses for this reason."""
    return f"refused-{refusal}"


def maps(
    keys: Iterable[Key] | None, proxies: Iterable[Network] | None
) -> dict[str, dict[str, str]]:
    """Return the maps by their file: names of keys by hash, the limits that a key has of its own,
    and the prefixes of trusted proxies. None: the tier has no keys, or is behind no proxy.
    """
    made: dict[str, dict[str, str]] = {}
    if keys is not None:
        made |= {"keys": {}, **{limit: {} for limit in LIMITS}}
        for key in keys:
            made["keys"][key.sha256] = key.name
            for limit in LIMITS:
                value = getattr(key.limits, limit)
                if value is not None:
                    made[limit][key.name] = str(value)
    if proxies is not None:
        made[PROXIES] = {str(prefix): "trusted" for prefix in proxies}
    return made


def map_text(entries: Mapping[str, str]) -> str:
    """Return a map as HAProxy reads it."""
    return "".join(f"{key} {value}\n" for key, value in entries.items())


def rendered(tier: Tier, folder: Path, *, keeps_sessions: bool = True) -> str:
    """Return the configuration.

    ``folder``: where certificates, maps and sockets are; ``keeps_sessions``: whether this host has
    the addresses that sessions are sent from. Without them, requests go on without affinity.
    """
    lines = [
        "# Written by lb-agent tier; changes are lost at its next look.",
        *_global(tier, folder),
        *_defaults(tier),
        *_table(tier),
        *_frontend(tier, folder),
        *_plain_http(tier, folder),
        *(line for end in engines_of(tier) for line in _engines(tier, end, keeps_sessions)),
        *(line for refusal in Refusal for line in _refusing(refusal)),
    ]
    return "\n".join(lines) + "\n"


def _global(tier: Tier, folder: Path) -> Iterator[str]:
    yield "global"
    yield f"  stats socket {folder}/haproxy.sock mode 600 level admin expose-fd listeners"
    # A second HAProxy must not share the ports unseen, with a configuration of its own. The price:
    # while `listen` is widened to an address that includes the old one, some SYNs are refused.
    yield "  noreuseport"
    yield f"  user {tier.user}"
    yield f"  chroot {folder}/empty"
    yield f"  maxconn {tier.max_connections}"
    yield f"  hard-stop-after {_ms(tier.idle_timeout)}"
    yield f"  tune.bufsize {BUFFER_BYTES}"
    yield "  log stdout format raw local0 notice"
    if tier.profile is Profile.INTERMEDIATE:
        yield f"  ssl-default-bind-ciphers {_CIPHERS}"
    yield f"  ssl-default-bind-ciphersuites {_SUITES}"
    yield f"  ssl-default-bind-curves {_CURVES}"
    oldest = "TLSv1.2" if tier.profile is Profile.INTERMEDIATE else "TLSv1.3"
    yield f"  ssl-default-bind-options prefer-client-ciphers ssl-min-ver {oldest} no-tls-tickets"


def _defaults(tier: Tier) -> Iterator[str]:
    yield "defaults"
    yield "  mode http"
    yield "  log global"
    yield "  option httplog"
    yield "  option dontlog-normal"
    yield "  option dontlognull"
    # A request gets a connection of its own to the VIP: the balancer chooses an engine for each.
    yield "  option http-server-close"
    # Otherwise HAProxy lets the kernel wait up to 200 ms for more of an answer that is streamed.
    yield "  option http-no-delay"
    yield "  retries 3"
    yield "  timeout connect 3s"
    yield f"  timeout http-request {_ms(tier.limits.head_timeout)}"
    # Otherwise who connects and says nothing, or half of a ClientHello, stays for `timeout client`.
    yield f"  timeout client-hs {_ms(tier.limits.head_timeout)}"
    yield "  timeout http-keep-alive 60s"
    yield f"  timeout queue {_ms(tier.queue.timeout)}"
    yield f"  timeout client {_ms(tier.idle_timeout)}"
    yield f"  timeout server {_ms(tier.idle_timeout)}"
    for status, answer in _FAILURES.items():
        yield f"  http-error {_reply(status, answer)}"


def _table(tier: Tier) -> Iterator[str]:
    kind = "string len 64" if tier.keys else "ipv6"
    yield "backend clients"
    yield f"  stick-table type {kind} size {_MOST_CLIENTS} expire 2m store " + ",".join(
        (f"http_req_rate({_MINUTE})", "conn_cur", "gpc(1)", f"gpc_rate(1,{_MINUTE})")
    )

    yield "backend sources"
    yield f"  stick-table type ipv6 size {_MOST_SOURCES} expire 10s store conn_cur"


def _frontend(tier: Tier, folder: Path) -> Iterator[str]:
    yield "frontend tier"
    for end in tier.listen:
        yield f"  bind {_address(end)} ssl {_certificates(tier, folder)} alpn h2,http/1.1"
    yield from _connections(tier, folder)
    yield from _behind(tier, folder)
    yield "  http-request set-header X-Forwarded-For %[src]"
    yield "  http-request set-header X-Forwarded-Proto https"
    yield "  http-request del-header X-Client-Name"
    if tier.client_certificates:
        name = "ssl_c_s_dn(cn),regsub([[:cntrl:]],_,g)"  # it must not begin another header
        yield f"  http-request set-header X-Client-Name %[{name}] if {{ ssl_c_used }}"
    yield from _identity(tier, folder)
    yield from _limits(tier, folder)
    yield "  use_backend %[var(txn.refused)] if { var(txn.refused) -m found }"
    for route in tier.routes:
        yield from _routed(tier, route.engines, _conditions(route))
    yield from _routed(tier, tier.engines, "")


def _plain_http(tier: Tier, folder: Path) -> Iterator[str]:
    if tier.plain is None:
        return
    yield "frontend plain"
    yield from (f"  bind {_address(end)}" for end in tier.plain.listen)
    yield from _connections(tier, folder)
    challenge = "{ path -m beg /.well-known/acme-challenge/ }"  # RFC 8555, section 8.3
    otherwise = "" if tier.plain.acme is None else f" unless {challenge}"
    yield f"  http-request redirect scheme https code 308{otherwise}"
    if tier.plain.acme is not None:
        yield "  default_backend acme"
        yield "backend acme"
        yield f"  server certbot {_address(tier.plain.acme)}"


def _address(end: tuple[str, int]) -> str:
    """Return an address and port as HAProxy reads them."""
    return f"ipv6@{end[0]}:{end[1]}" if ":" in end[0] else f"{end[0]}:{end[1]}"


def _certificates(tier: Tier, folder: Path) -> str:
    words = [f"crt {folder}/certificates/"]
    if tier.default_certificate is not None:
        words.insert(0, f"crt {folder}/certificates/{tier.default_certificate}.pem")
    if (asked := tier.client_certificates) is not None:
        words.append(f"ca-file '{_plain(asked.ca_file)}'")
        if asked.crl_file is not None:
            words.append(f"crl-file '{_plain(asked.crl_file)}'")
        words.append(f"verify {'required' if asked.required else 'optional'}")
    return " ".join(words)


def _plain(path: Path) -> str:
    """Return a path as it may stand between single quotes."""
    return str(path).replace("'", "'\\''")


def _trusted(folder: Path) -> str:
    """Return whether a connection is of a trusted proxy.

    They are in a map, because a line of HAProxy's has room for 64 words, and because maps are
    exchanged without a new worker.
    """
    return f"{{ src,map_ip({folder}/{PROXIES}.map) -m found }}"


def _connections(tier: Tier, folder: Path) -> Iterator[str]:
    """Leave connections for others: who sends nothing keeps each for `head_timeout`."""
    most = tier.source_connections or -(-tier.max_connections // 4)
    others = f" unless {_trusted(folder)}" if tier.behind else ""
    yield f"  tcp-request connection track-sc1 src,ipmask(32,64) table sources{others}"
    yield f"  tcp-request connection reject if {{ sc1_conn_cur gt {most} }}"


def _behind(tier: Tier, folder: Path) -> Iterator[str]:
    """Let proxies say who the client is."""
    if tier.behind is None:
        return
    if tier.behind.protocol is ProxyProtocol.PROXY:
        yield f"  tcp-request connection expect-proxy layer4 if {_trusted(folder)}"
    else:
        yield f"  http-request set-src req.hdr_ip(x-forwarded-for,-1) if {_trusted(folder)}"


def _identity(tier: Tier, folder: Path) -> Iterator[str]:
    """Say whose request it is, and count it."""
    yield "  http-request del-header X-Key-Name"
    if not tier.keys:
        yield "  http-request track-sc0 src,ipmask(32,64) table clients"
        return
    yield (
        "  http-request set-var(txn.key) req.hdr(authorization),"
        "regsub(^[Bb]earer[[:space:]]+,),sha2(256),hex,lower,"
        f"map_str({folder}/keys.map)"
    )
    yield f"  http-request set-var(txn.refused) str({refused_by(Refusal.KEY)}) unless " + _KNOWN
    yield f"  http-request track-sc0 var(txn.key) table clients if {_KNOWN}"
    yield f"  http-request set-header X-Key-Name %[var(txn.key)] if {_KNOWN}"
    if not tier.forward_key:
        yield "  http-request del-header Authorization"


_KNOWN = "{ var(txn.key) -m found }"
_STILL = "!{ var(txn.refused) -m found }"


def _limits(tier: Tier, folder: Path) -> Iterator[str]:
    limits = tier.limits
    yield _refuse(Refusal.BODY, f"{{ req.body_size gt {limits.body} }}")
    yield from _limit(tier, folder, "concurrent", Refusal.CONCURRENT, "sc_conn_cur(0)")
    yield from _limit(tier, folder, "requests_per_minute", Refusal.REQUESTS, "sc_http_req_rate(0)")
    # Not earlier: a request that is refused is answered at once, and nothing of its body is kept.
    yield f"  http-request wait-for-body time {_ms(limits.head_timeout)} if {_STILL}"
    yield _refuse(Refusal.LENGTH, "{ req.body_len gt 0 } !{ req.hdr(content-length) -m found }")
    if tier.keys or limits.tokens_per_minute is not None:
        yield "  http-request set-var(txn.tokens) int(0)"
        yield (
            f"  http-request set-var(txn.tokens) int({limits.tokens_assumed}) "
            "if { req.body_len gt 0 }"
        )
        for field in ("max_output_tokens", "max_completion_tokens", "max_tokens"):
            yield "  http-request unset-var(txn.asked)"
            yield f"  http-request set-var(txn.asked) req.body,json_query('$.{field}','int')"
            yield (
                "  http-request set-var(txn.tokens) var(txn.asked) "
                "if { var(txn.asked) -m int gt 0 }"
            )
        yield from _limit(
            tier, folder, "tokens_per_minute", Refusal.TOKENS,
            "sc_gpc_rate(0,0),add(txn.tokens)",
        )  # fmt: skip
        yield f"  http-request sc-add-gpc(0,0) var(txn.tokens) if {_STILL}"
    if any(route.model for route in tier.routes):
        yield _set("model", _field("model"))
    if tier.affinity is not None:
        yield from _session(tier.affinity)


# What begins a conversation and is the same in all of its requests: its first message, with the
# second one if the first has the instructions, which many conversations have in common.
_INSTRUCTIONS = "{ var(txn.role) -m str system developer }"
_MESSAGE_BYTES = 4096  # of each of them
_TEXT_BYTES = 1024  # of a prompt that is one text, which a conversation makes longer
_RAW_BYTES = 32 << 10  # of a body whose first message is longer than what is read of it
_NONE_YET = "!{ var(txn.session) -m found }"


def _session(affinity: Affinity) -> Iterator[str]:
    """Find out which session a request is of. Without any, requests take turns."""
    match affinity.by:
        case AffinityBy.KEY:
            yield _set("session", "var(txn.key)")
        case AffinityBy.HEADER:
            yield _set("session", f"req.hdr({affinity.header})")
        case AffinityBy.PROMPT:
            for text in ("prompt", "input"):
                yield _set("session", f"{_field(text)},bytes(0,{_TEXT_BYTES})")
            for messages in ("messages", "input"):
                yield from _beginning(messages)
            # Of a message that ends behind what is read of the body, nothing was found. All that
            # was read comes before its end, and is the same in each request.
            raw = f"req.body,bytes(0,{_RAW_BYTES})"
            yield f"{_set('session', raw)} if {_NONE_YET} {{ req.body_len gt {_RAW_BYTES} }}"
            yield _set("session", _field("prompt_cache_key"))


def _beginning(messages: str) -> Iterator[str]:
    """Take what begins the conversation in this list of messages, if the body has it."""
    parts = [f"{_field(f'{messages}[{n}].content')},bytes(0,{_MESSAGE_BYTES})" for n in (0, 1)]
    for variable in ("role", "first", "second"):
        yield f"  http-request unset-var(txn.{variable})"
    yield _set("role", _field(f"{messages}[0].role"))
    yield _set("first", parts[0])
    yield f"{_set('second', parts[1])} if {_INSTRUCTIONS}"
    yield f"{_set('session', 'var(txn.first)')} unless {_INSTRUCTIONS}"
    both = "var(txn.first),concat(,txn.second)"
    yield f"{_set('session', both)} if {_INSTRUCTIONS} {{ var(txn.second) -m found }}"


def _field(path: str) -> str:
    """Return the expression for a field of the body."""
    return f"req.body,json_query('$.{path}')"


def _set(variable: str, expression: str) -> str:
    """Return the rule that sets a variable; it keeps its value where there is no new one."""
    return f"  http-request set-var(txn.{variable}) {expression}"


def _limit(tier: Tier, folder: Path, name: str, refusal: Refusal, measure: str) -> Iterator[str]:
    """Refuse what is beyond a limit. In the maps and here, 0 means none."""
    common = getattr(tier.limits, name) or 0
    if tier.keys:
        most = f"var(txn.key),map_str_int({folder}/{name}.map,{common})"
        yield f"  http-request set-var(txn.most) {most} if {_KNOWN}"
    elif common:
        yield f"  http-request set-var(txn.most) int({common})"
    else:
        return
    beyond = f"{{ var(txn.most) -m int gt 0 }} {{ {measure},sub(txn.most) gt 0 }}"
    yield _refuse(refusal, beyond)


def _refuse(refusal: Refusal, condition: str) -> str:
    return f"  http-request set-var(txn.refused) str({refused_by(refusal)}) if {_STILL} {condition}"


def _conditions(route: Route) -> str:
    words = []
    if route.path is not None:
        words.append(f"{{ path -m beg {route.path} }}")
    if route.model is not None:
        how = "beg" if route.model.endswith("*") else "str"
        words.append(f"{{ var(txn.model) -m {how} {route.model.removesuffix('*')} }}")
    return " ".join(words)


def _routed(tier: Tier, end: tuple[str, int], condition: str) -> Iterator[str]:
    # With affinity, each address of ours is a server of HAProxy's, and no queue is common to all.
    most = tier.queue.concurrent + (0 if tier.affinity else tier.queue.waiting)
    full = f"{condition} {{ be_conn({backend_of(end)}) ge {most} }}".strip()
    yield f"  use_backend {refused_by(Refusal.QUEUE)} if {full}"
    if condition:
        yield f"  use_backend {backend_of(end)} if {condition}"
    else:
        yield f"  default_backend {backend_of(end)}"


def _engines(tier: Tier, end: tuple[str, int], keeps_sessions: bool) -> Iterator[str]:
    yield f"backend {backend_of(end)}"
    sources = tier.affinity.of(end[0]) if tier.affinity and keeps_sessions else None
    if sources is None:
        yield f"  server vip {_address(end)} maxconn {tier.queue.concurrent}"
        return
    yield "  balance hash var(txn.session)"
    yield "  hash-type map-based sdbm avalanche"
    for source in sources:
        own = f"[{source}]" if source.version == 6 else f"{source}"
        yield f"  server from-{source} {_address(end)} source {own}"


def _refusing(refusal: Refusal) -> Iterator[str]:
    answer = _ANSWERS[refusal]
    yield f"backend {refused_by(refusal)}"
    yield f"  http-request return {_reply(answer.status, answer)}"


def _reply(status: int, answer: _Answer) -> str:
    error = {
        "message": answer.message, "type": answer.kind, "param": None, "code": answer.code
    }  # fmt: skip
    retry = "" if answer.retry_s is None else f" hdr Retry-After {answer.retry_s}"
    body = json.dumps({"error": error})
    return f"status {status} content-type application/json{retry} string '{body}'"


def _ms(seconds: float) -> str:
    return f"{round(1000 * seconds)}ms"
