"""Decides which servers of a backend become backends of a service, and which cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.model import MAX_WEIGHT
from lbctl.converted import Document
from lbctl.haproxy.binds import Listening
from lbctl.haproxy.grammar import Line
from lbctl.haproxy.ledger import Ledger
from lbctl.haproxy.sections import Proxy, Section
from lbctl.haproxy.values import (
    Endpoint,
    UnfitError,
    endpoint,
    loopback,
    merged,
    name_of,
    parameters,
    unique,
    whole,
)

_WITH_VALUE = frozenset({
    "addr", "agent-addr", "agent-inter", "agent-port", "agent-send", "alpn", "ca-file",
    "check-alpn", "check-pool-conn-name", "check-proto", "check-sni", "ciphers", "ciphersuites",
    "client-sigalgs", "cookie", "crl-file", "crt", "curves", "downinter", "error-limit", "fall",
    "fastinter", "guid", "hash-key", "healthcheck", "id", "init-addr", "init-state", "inter",
    "interface", "log-bufsize", "log-proto", "max-reuse", "maxconn", "maxqueue", "minconn",
    "namespace", "npn", "observe", "on-error", "on-marked-down", "on-marked-up", "pool-conn-name",
    "pool-low-conn", "pool-max-conn", "pool-purge-delay", "port", "proto", "proxy-v2-options",
    "redir", "resolve-net", "resolve-opts", "resolve-prefer", "resolvers", "rise",
    "set-proxy-v2-tlv-fmt", "shard", "sigalgs", "slowstart", "sni", "socks4", "source",
    "ssl-max-ver", "ssl-min-ver", "strict-maxconn", "tcp-md5sig", "tcp-ut", "track", "usesrc",
    "verify", "verifyhost", "weight", "ws",
})  # fmt: skip
_FLAGS = frozenset({
    "agent-check", "allow-0rtt", "backup", "check", "check-reuse-pool", "check-send-proxy",
    "check-ssl", "check-via-socks4", "disabled", "enabled", "force-sslv3", "force-tlsv10",
    "force-tlsv11", "force-tlsv12", "force-tlsv13", "non-stick", "send-proxy", "send-proxy-v2",
    "send-proxy-v2-ssl", "send-proxy-v2-ssl-cn", "ssl", "ssl-reuse", "stick", "tfo",
    "tls-tickets",
})  # fmt: skip
_QUEUE = "connections are not queued here: `least-conn` and `least-load` go by the open ones"
_PROXY = (
    "the servers get no PROXY header, so stop requiring it there; with `dsr` and `nat` they see "
    "the client's address by itself"
)
_OUTLIER = "outliers are watched for by default (`outlier`)"
_NOTES = {
    "maxconn": f"maxconn: {_QUEUE}",
    "minconn": f"minconn: {_QUEUE}",
    "maxqueue": f"maxqueue: {_QUEUE}",
    "cookie": "cookie: cookies are not read here; for a client that stays with its server, use "
    "the scheduler `source` or `affinity`",
    **{f"send-proxy{kind}": f"send-proxy{kind}: {_PROXY}"
       for kind in ("", "-v2", "-v2-ssl", "-v2-ssl-cn")},
    "check-send-proxy": "check-send-proxy: checks send no PROXY header",
    "check-via-socks4": "check-via-socks4: checks go straight to the server",
    "observe": f"observe: {_OUTLIER}",
    "on-error": f"on-error: {_OUTLIER}",
    "on-marked-up": "on-marked-up: connections to backup servers are left alone",
    "track": "track: each service checks its own backends; the same check of the same server is "
    "made once",
    "fastinter": "fastinter: while results contradict the state, checks run twice as often",
    "downinter": "downinter: servers that are down are checked as often as the others",
    "addr": "addr: a server is checked at its own address",
    "agent-addr": "agent-addr: a server's agent is asked at the server's own address",
    "agent-send": "agent-send: nothing is sent to agents",
    "namespace": "namespace: the agent works in one network namespace",
}  # fmt: skip
# A name, as `discover.dns` takes it.
_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")
_NAMESERVER = re.compile(r"(?:[0-9.]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}")
_BY_TLS = (
    "ssl: HAProxy speaks TLS to this server for clients that do not, and a layer-4 balancer "
    "cannot: let clients speak TLS with it themselves"
)


@dataclass(slots=True)
class Server:
    """A server of a backend. ``port`` may be empty or an offset, as it was written."""

    line: Line
    name: str
    where: Endpoint
    params: Mapping[str, str]

    def takes(self, name: str) -> bool:
        """Return whether a parameter holds for it."""
        return name in self.params

    def port_for(self, listening: Listening) -> int | None:
        """Return its port; None: the one that clients connect to. Raises UnfitError."""
        port = self.where.port
        if not port:
            return None
        if port[0] in "+-":
            if listening.first != listening.last:
                raise UnfitError(f"{port}: ports of a range cannot be shifted")
            return whole(str(listening.first + int(port)), 1, 65535)
        return whole(port, 1, 65535)


@dataclass(slots=True)
class Servers:
    """The servers of a backend that can get packets, and the name that others are found by."""

    listed: list[Server] = field(default_factory=list)
    discover: Document = field(default_factory=dict)
    template: Server | None = None

    @property
    def all(self) -> list[Server]:
        """Every server, and the template of those that are discovered."""
        return [*self.listed, *([self.template] if self.template else [])]


def read_servers(proxy: Proxy, resolvers: Mapping[str, Section], ledger: Ledger) -> Servers:
    """Return the servers of a backend."""
    found = Servers()
    defaults: dict[str, str] = {}
    hosts: list[Server] = []
    for line in proxy.lines:
        if line.name not in ("server", "server-template", "default-server"):
            continue
        if line.off or not ledger.usable(line):
            continue
        if line.name == "default-server":
            defaults = merged(defaults | _parameters(line, 1, ledger))
            continue
        at = 3 if line.name == "server" else 4
        params = merged(defaults | _parameters(line, at, ledger))
        try:
            server = Server(line, line.word(1), _address(line.word(at - 1)), params)
            _fit(server)
        except UnfitError as unfit:
            ledger.lose(line, str(unfit))
            continue
        if server.where.address is None or line.name == "server-template":
            hosts.append(server)
        else:
            found.listed.append(server)
    _discovered(hosts, found, resolvers, ledger)
    return found


def _parameters(line: Line, at: int, ledger: Ledger) -> dict[str, str]:
    found = dict(parameters(line.words[at:], _WITH_VALUE, _FLAGS))
    for name, value in found.items():
        if value == "?":
            ledger.note(line, f"{name}: not known here")
        elif name in _NOTES:
            ledger.note(line, _NOTES[name])
    return {name: value for name, value in found.items() if value != "?"}


def _address(word: str) -> Endpoint:
    where = endpoint(word)
    if where.port and not re.fullmatch(r"[+-]?[0-9]{1,5}", where.port):
        raise UnfitError(f"{where.port!r} is not a port")
    return where


def _fit(server: Server) -> None:
    """Raise UnfitError if a layer-4 balancer cannot send packets to a server."""
    if not server.where.host:
        raise UnfitError(
            "the address that the client connected to: a balancer has no way back to it; write "
            "the server's address"
        )
    if loopback(server.where):
        raise UnfitError(
            "a server on this host itself, at its loopback interface, where packets of clients do "
            "not come: let it listen on another host's address"
        )
    if server.takes("ssl"):
        raise UnfitError(_BY_TLS)
    if server.takes("socks4"):
        raise UnfitError("socks4: a layer-4 balancer reaches no server through a proxy")
    if server.takes("redir"):
        raise UnfitError("redir: a layer-4 balancer cannot answer with a redirection")


def _discovered(
    hosts: Sequence[Server], found: Servers, resolvers: Mapping[str, Section], ledger: Ledger
) -> None:
    """Make the one name of a backend its source of servers; name the others."""
    templates = [each for each in hosts if each.line.name == "server-template"]
    chosen = (templates or hosts)[:1] if templates or not found.listed else []
    for each in hosts:
        if each in chosen:
            continue
        host = each.where.host or each.name
        ledger.lose(
            each.line,
            f"{host}: a service has one name that is asked for (`discover`); write the server's "
            "address",
        )
    for each in chosen:
        _discover(each, found, resolvers, ledger)


def _discover(
    each: Server, found: Servers, resolvers: Mapping[str, Section], ledger: Ledger
) -> None:
    host = each.where.host
    if not _NAME.fullmatch(host) or len(host) > 253:
        ledger.lose(each.line, f"{host!r} is not a name that DNS can be asked for")
        return
    found.template = each
    found.discover = {"dns": host}
    if each.where.port.isdecimal() and not host.startswith("_"):
        found.discover["port"] = int(each.where.port)
    if each.line.name == "server-template":
        last = each.line.word(2).rpartition("-")[2]
        if last.isdecimal() and 1 <= int(last) <= 10_000:
            found.discover["max"] = int(last)
    else:
        ledger.note(
            each.line,
            f"{host}: HAProxy asks for it once and takes the first address; here every address is "
            "a backend, and the name is asked for again",
        )
    name = each.params.get("resolvers", "")
    for line in resolvers[name].body if name in resolvers else ():
        server = line.word(2).removeprefix("udp@").removeprefix("tcp@")
        if line.name == "nameserver" and _NAMESERVER.fullmatch(server):
            found.discover.setdefault("server", server)


def backends(servers: Sequence[Server], listening: Listening, ledger: Ledger) -> list[Document]:
    """Return the servers as backends of the service that listens here."""
    weights = {each.line.line: _weight(each, ledger) for each in servers}
    scale = 100 if max(weights.values(), default=1) <= MAX_WEIGHT // 100 else 1
    names: set[str] = set()
    places: dict[tuple[object, object], str] = {}
    found: list[Document] = []
    for each in servers:
        try:
            port = _port(each, listening)
        except UnfitError as unfit:
            ledger.lose(each.line, str(unfit))
            continue
        place = each.where.address, port or listening.port
        if place in places:
            ledger.note(each.line, f"{each.name} has the address of {places[place]}: left out; "
                                   "give that one the weight of both")  # fmt: skip
            continue
        places[place] = each.name
        entry: Document = {
            "name": unique(name_of(each.name, "server"), names), "address": str(each.where.address),
        }  # fmt: skip
        if port not in (None, listening.port):
            entry["port"] = port
        if (weight := weights[each.line.line] * scale) != 100:
            entry["weight"] = weight
        if each.takes("backup"):
            entry["backup"] = True
        if each.takes("disabled") and not each.takes("enabled"):
            entry["state"] = "maintenance"
        found.append(entry)
    return found


def _port(each: Server, listening: Listening) -> int | None:
    own = each.where.address
    if own is not None and own.version != listening.vip.version:
        raise UnfitError(
            f"{own} is no server for clients of {listening.vip}: HAProxy translates between IPv4 "
            "and IPv6, and here `ipip` or `gue` carry the one in the other"
        )
    return each.port_for(listening)


def _weight(each: Server, ledger: Ledger) -> int:
    try:
        return whole(each.params.get("weight", "1"), 0, 256)
    except UnfitError as unfit:
        ledger.note(each.line, f"weight: {unfit}")
        return 1
