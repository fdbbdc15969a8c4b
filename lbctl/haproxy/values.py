"""Reads HAProxy's values: times, addresses with ports, and the parameters of bind and server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from agent.config.durations import format_duration

_TIME = re.compile(r"([0-9]{1,12})(us|ms|s|m|h|d)?")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NO_PACKETS = {
    "unix@": "a socket of this host, to which no packets come",
    "abns@": "a socket of this host, to which no packets come",
    "abnsz@": "a socket of this host, to which no packets come",
    "fd@": "a file descriptor, to which no packets come",
    "sockpair@": "a file descriptor, to which no packets come",
    "rhttp@": "a reversed connection, which needs a proxy",
    "quic4@": "QUIC ends at HAProxy here: let the servers speak QUIC, and add a service with "
    "`protocol: udp`",
    "quic6@": "QUIC ends at HAProxy here: let the servers speak QUIC, and add a service with "
    "`protocol: udp`",
    "udp@": "only log messages come to it",
    "udp4@": "only log messages come to it",
    "udp6@": "only log messages come to it",
}


class UnfitError(Exception):
    """A value that has no counterpart here; the message is the reason."""


def seconds(word: str) -> float:
    """Return a time, in milliseconds unless it has a unit. Raises UnfitError."""
    found = _TIME.fullmatch(word)
    if found is None:
        raise UnfitError(f"{word!r} is not a time")
    return int(found[1]) * _UNITS[found[2] or "ms"]


def written(value_s: float) -> str:
    """Return a time as our configuration has it, to the millisecond."""
    return str(format_duration(round(value_s, 3)))


def whole(word: str, low: int, high: int) -> int:
    """Return a whole number within the bounds. Raises UnfitError."""
    if not re.fullmatch(r"[0-9]{1,9}", word) or not low <= int(word) <= high:
        raise UnfitError(f"{word!r} is not a number from {low} to {high}")
    return int(word)


def name_of(word: str, fallback: str = "unnamed") -> str:
    """Return a name as ours may be: HAProxy's also have capital letters and colons."""
    return re.sub(r"[^a-z0-9._-]", "-", word.lower()).lstrip("._-")[:56] or fallback


def unique(name: str, taken: set[str]) -> str:
    """Return the name, with a number if it is taken, and take it."""
    number, made = 1, name
    while made in taken:
        number += 1
        made = f"{name}-{number}"
    taken.add(made)
    return made


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port. ``host`` is empty for every address of ``family`` (4, 6, or 0: both).

    ``port`` is as it was written: a number, a range, an offset such as ``+1``, or empty.
    """

    host: str
    port: str
    family: int = 4

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The address; None if there is none, or if it is a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def endpoint(word: str) -> Endpoint:
    """Return what ``ADDRESS:PORT`` means, for bind and server alike. Raises UnfitError."""
    family = 0
    if word.startswith("/"):
        raise UnfitError(_NO_PACKETS["unix@"])
    prefix, at, rest = word.partition("@")
    if at:
        if prefix in ("ipv4", "ipv6", "tcp4", "tcp6", "tcp"):
            family, word = {"4": 4, "6": 6}.get(prefix[-1], 0), rest
        else:
            raise UnfitError(_NO_PACKETS.get(prefix + at, f"{prefix}@ is not known here"))
    host, colon, port = word.rpartition(":")
    if not colon or word.endswith("]"):
        host, port = word, ""
    host = host.removeprefix("[").removesuffix("]")
    if host in ("", "*", "0.0.0.0"):
        return Endpoint("", port, 6 if family == 6 else 4)
    if host == "::":
        return Endpoint("", port, 6)
    if "%" in host:
        raise UnfitError("a link-local address, which clients beyond the segment cannot use")
    return Endpoint(host, port, 6 if ":" in host else family or 4)


def loopback(where: Endpoint) -> bool:
    """Return whether an address is this host's own, which no packets of others come to."""
    own = where.address
    return where.host.lower() == "localhost" or (own is not None and own.is_loopback)


def parameters(
    words: Sequence[str], with_value: frozenset[str], flags: frozenset[str]
) -> Iterator[tuple[str, str]]:
    """Yield the parameters of a bind or server line with their values (empty for flags).

    A word that is not known is yielded with the value ``?``. Likewise a parameter that lacks its
    value.
    """
    at = 0
    while at < len(words):
        name = words[at]
        plain = name.partition("(")[0]
        at += 1
        if plain in with_value:
            yield plain, words[at] if at < len(words) else "?"
            at += 1
        elif name in flags or name.startswith("no-"):
            yield name, ""
        else:
            yield name, "?"


def merged(given: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that hold: ``no-check`` takes back ``check``."""
    held: dict[str, str] = {}
    for name, value in given.items():
        if name.startswith("no-") and not value:
            held.pop(name.removeprefix("no-"), None)
        else:
            held[name] = value
    return held
