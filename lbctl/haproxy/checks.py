"""Decides how the backends of a service are checked, by what a HAProxy backend does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lbctl.converted import Document
from lbctl.haproxy.grammar import Line
from lbctl.haproxy.ledger import Ledger
from lbctl.haproxy.sections import Proxy
from lbctl.haproxy.servers import Server
from lbctl.haproxy.values import UnfitError, seconds, whole, written

_LONGEST_S, _SHORTEST_S, _SHORTEST_TIMEOUT_S = 3600.0, 0.1, 0.01
_CONTENT = "the content of an answer is not compared"
# Options that choose the kind of check; the last of them counts.
_KINDS = {
    "httpchk": "",
    "tcp-check": "",
    "redis-check": "",
    "ssl-hello-chk": "ssl-hello-chk: no TLS is spoken, only a connection opened; "
    "`type: https` with `verify_tls: false` asks more",
    "smtpchk": "smtpchk: the server's greeting is waited for, nothing else",
    "mysql-check": "mysql-check: only a connection is opened",
    "pgsql-check": "pgsql-check: only a connection is opened",
    "ldap-check": "ldap-check: only a connection is opened",
    "spop-check": "spop-check: only a connection is opened",
    "external-check": "external-check: only a connection is opened; `type: exec` runs a command, "
    "which finds the server in STEELYARD_ADDRESS and STEELYARD_PORT",
}
_OF_A_RULE = frozenset({
    "comment", "min-recv", "ok-status", "error-status", "tout-status", "on-success", "on-error",
    "status-code",
})  # fmt: skip
_MISPLACED = {
    "http-check": "http-check: it counts only with `option httpchk`, which is not on here",
    "tcp-check": "tcp-check: it counts only with `option tcp-check`, which is not on here",
}


def health(proxy: Proxy, servers: Sequence[Server], ledger: Ledger) -> Document:
    """Return the check of a backend's servers: that of the first one that is checked."""
    checked = [each for each in servers if each.takes("check")]
    kind, rules = _kind(proxy, ledger)
    if not checked:
        return {"type": "none"} if servers else {}
    first = checked[0]
    for other in servers:
        if not other.takes("check"):
            ledger.note(other.line, "it is checked, as the other servers of its service are")
        elif _facts(other) != _facts(first):
            ledger.note(
                other.line,
                f"a service has one check: that of {first.name} (inter, rise, fall, port) is used",
            )
    return _asks(kind, rules, first, ledger) | _times(proxy, first, ledger)


def _facts(server: Server) -> list[str | None]:
    return [server.params.get(name) for name in ("inter", "rise", "fall", "port", "check-ssl")]


def _kind(proxy: Proxy, ledger: Ledger) -> tuple[Line | None, list[Line]]:
    """Return the option that chooses the check, and the rules that belong to it."""
    kind: Line | None = None
    for line in proxy.lines:
        if line.name != "option" or line.word(1) not in _KINDS or not ledger.usable(line):
            continue
        if not line.off:
            kind = line
        elif kind is not None and kind.word(1) == line.word(1):
            kind = None
    for line in proxy.all("external-check"):
        ledger.note(line, _KINDS["external-check"])
    family = {"httpchk": "http-check", "tcp-check": "tcp-check"}.get(kind.word(1) if kind else "")
    rules: list[Line] = []
    for name, text in _MISPLACED.items():
        # A backend's own rules take the place of those in its defaults.
        found = proxy.all(name, own=True) or proxy.all(name)
        if name == family:
            rules = found
        else:
            for line in found:
                ledger.note(line, text)
    return kind, rules


def _asks(kind: Line | None, rules: Sequence[Line], first: Server, ledger: Ledger) -> Document:
    """Return what a check asks the server for."""
    result: Document = {"type": "tcp"}
    match kind.word(1) if kind else "":
        case "httpchk":
            assert kind is not None  # noqa: S101 (it has a word)
            result = _http(kind, rules, first, ledger)
        case "tcp-check":
            result |= _tcp(rules, ledger)
        case "redis-check":
            result |= {"send": "PING\r\n", "expect": "+PONG"}
        case "smtpchk":
            result |= {"expect": "220"}
    if kind is not None and (text := _KINDS[kind.word(1)]):
        ledger.note(kind, text)
    if first.takes("check-ssl") and result["type"] == "tcp":
        ledger.note(first.line, "check-ssl: no TLS is spoken, only a connection opened")
    if port := first.params.get("port"):
        try:
            result["port"] = whole(port, 1, 65535)
        except UnfitError as unfit:
            ledger.note(first.line, f"port: {unfit}")
    return result


# -- HTTP


def _http(kind: Line, rules: Sequence[Line], first: Server, ledger: Ledger) -> Document:
    words = kind.words[2:]
    method, path = "OPTIONS", "/"
    if len(words) == 1:
        path = words[0]
    elif words:
        method, path = words[:2]
    result: Document = {"type": "https" if first.takes("check-ssl") else "http"}
    asked: Document = {"method": method, "path": path}
    if host := re.search(r"\r?\nHost: *(\S+)", " ".join(words[2:]), re.IGNORECASE):
        asked["host"] = host[1]  # as it was written before `http-check send`
    connects = [line for line in rules if line.word(1) == "connect"]
    for line in rules:
        _http_rule(line, asked, result, ledger)
    if len(connects) > 1:
        ledger.note(connects[1], "only what follows the first `connect` is asked for")
    if result["type"] == "https":
        result["verify_tls"] = first.params.get("verify", "") == "required"
        if sni := first.params.get("check-sni"):
            asked.setdefault("host", sni)
    return result | _request(kind, asked, ledger)


def _request(kind: Line, asked: Document, ledger: Ledger) -> Document:
    """Return the parts of a request that can be sent as they are."""
    forms = {"method": r"[A-Z]{1,16}", "path": r"/[\x21-\x7e]{0,1023}",
             "host": r"[A-Za-z0-9.:_\[\]-]{1,255}"}  # fmt: skip
    found: Document = {}
    for name, form in forms.items():
        value = str(asked.get(name, ""))
        if re.fullmatch(form, value):
            found[name] = value
        elif value:
            ledger.note(kind, f"{name} {value!a} cannot be asked for: the default is used")
    return found


def _http_rule(line: Line, asked: Document, result: Document, ledger: Ledger) -> None:
    match line.word(1):
        case "send":
            _sent(line, asked, ledger)
        case "expect":
            _http_expected(line, result, ledger)
        case "connect":
            _connect(line, result, ledger)
            if "ssl" in line.words:
                result["type"] = "https"
            if "sni" in line.words[:-1]:
                asked.setdefault("host", line.words[line.words.index("sni") + 1])
        case "comment" | "send-state" | "set-var" | "unset-var" | "set-var-fmt":
            pass
        case "disable-on-404":
            ledger.note(
                line,
                "disable-on-404: 404 is a failure; a server that wants no new connections says so "
                "by an agent check, or its check fails",
            )
        case other:
            plain = other.partition("(")[0]
            if plain not in ("set-var", "unset-var", "set-var-fmt"):
                ledger.note(line, f"http-check {other}: not known here")


def _sent(line: Line, asked: Document, ledger: Ledger) -> None:
    words = list(line.words[2:])
    while words:
        name = words.pop(0)
        value = words.pop(0) if words else ""
        match name:
            case "meth":
                asked["method"] = value
            case "uri":
                asked["path"] = value
            case "hdr":
                content = words.pop(0) if words else ""
                if value.lower() == "host":
                    asked["host"] = content
                else:
                    ledger.note(line, f"hdr {value}: only Host can be chosen")
            case "ver" | "comment":
                pass
            case _:
                ledger.note(line, f"{name}: checks send a path, a method and a host, no more")


def _connect(line: Line, result: Document, ledger: Ledger) -> None:
    words = line.words
    for name in ("addr", "send-proxy", "via-socks4", "alpn", "proto"):
        if name in words:
            ledger.note(line, f"{name}: checks go straight to the server's own address")
    if "port" in words[:-1]:
        port = words[words.index("port") + 1]
        try:
            result.setdefault("port", whole(port, 1, 65535))
        except UnfitError as unfit:
            ledger.note(line, f"port: {unfit}")


@dataclass(slots=True)
class _Expected:
    """The match of an ``expect`` rule."""

    kind: str
    pattern: str
    negated: bool


def _expected(line: Line) -> _Expected:
    words = list(line.words[2:])
    negated = False
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
        elif word.partition("(")[0] in _OF_A_RULE:
            words = words[1:]
        else:
            return _Expected(word.removeprefix("!"), " ".join(words), negated or word[0:1] == "!")
    return _Expected("", "", negated)


def _http_expected(line: Line, result: Document, ledger: Ledger) -> None:
    match = _expected(line)
    codes = [code for code in match.pattern.replace(" ", ",").split(",") if code]
    fits = all(re.fullmatch(r"[1-5][0-9]{2}(-[1-5][0-9]{2})?", code) for code in codes)
    if match.kind == "status" and codes and fits and not match.negated:
        expected = [int(code) if code.isdecimal() else code for code in codes]
        result["expect_status"] = expected[0] if len(expected) == 1 else expected
    elif match.kind in ("status", "rstatus"):
        ledger.note(line, f"expect {match.kind}: write the statuses as `expect_status`, "
                          "such as 200-299; 200 to 399 pass now")  # fmt: skip
    else:
        ledger.note(line, f"expect {match.kind}: {_CONTENT}; the status decides")


# -- TCP


@dataclass(slots=True)
class _Talk:
    """What a check sends, and the answer that it waits for."""

    sent: bytes = b""
    expected: bytes | None = None
    over: bool = False
    late: list[Line] = field(default_factory=list)


def _tcp(rules: Sequence[Line], ledger: Ledger) -> Document:
    """Return the first thing that is sent, and the first answer that is expected."""
    talk = _Talk()
    result: Document = {}
    connects = 0
    for line in rules:
        match line.word(1):
            case "connect":
                connects += 1
                if connects > 1:
                    talk.over = True
                    talk.late.append(line)
                else:
                    _connect(line, result, ledger)
                    if "ssl" in line.words:
                        ledger.note(line, "ssl: no TLS is spoken, only a connection opened")
            case "send" | "send-binary" | "expect":
                _say(line, talk, ledger)
            case other:
                if other.partition("(")[0] not in ("comment", "set-var", "unset-var"):
                    ledger.note(line, f"tcp-check {other}: not sent")
    for line in talk.late:
        ledger.note(line, "a check sends once and waits for one answer: the first are used")
    if talk.sent:
        result["send"] = _payload(talk.sent)
    if talk.expected is not None:
        result["expect"] = _payload(talk.expected)
    return result


def _say(line: Line, talk: _Talk, ledger: Ledger) -> None:
    if talk.over or (talk.expected is not None):
        talk.late.append(line)
        return
    try:
        if line.word(1) != "expect":
            is_text = line.word(1) == "send"
            talk.sent += _bytes(line.word(2), is_text)
            return
        match = _expected(line)
        if match.kind not in ("string", "binary") or match.negated:
            how = f"! {match.kind}" if match.negated else match.kind
            ledger.note(line, f"expect {how}: an answer can only be searched for a text or bytes")
            talk.over = True
        else:
            talk.expected = _bytes(match.pattern, match.kind == "string")
    except UnfitError as unfit:
        ledger.note(line, str(unfit))
        talk.over = True


def _bytes(word: str, is_text: bool) -> bytes:
    if not is_text and not re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", word):
        raise UnfitError(f"{word!a} is not hexadecimal")
    found = word.encode("utf-8", "surrogateescape") if is_text else bytes.fromhex(word)
    if len(found) > 1200:
        raise UnfitError("a check sends and searches for at most 1200 bytes")
    return found


def _payload(data: bytes) -> str:
    """Return bytes as our configuration has them: as text where that is possible."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    plain = all(char.isprintable() or char in "\r\n\t" for char in text)
    return text if text and plain and not text.startswith("hex:") else f"hex:{data.hex()}"


# -- when


def _times(proxy: Proxy, first: Server, ledger: Ledger) -> Document:
    interval = _within(first.line, "inter", first.params.get("inter", "2s"), ledger)
    limit = interval
    if line := proxy.last("timeout", "check"):
        limit = _within(line, "timeout check", line.word(2), ledger, _SHORTEST_TIMEOUT_S)
        if limit > interval:
            ledger.note(line, "timeout check: a check ends before the next one begins, so its "
                              f"timeout is {written(interval)}")  # fmt: skip
    result: Document = {"interval": written(interval), "timeout": written(min(limit, interval))}
    return result | dict(_counts(first, ledger))


def _counts(first: Server, ledger: Ledger) -> Iterator[tuple[str, object]]:
    for name, default in (("rise", 2), ("fall", 3)):
        try:
            yield name, whole(first.params.get(name, str(default)), 1, 100)
        except UnfitError as unfit:
            ledger.note(first.line, f"{name}: {unfit}")


def _within(
    line: Line, name: str, word: str, ledger: Ledger, shortest_s: float = _SHORTEST_S
) -> float:
    """Return a time within what a check can have; 2 s if it is none."""
    try:
        given = seconds(word)
    except UnfitError as unfit:
        ledger.note(line, f"{name}: {unfit}")
        return 2.0
    fit = min(max(given, shortest_s), _LONGEST_S)
    if fit != given:
        ledger.note(
            line, f"{name}: {word} becomes {written(fit)}, the nearest that a check can have"
        )
    return fit
