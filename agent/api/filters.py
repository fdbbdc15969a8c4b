"""Decides which events a filter lets through; ``tracefilter`` parses filters from text.

All functions are pure. Parsing the text of a filter gives an equivalent filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol, override

from agent.model import Address
from agent.state.events import Event

ENDS = ("src", "dst")
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}
FAMILIES = {"ip": 4, "ip6": 6}
NAMES = ("service", "backend", "reason")


class Filter(Protocol):
    """A test of events."""

    def matches(self, event: Event) -> bool:
        """Return whether the event is let through."""
        ...


@dataclass(frozen=True, slots=True)
class Network:
    """``[src|dst] net``, or ``host``, which is a network of one address."""

    network: IPv4Network | IPv6Network
    end: str | None = None  # one of ENDS; None means either

    def matches(self, event: Event) -> bool:
        return any(address in self.network for address, _ in _ends(event, self.end))

    @override
    def __str__(self) -> str:
        if self.network.prefixlen == self.network.max_prefixlen:
            return _with_end(self.end, f"host {self.network.network_address}")
        return _with_end(self.end, f"net {self.network}")


@dataclass(frozen=True, slots=True)
class PortRange:
    """``[src|dst] portrange``, or ``port``, which is a range of one port."""

    first: int
    last: int
    end: str | None = None

    def matches(self, event: Event) -> bool:
        return any(
            port is not None and self.first <= port <= self.last
            for _, port in _ends(event, self.end)
        )

    @override
    def __str__(self) -> str:
        if self.first == self.last:
            return _with_end(self.end, f"port {self.first}")
        return _with_end(self.end, f"portrange {self.first}-{self.last}")


@dataclass(frozen=True, slots=True)
class Proto:
    """``tcp``, ``udp``, ``icmp``, ``icmp6``, ``ip`` or ``ip6``."""

    word: str

    def matches(self, event: Event) -> bool:
        if self.word in FAMILIES:
            return event.client.version == FAMILIES[self.word]
        return event.protocol == PROTOCOLS[self.word]

    @override
    def __str__(self) -> str:
        return self.word


@dataclass(frozen=True, slots=True)
class Name:
    """``service``, ``backend`` (of any service, or SERVICE/BACKEND) or ``reason``."""

    word: str  # one of NAMES
    name: str

    def matches(self, event: Event) -> bool:
        if self.word == "service":
            return event.service == self.name
        if self.word == "reason":
            return event.reason == self.name
        service, _, backend = self.name.rpartition("/")
        return event.backend == backend and service in ("", event.service)

    @override
    def __str__(self) -> str:
        return f"{self.word} {self.name}"


@dataclass(frozen=True, slots=True)
class Not:
    """Lets through the events that the inner filter does not."""

    inner: Filter

    def matches(self, event: Event) -> bool:
        return not self.inner.matches(event)

    @override
    def __str__(self) -> str:
        return f"not {_grouped(self.inner)}"


@dataclass(frozen=True, slots=True)
class And:
    """Lets through the events that both filters let through."""

    left: Filter
    right: Filter

    def matches(self, event: Event) -> bool:
        return self.left.matches(event) and self.right.matches(event)

    @override
    def __str__(self) -> str:
        return f"{self.left} and {_grouped(self.right)}"


@dataclass(frozen=True, slots=True)
class Or:
    """Lets through the events that at least one of the two filters lets through."""

    left: Filter
    right: Filter

    def matches(self, event: Event) -> bool:
        return self.left.matches(event) or self.right.matches(event)

    @override
    def __str__(self) -> str:
        return f"{self.left} or {_grouped(self.right)}"


def _with_end(end: str | None, rest: str) -> str:
    return f"{end} {rest}" if end else rest


def _grouped(inner: Filter) -> str:
    return f"({inner})" if isinstance(inner, And | Or) else str(inner)


def _ends(event: Event, end: str | None) -> Iterator[tuple[Address, int | None]]:
    if end != "dst":
        yield event.source
    if end != "src":
        yield event.destination


def names(expression: Filter, word: str) -> frozenset[str]:
    """Return every name that the expression gives for ``word`` (one of NAMES)."""
    match expression:
        case Name():
            return frozenset({expression.name} if expression.word == word else ())
        case Not():
            return names(expression.inner, word)
        case And() | Or():
            return names(expression.left, word) | names(expression.right, word)
    return frozenset()


def only_service(expression: Filter) -> str | None:
    """Return the only service whose events the expression can let through, or None."""
    match expression:
        case Name(word="service"):
            return expression.name
        case Name(word="backend"):
            return expression.name.rpartition("/")[0] or None
        case And():
            return only_service(expression.left) or only_service(expression.right)
        case Or():
            left = only_service(expression.left)
            return left if left == only_service(expression.right) else None
    return None
