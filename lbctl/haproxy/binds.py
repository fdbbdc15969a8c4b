"""Decides which addresses and ports of a frontend become services, and why others do not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from lbctl.haproxy.grammar import Line
from lbctl.haproxy.ledger import Ledger
from lbctl.haproxy.values import Endpoint, UnfitError, endpoint, loopback, parameters, whole

type Address = IPv4Address | IPv6Address

_TLS = frozenset({
    "alpn", "ca-file", "ca-ignore-err", "ca-sign-file", "ca-sign-pass", "ca-verify-file",
    "ciphers", "ciphersuites", "client-sigalgs", "crl-file", "crt", "crt-ignore-err", "crt-list",
    "default-crt", "curves", "ecdhe", "npn", "sigalgs", "ssl-max-ver", "ssl-min-ver",
    "tls-ticket-keys", "verify", "ocsp-update",
})  # fmt: skip
_WITH_VALUE = _TLS | {
    "accept-netscaler-cip", "backlog", "gid", "group", "guid-prefix", "id", "interface", "level",
    "maxconn", "mode", "mss", "name", "namespace", "nbconn", "nice", "proto", "process",
    "quic-cc-algo", "quic-socket", "severity-output", "shards", "tcp-ut", "thread", "uid", "user",
    "label", "idle-ping", "cc",
}  # fmt: skip
_FLAGS = frozenset({
    "accept-proxy", "allow-0rtt", "defer-accept", "force-sslv3", "force-tlsv10", "force-tlsv11",
    "force-tlsv12", "force-tlsv13", "generate-certificates", "prefer-client-ciphers",
    "quic-force-retry", "ssl", "strict-sni", "tfo", "transparent", "v4v6", "v6only", "tls-tickets",
})  # fmt: skip
# `expose-fd listeners` is two words.
_TWO = frozenset({"expose-fd"})
_NOTES = {
    "accept-proxy": "accept-proxy: the PROXY header of what is in front is passed on; the servers "
    "have to take it",
    "accept-netscaler-cip": "accept-netscaler-cip: the header is passed on; the servers have to "
    "take it",
    "maxconn": "maxconn: connections are not queued here; `limits` of the service refuse clients",
    "namespace": "namespace: the agent works in one network namespace",
}
ENDS_TLS = (
    "TLS ends at HAProxy here, and a layer-4 balancer cannot end it: give the servers the "
    "certificate and balance their TLS port, or keep HAProxy for this port, behind a service"
)


@dataclass(frozen=True, slots=True)
class Listening:
    """An address with a port, or a range of ports, to which clients connect."""

    line: Line
    vip: Address
    first: int
    last: int

    @property
    def port(self) -> int | str:
        """The port as our configuration has it."""
        return self.first if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Site:
    """What the file cannot say: where clients' packets come in, and the addresses they go to."""

    interface: str | None = None
    vips: tuple[Address, ...] = ()


def listenings(lines: Sequence[Line], site: Site, ledger: Ledger) -> list[Listening]:
    """Return where the bind lines of a proxy listen, each address and port once."""
    found: dict[tuple[Address, int, int], Listening] = {}
    for line in lines:
        params = _parameters(line, ledger)
        if "ssl" in params:
            ledger.lose(line, ENDS_TLS)
            continue
        for word in line.word(1).split(","):
            try:
                for each in _listenings(line, word, "v6only" in params, site):
                    found.setdefault((each.vip, each.first, each.last), each)
            except UnfitError as unfit:
                ledger.lose(line, f"{word or 'bind'}: {unfit}")
    return list(found.values())


def interface_of(lines: Sequence[Line], ledger: Ledger) -> str | None:
    """Return the interface that one of the bind lines names."""
    for line in lines:
        name = _parameters(line, ledger).get("interface", "")
        if re.fullmatch(r"[\x21-\x7e]{1,15}", name):
            return name
    return None


def _parameters(line: Line, ledger: Ledger) -> dict[str, str]:
    words = [word for word in line.words[2:] if word != "listeners"]
    found = dict(parameters(words, _WITH_VALUE, _FLAGS | _TWO))
    for name, value in found.items():
        if value == "?":
            ledger.note(line, f"{name}: not known here")
        elif name in _NOTES:
            ledger.note(line, _NOTES[name])
    return found


def _listenings(line: Line, word: str, v6only: bool, site: Site) -> Iterator[Listening]:
    where = endpoint(word)
    low, _, high = where.port.partition("-")
    if not where.port:
        raise UnfitError("it has no port")
    first = whole(low, 1, 65535)
    last = whole(high, first, 65535) if high else first
    for vip in _vips(where, v6only, site):
        yield Listening(line, vip, first, last)


def _vips(where: Endpoint, v6only: bool, site: Site) -> list[Address]:
    if where.host:
        if where.address is None:
            raise UnfitError(f"{where.host} is a name: write its address")
        if loopback(where):
            raise UnfitError("an address of the loopback interface, to which only this host comes")
        return [where.address]
    # Linux lets a socket of :: have IPv4, too, unless it says v6only.
    families = {4} if where.family == 4 else {6} if v6only else {4, 6}
    chosen = [vip for vip in site.vips if vip.version in families]
    if not chosen:
        every = " or ".join(f"IPv{family}" for family in sorted(families))
        raise UnfitError(
            f"HAProxy listens on every {every} address of its host here; say with --vip which "
            "one clients connect to"
        )
    return chosen
