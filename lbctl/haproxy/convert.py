"""Converts a configuration of HAProxy into one of ours, and names what cannot be converted.

HAProxy ends connections and makes new ones, so servers answer to HAProxy and need no setup for
it. ``fullnat`` is the mode for which this stays true, so it is what services become. Everything
here is pure.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

from lbctl.converted import Converted, Document, Note
from lbctl.haproxy.binds import Listening, Site, interface_of, listenings
from lbctl.haproxy.checks import health
from lbctl.haproxy.grammar import Line
from lbctl.haproxy.keywords import meaning
from lbctl.haproxy.ledger import Ledger
from lbctl.haproxy.sections import OTHERS, PROXIES, Proxy, Section, divide
from lbctl.haproxy.servers import Servers, backends, read_servers
from lbctl.haproxy.values import UnfitError, name_of, seconds, unique, whole, written

FULLNAT = (
    "forward: fullnat, because HAProxy's servers answer to HAProxy: for them nothing changes. They "
    "see the balancer's address, and all answers pass it. `dsr` and `nat` show them the client's "
    "address, and with `dsr` answers bypass the balancer; both need something done on the servers"
)
_PASSED_ON = (
    "mode http: connections are passed on as they are: all requests of a connection go to one "
    "server, and headers are neither read nor added"
)
_ESTABLISHED_S, _LONGEST_S = 900.0, 7 * 3600.0
_FEWEST_DRAWS, _MOST_DRAWS = 2, 8  # of `draws`
# Samples that are the client's address, or the network that it is in.
_OF_CLIENT = re.compile(r"src(?:,ipmask\(([0-9]{1,2})(?:,[0-9]{1,3})?\))?")
_SCHEDULERS = {"roundrobin": "round-robin", "static-rr": "round-robin", "leastconn": "least-conn"}


def convert(ledger: Ledger, site: Site) -> Converted:
    """Return what the lines of a file become; what became of each is in the ledger."""
    sections = divide(ledger.lines, ledger)
    conversion = _Conversion(sections, site, ledger)
    made = Converted()
    services = conversion.services()
    own = site.interface or conversion.interface()
    if own:
        made.document["interface"] = own
    else:
        made.notes.append(Note(0, "say with --interface where clients' packets come in"))
    made.document["defaults"] = {"forward": "fullnat"}
    made.document["services"] = services
    _account(sections, conversion.used, ledger)
    if any("forward" not in service for service in services):
        made.notes.append(Note(0, FULLNAT))
    ledger.into(made)
    return made


class _Conversion:
    """The proxies of a file, and which of them became part of a service."""

    def __init__(self, sections: Sequence[Section], site: Site, ledger: Ledger) -> None:
        self._site, self._ledger = site, ledger
        self._fronts = [each for each in sections if each.kind in ("frontend", "listen")]
        self._backs: dict[str, Section] = {}
        for each in sections:
            if each.kind in ("backend", "listen"):
                self._backs.setdefault(each.name, each)
        self._resolvers = {each.name: each for each in sections if each.kind == "resolvers"}
        self._names: set[str] = set()
        # Whether a converted proxy is in mode http.
        self.used: dict[Section, bool] = {}

    def services(self) -> list[Document]:
        """Return the services of all proxies that clients connect to."""
        return [service for each in self._fronts for service in self._services(each)]

    def interface(self) -> str | None:
        """Return the interface that a bind line names."""
        lines = [line for each in self._fronts for line in each.body if line.name == "bind"]
        return interface_of(lines, self._ledger)

    def _services(self, section: Section) -> list[Document]:
        front = Proxy(section, self._ledger)
        if front.last("disabled"):
            self._leave_out(section, "it is disabled")
            return []
        mode = front.last("mode")
        kind = mode.word(1) if mode else "tcp"
        if kind not in ("tcp", "http"):
            self._leave_out(section, f"mode {kind}: only tcp and http are converted")
            return []
        target = self._target(front)
        binds = front.all("bind", own=True)
        if target is None:
            self._nowhere(section, bool(binds))
            return []
        found = listenings(binds, self._site, self._ledger)
        self.used[section] = kind == "http"
        if not found:
            # The notes on the bind lines say why.
            self._ledger.cover(section.body)
            if not binds:
                self._ledger.lose(section.head, f"{section.title} has no bind that is converted")
            return []
        back = Proxy(target, self._ledger)
        its = back.last("mode")
        is_http = kind == "http" or (its is not None and its.word(1) == "http")
        self.used[target] = self.used.get(target, False) or is_http
        if is_http:
            self._ledger.note(mode or section.head, _PASSED_ON)
        return self._made(section, front, back, found)

    def _made(
        self, section: Section, front: Proxy, back: Proxy, found: Sequence[Listening]
    ) -> list[Document]:
        """Return one service for each address and port where a proxy listens."""
        servers = read_servers(back, self._resolvers, self._ledger)
        settings = _settings(front, back, servers, self._ledger)
        made: list[Document] = []
        for each in found:
            own = backends(servers.listed, each, self._ledger)
            if not own and not servers.discover:
                self._ledger.lose(each.line, f"{each.vip}: no server is left for it")
                continue
            name = name_of(section.name)
            if len(found) > 1:
                name = f"{name}-{each.port}"
            place: Document = {
                "name": unique(name, self._names), "vip": str(each.vip), "port": each.port,
            }  # fmt: skip
            # Copied, because what two services share would be written as an alias of YAML.
            own_settings = copy.deepcopy(settings)
            made.append(place | own_settings | ({"backends": own} if own else {}))
        return made

    def _target(self, front: Proxy) -> Section | None:
        """Return the section whose servers a proxy's connections go to."""
        chosen: Section | None = None
        for line in front.all("use_backend", own=True):
            if len(line.words) > 2:
                self._ledger.lose(
                    line,
                    "use_backend: what a connection holds is not looked at; give each backend a "
                    "port or address of its own, or keep HAProxy for this, behind a service",
                )
            else:
                chosen = chosen or self._named(line)
        default = front.last("default_backend")
        if default and chosen is None:
            chosen = self._named(default)
        own = front.section
        if chosen is None and own.kind == "listen" and any(
            line.name in ("server", "server-template") for line in own.body
        ):  # fmt: skip
            return own
        return chosen

    def _named(self, line: Line) -> Section | None:
        found = self._backs.get(line.word(1))
        if found is None:
            self._ledger.lose(line, f"there is no backend {line.word(1)!r}")
        elif found.kind == "backend" and Proxy(found, self._ledger).last("disabled"):
            self._ledger.lose(line, f"backend {found.name} is disabled")
            return None
        return found

    def _nowhere(self, section: Section, has_binds: bool) -> None:
        """Account for a proxy that leads to no servers."""
        if any(line.words[:1] == ("stats",) for line in section.body):
            why = (
                "a page of statistics: `status_page` is one for browsers, `metrics` for Prometheus"
            )
            self._ledger.cover(section.body)
            self._ledger.note(section.head, f"{section.title}: {why}")
            return
        self._leave_out(section, "it leads to no servers")
        if has_binds:
            self._ledger.is_complete = False

    def _leave_out(self, section: Section, why: str) -> None:
        self._ledger.cover(section.body)
        self._ledger.note(section.head, f"{section.title}: not converted, because {why}")


def _settings(front: Proxy, back: Proxy, servers: Servers, ledger: Ledger) -> Document:
    """Return everything of a service but its name, address and backends."""
    result = _scheduler(back, ledger)
    _affinity(back, result, ledger)
    if line := back.last("source"):
        _source(line, line.words, result, ledger)
    for server in servers.all:
        if "source" in server.params:
            words = [word for pair in server.params.items() for word in pair]
            _source(server.line, words, result, ledger)
    if line := back.last("option", "transparent"):
        ledger.note(line, "option transparent: name the servers")
    result |= _starts(servers, ledger)
    backups = [each for each in servers.listed if each.takes("backup")]
    if not back.last("option", "allbackups") and len(backups) > 1:
        ledger.note(backups[1].line, "backup: all backup servers get connections together, as with "
                                     "`option allbackups`")  # fmt: skip
    result |= _agents(servers, ledger) | _idle_time(front, back, ledger)
    if checks := health(back, servers.all, ledger):
        result["health"] = checks
    if servers.discover:
        result["discover"] = servers.discover
    return result


# -- the choice of a server


def _scheduler(back: Proxy, ledger: Ledger) -> Document:
    line = back.last("balance")
    kind = line.word(1) if line else "roundrobin"
    plain, _, rest = kind.partition("(")
    hash_type, factor = back.last("hash-type"), back.last("hash-balance-factor")
    if kind in _SCHEDULERS:
        return {"scheduler": _SCHEDULERS[kind]}
    if line is None:
        return {}
    if kind == "source" or line.words[1:] == ("hash", "src"):
        if hash_type and hash_type.word(1) == "map-based":
            ledger.note(hash_type, "map-based: hashing is always consistent here")
        return {"scheduler": "source", "source_bound": _bound(factor, ledger)}
    if plain == "random":
        return _random(line, rest.removesuffix(")"), ledger)
    if kind == "first":
        ledger.note(line, "first: servers are not filled one after the other; least-load is used")
    else:
        ledger.note(line, f"{kind}: requests are not looked at; least-load is used, and a client "
                          "stays with its server with `source` or `affinity`")  # fmt: skip
    return {"scheduler": "least-load"}


def _random(line: Line, draws: str, ledger: Ledger) -> Document:
    try:
        count = whole(draws or "2", 1, 10**6)
    except UnfitError:
        count = 2
    if count < _FEWEST_DRAWS:
        return {"scheduler": "maglev"}
    if count > _MOST_DRAWS:
        ledger.note(line, f"random({count}): at most {_MOST_DRAWS} servers are compared")
    return {"scheduler": "least-load", "draws": min(count, _MOST_DRAWS)}


def _bound(factor: Line | None, ledger: Ledger) -> float | int:
    """Return by how much of its share a server is passed over; 0: never, as without a factor."""
    if factor is None:
        return 0
    try:
        percent = whole(factor.word(1), 0, 65535)
    except UnfitError as unfit:
        ledger.note(factor, f"hash-balance-factor: {unfit}")
        return 0
    return min(percent / 100, 100) if percent > 100 else 0


def _affinity(back: Proxy, result: Document, ledger: Ledger) -> None:
    """Change the scheduler to ``source`` where clients stick to servers by their addresses."""
    table = back.last("stick-table")
    for line in back.all("stick", own=True):
        words = [word for word in line.words[1:] if word not in ("on", "match", "store-request")]
        found = re.fullmatch(
            r"src(?:,ipmask\(([0-9]{1,2})(?:,([0-9]{1,3}))?\))?", words[0] if words else ""
        )
        if {"if", "unless"} & set(words):
            ledger.note(line, "stick: conditions are not evaluated")
        elif found is None or line.word(1) == "store-response":
            ledger.note(line, "stick: a client can only be known by its address")
        elif result.get("scheduler") != "source" or found[1]:
            was = result.get("scheduler")
            result.pop("draws", None)
            result |= {"scheduler": "source", "source_bound": 0}
            if found[1] and 1 <= int(found[1]) <= 32:
                result["source_prefix"] = int(found[1])
            if was != "source":
                ledger.note(
                    line,
                    f"stick: scheduler source instead of {was}: the client's address selects the "
                    "server, without a table; for engines, least-load with `affinity` may be "
                    "better",
                )
    if table is not None and result.get("scheduler") != "source":
        ledger.note(table, "stick-table: no table of clients is kept; `limits` count for each")


def _source(line: Line, words: Sequence[str], result: Document, ledger: Ledger) -> None:
    if "usesrc" in words:
        result["forward"] = "nat"
        ledger.note(
            line,
            "source … usesrc: forward nat, in which servers see the client's address, too; their "
            "way back to clients has to lead through the balancer",
        )
    else:
        ledger.note(line, "source: name the address in `nat.sources_ipv4` or `sources_ipv6`")


# -- the rest of a service


def _starts(servers: Servers, ledger: Ledger) -> Document:
    """Return how servers begin, and what becomes of the connections of those that fail."""
    result: Document = {}
    for each in servers.all:
        if word := each.params.get("slowstart"):
            try:
                result.setdefault("slow_start", written(min(seconds(word), 3600)))
            except UnfitError as unfit:
                ledger.note(each.line, f"slowstart: {unfit}")
        if each.params.get("on-marked-down") == "shutdown-sessions":
            result |= {"down_flows": "reset", "reset_after": "0s"}
    return result


def _agents(servers: Servers, ledger: Ledger) -> Document:
    for each in servers.all:
        if not each.takes("agent-check"):
            continue
        try:
            interval = min(max(seconds(each.params.get("agent-inter", "2s")), 0.05), 3600)
            port = whole(each.params.get("agent-port", ""), 1, 65535)
        except UnfitError as unfit:
            ledger.note(each.line, f"agent-check: {unfit}")
            continue
        return {"telemetry": {"type": "agent-check", "port": port, "interval": written(interval)}}
    return {}


def _idle_time(front: Proxy, back: Proxy, ledger: Ledger) -> Document:
    """Return how long a silent connection is kept, if that is longer than by default.

    In HAProxy `timeout tunnel` takes the place of the two others once data has passed.
    """
    given = [
        line for line in (front.last("timeout", "client"), back.last("timeout", "server")) if line
    ]
    if tunnel := back.last("timeout", "tunnel"):
        given = [tunnel]
    longest = 0.0
    for line in given:
        try:
            longest = max(longest, seconds(line.word(2)))
        except UnfitError as unfit:
            ledger.note(line, f"timeout: {unfit}")
    if longest > _LONGEST_S:
        ledger.note(given[0], f"timeout: a silent connection is kept for {written(_LONGEST_S)} at "
                              "most")  # fmt: skip
    if longest <= _ESTABLISHED_S:
        return {}
    return {"timeouts": {"established": written(min(longest, _LONGEST_S))}}


# -- the account


def _account(sections: Sequence[Section], used: Mapping[Section, bool], ledger: Ledger) -> None:
    """Account for every line that nothing has asked for."""
    any_http = any(used.values())
    for each in sections:
        ledger.take(each.head)
        if each.kind == "global":
            for line in each.body:
                ledger.rest(line, "global")
        elif each.kind in OTHERS:
            ledger.cover(each.body)
            ledger.note(each.head, f"{each.title}: not converted: {OTHERS[each.kind]}")
        elif each.kind in PROXIES and each not in used and not _left_out(each, ledger):
            ledger.cover(each.body)
            ledger.note(each.head, f"{each.title}: not converted, because no service leads to it")
        else:
            http = any_http if each.kind == "defaults" else used.get(each, False)
            for line in each.body:
                if not ledger.knows(line):
                    _explain(line, http, ledger)


def _left_out(section: Section, ledger: Ledger) -> bool:
    return any(note.line == section.head.line for note in ledger.notes)


def _explain(line: Line, http: bool, ledger: Ledger) -> None:
    is_idle, text = meaning(line, http)
    if is_idle:
        ledger.rest(line, text)
    else:
        ledger.note(line, text)
