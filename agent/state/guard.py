"""Decides the nftables rules that drop packets of flows that only the XDP program knows.

If the program does not take a packet for a VIP, the packet reaches this host's own stack, which
has no socket for it and answers with a reset. These rules drop it instead, so a moment without
the program costs a retransmission rather than the connection. They also drop what a backend
answers to a health check through the VIP: the agent has read that answer already, and a reset
could go to another balancer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from agent.model import ANY_PORT, Address, Backend, Config, Forward, Network, Service
from agent.state.way import FIRST_PORT, LAST_PORT, has_way

type Json = dict[str, Any]

FAMILY = "inet"
_LAST_PORT = 65_535
# Ahead of any firewall's rules, which could answer with a reset as well.
_PRIORITY = -160


@dataclass(frozen=True, slots=True)
class End:
    """One end of flows: addresses, protocol, and a range of ports."""

    network: Network
    protocol: str
    first: int
    last: int

    @property
    def is_exact(self) -> bool:
        """Whether it is one address and one port, as most are, so that a set lookup will do."""
        return self.network.num_addresses == 1 and self.first == self.last


def table_name(instance: str) -> str:
    """Return the name of an instance's nftables table."""
    return f"steelyard-{instance}"


def removal(table: str) -> list[Json]:
    """Return the commands that remove the table, whether or not it exists."""
    named = {"table": {"family": FAMILY, "name": table}}
    return [{"add": named}, {"delete": named}]


def ruleset(table: str, config: Config) -> list[Json]:
    """Return the commands that replace the previous table by the one for this configuration."""
    named = {"family": FAMILY, "table": table}
    hook = {"type": "filter", "hook": "input", "prio": _PRIORITY, "policy": "accept"}
    served = _sorted(_served(service) for service in config.services)
    answers = _sorted(
        _answers(service, backend)
        for service in config.services
        if service.forward is Forward.FULLNAT
        for backend in service.backends
    )
    asked = _sorted(_served(service) for service in config.services if has_way(service))
    ports = _between("dport", config.nat.first_port, config.nat.last_port)
    checks = _between("dport", FIRST_PORT, LAST_PORT)
    return [
        *removal(table),
        {"add": {"table": {"family": FAMILY, "name": table}}},
        *_sets(named, "served", served),
        *_sets(named, "answers", answers),
        {"add": {"chain": named | {"name": "unheard"}}},
        # The host's own flows have a socket: health checks, and servers that listen here.
        _rule(named, "unheard", _has_socket(), {"return": None}),
        _rule(named, "unheard", {"counter": None}, {"drop": None}),
        {"add": {"chain": named | {"name": "input"} | hook}},
        # A client on this host itself is refused at once.
        _rule(named, "input", _is(_meta("iifname"), "lo"), {"return": None}),
        *_lookups(named, "served", served, "daddr", "dport", []),
        *_lookups(named, "answers", answers, "saddr", "sport", [ports]),
        *_lookups(named, "served", asked, "saddr", "sport", [checks]),
    ]


def _served(service: Service) -> End:
    key = service.key
    network = ip_network((key.vip, key.vip_bits or key.vip.max_prefixlen))
    first, last = (0, _LAST_PORT) if key.port == ANY_PORT else (key.port, key.port_last or key.port)
    return End(network, key.protocol.value, first, last)


def _answers(service: Service, backend: Backend) -> End:
    """Return the end from which a ``fullnat`` backend sends its answers."""
    served = _served(service)
    first, last = (backend.port,) * 2 if backend.port else (served.first, served.last)
    return End(_host(backend.address), served.protocol, first, last)


def _host(address: Address) -> Network:
    return ip_network((address, address.max_prefixlen))


def _sorted(ends: Iterable[End]) -> list[End]:
    """Remove duplicates and sort, so that the same configuration always gives the same rules."""
    return sorted(
        set(ends),
        key=lambda end: (
            end.network.version,
            int(end.network.network_address),
            end.network.prefixlen,
            end.protocol,
            end.first,
            end.last,
        ),
    )


def _sets(named: Json, name: str, ends: list[End]) -> Iterator[Json]:
    for version in (4, 6):
        elements = [
            {"concat": [str(end.network.network_address), end.protocol, end.first]}
            for end in ends
            if end.is_exact and end.network.version == version
        ]
        if elements:
            kind = [f"ipv{version}_addr", "inet_proto", "inet_service"]
            yield {
                "add": {"set": named | {"name": f"{name}{version}", "type": kind, "elem": elements}}
            }


def _lookups(
    named: Json, name: str, ends: list[End], address: str, port: str, more: list[Json]
) -> Iterator[Json]:
    """Yield the rules that send matching packets to the chain ``unheard``, which decides."""
    decide = ({"counter": None}, {"goto": {"target": "unheard"}})
    for version in sorted({end.network.version for end in ends if end.is_exact}):
        fields = [_address(version, address), _meta("l4proto"), _port(port)]
        yield _rule(named, "input", _is({"concat": fields}, f"@{name}{version}"), *more, *decide)
    for end in ends:
        if not end.is_exact:
            network = end.network
            prefix = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
            yield _rule(
                named,
                "input",
                _is(_address(network.version, address), prefix),
                _is(_meta("l4proto"), end.protocol),
                _between(port, end.first, end.last),
                *more,
                *decide,
            )


def _rule(named: Json, chain: str, *expr: Json) -> Json:
    return {"add": {"rule": named | {"chain": chain, "expr": list(expr)}}}


def _address(version: int, field: str) -> Json:
    return {"payload": {"protocol": "ip" if version == 4 else "ip6", "field": field}}


def _port(field: str) -> Json:
    return {"payload": {"protocol": "th", "field": field}}


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _is(left: Json, right: object) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _between(field: str, first: int, last: int) -> Json:
    return _is(_port(field), {"range": [first, last]})


def _has_socket() -> Json:
    # The value is 0 or 1 for every socket, so the match fails only if there is no socket.
    return {"match": {"op": "<=", "left": {"socket": {"key": "transparent"}}, "right": 1}}
