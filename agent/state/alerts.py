"""Decides which alerts of Suricata block their source. Pure.

Suricata writes an alert as a line of JSON (EVE, as of Suricata 7), and sees whatever reaches the
interface, forged packets too. It follows the sequence numbers of connections, but a signature that
looks at single packets also fires for a forged packet that belongs to no connection, or that has
the addresses and ports of one and wrong sequence numbers. Blocking its source would do what the
attacker wants. So two things must hold before an alert blocks:

- It is about a *transaction* (`tx_id`), a request that Suricata has put together from segments
  whose numbers fit, and that it has not merely guessed (`tx_guessed`).
- The flow table has the connection, of a service that records a connection only once the client has
  acknowledged what the server sent there (`threats.is_proven`).

Where a proxy that the operator has named sends the request, it has proved nothing about its client,
but it is believed (`X-Forwarded-For`).
"""

from __future__ import annotations

import enum
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from agent.model import ANY_PORT, Address, Config, Network, Protocol, Service, Suricata
from agent.state.blocks import Block
from agent.state.queries import FiveTuple
from agent.state.threats import is_proven

FEWEST = 5  # sources that may be blocked however few are active
MOST_RECENT = 50  # kinds of alerts that are shown
_LONGEST = 160  # characters of a signature's text
_WHY = "suricata: "


class Outcome(enum.Enum):
    """What became of an alert.

    ``BLOCKED``: its source is blocked, by this alert or an earlier one. ``LOGGED``: the
    configuration wants no block. ``UNPROVEN``: somebody else may have sent it. ``SPARED``: its
    source is trusted, ours or a proxy. ``BOUNDED``: as many sources as allowed are blocked.
    ``FAILED``: its source was to be blocked, and that did not work.
    """

    BLOCKED = "blocked"
    LOGGED = "logged"
    UNPROVEN = "unproven"
    SPARED = "spared"
    BOUNDED = "bounded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. ``client`` has opened the connection to ``server``, whoever sent the packet.

    ``forwarded_for``: the last address in the request's `X-Forwarded-For`. ``is_request``: it is
    about a request that Suricata has put together in a TCP connection.
    """

    signature: int
    text: str
    severity: int
    client: Address
    client_port: int
    server: Address
    server_port: int
    forwarded_for: Address | None = None
    is_request: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """The alerts of one signature with the same outcome; ``last``: Unix time of the last one, and
    ``source`` and ``server`` are of that one, too.
    """

    signature: int
    text: str
    severity: int
    outcome: Outcome
    source: Address
    server: str
    count: int
    last: float


type SeenKey = tuple[int, Outcome]


def read(line: bytes) -> Alert | None:
    """Return the alert in a line of Suricata's; None if the line is about something else.

    Raises ValueError if the line is none of Suricata's.
    """
    if b'"alert"' not in line:  # most lines are about flows and requests, if these are on
        if not line.startswith(b"{"):
            raise ValueError("no JSON object")
        return None
    try:
        event = json.loads(line)
        return _alert(event) if event["event_type"] == "alert" else None
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no event of Suricata: {error}") from error


def _alert(event: Mapping[str, Any]) -> Alert | None:
    about = event["alert"]
    severity, signature = about["severity"], about["signature_id"]
    if not (_is_whole(severity, 255) and _is_whole(signature, 2**32 - 1)):
        raise ValueError("no severity or signature")
    flow = event.get("flow", {})
    ends = flow if "src_ip" in flow and "src_port" in flow else event
    if "src_port" not in ends:  # ICMP, and fragments
        ends = {**ends, "src_port": 0, "dest_port": 0}
    ports = ends["src_port"], ends["dest_port"]
    if not all(_is_whole(port, 65535) for port in ports):
        raise ValueError("no ports")
    return Alert(
        signature=signature,
        text=_plain(about["signature"]),
        severity=severity,
        client=ip_address(str(ends["src_ip"])),
        client_port=ports[0],
        server=ip_address(str(ends["dest_ip"])),
        server_port=ports[1],
        forwarded_for=_named(about.get("xff")),
        is_request=event.get("proto") == "TCP"
        and "tx_id" in event
        and not event.get("tx_guessed", False),
    )


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _plain(text: str) -> str:
    """Return a text that does nothing to a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text[:_LONGEST])


def _named(xff: object) -> Address | None:
    """Return the address that a proxy has named; None if what a client may have written is none."""
    try:
        found = ip_address(str(xff))
    except ValueError:
        return None
    # Proxies that listen for both families on one socket write ::ffff:192.0.2.1.
    return getattr(found, "ipv4_mapped", None) or found


class Connections:
    """Which services a connection may belong to, as seen on either side of the balancer.

    On the way to a backend behind NAT, a packet has the backend's address instead of the VIP.
    """

    def __init__(self, config: Config) -> None:
        self._services: dict[Address, list[Service]] = defaultdict(list)
        self._backends: dict[tuple[Address, int], list[Service]] = defaultdict(list)
        self._prefixes = [s for s in config.services if s.key.vip_bits is not None]
        for service in config.services:
            key = service.key
            if key.vip_bits is None:
                self._services[key.vip].append(service)
            if key.vip_bits is None and key.port_last is None and key.port != ANY_PORT:
                for backend in service.backends:
                    end = backend.address, backend.port or key.port
                    self._backends[end].append(service)
        nat = config.nat
        backends = {backend.address for s in config.services for backend in s.backends}
        own = {*self._services, *backends, *nat.sources_v4, *nat.sources_v6}
        self.own: Collection[Network] = {_source(each) for each in own}

    def of(self, alert: Alert) -> list[tuple[Service, FiveTuple]]:
        """Return the services to which the alert's connection may go, and its 5-tuple there."""
        to_vip = [
            (service, service.key.vip if service.key.vip_bits is None else alert.server)
            for service in (*self._services.get(alert.server, ()), *self._prefixes)
            if service.key.holds(alert.server) and _has(service, alert.server_port)
        ]
        to_backend = self._backends.get((alert.server, alert.server_port), ())
        ends = [(service, vip, alert.server_port) for service, vip in to_vip]
        ends += [(service, service.key.vip, service.key.port) for service in to_backend]
        return [
            (service, FiveTuple(Protocol.TCP, alert.client, alert.client_port, vip, port))
            for service, vip, port in ends
        ]


def _has(service: Service, port: int) -> bool:
    key = service.key
    return key.port == ANY_PORT or key.port <= port <= (key.port_last or key.port)


@dataclass(frozen=True, slots=True)
class Scene:
    """What else decides.

    ``has_flow``: whether the flow table has a connection, its handshake complete. ``is_trusted``:
    whether a service trusts a source. ``is_blocked``: whether a source is blocked already.
    """

    suricata: Suricata
    connections: Connections
    has_flow: Callable[[FiveTuple], bool]
    is_trusted: Callable[[Service, Network], bool]
    is_blocked: Callable[[Network], bool]


def judge(alert: Alert, scene: Scene) -> tuple[Outcome, Network]:
    """Return what becomes of an alert, bounds aside, and the source that it is about."""
    is_proxy = _is_in(alert.client, scene.suricata.proxies)
    named = alert.forwarded_for if is_proxy else None
    source = _source(alert.client if named is None else named)
    if not _blocks(alert, scene.suricata):
        return Outcome.LOGGED, source
    if is_proxy and named is None:
        return Outcome.SPARED, source
    if not alert.is_request:
        return Outcome.UNPROVEN, source
    if scene.is_blocked(source):  # if it is, its connections are gone from the flow table
        return Outcome.BLOCKED, source
    found = scene.connections.of(alert)
    if not found or (not is_proxy and not _is_proven(found, scene.has_flow)):
        return Outcome.UNPROVEN, source
    if (
        source in scene.connections.own
        or any(_overlap(source, each) for each in scene.suricata.proxies)
        or any(scene.is_trusted(service, source) for service, _ in found)
    ):
        return Outcome.SPARED, source
    return Outcome.BLOCKED, source


def _blocks(alert: Alert, suricata: Suricata) -> bool:
    if alert.signature in suricata.log_signatures:
        return False
    worst = suricata.block_severity or 0
    return alert.signature in suricata.block_signatures or alert.severity <= worst


def _is_proven(
    found: Iterable[tuple[Service, FiveTuple]], has_flow: Callable[[FiveTuple], bool]
) -> bool:
    return any(is_proven(service) and has_flow(flow) for service, flow in found)


def _is_in(address: Address, prefixes: Iterable[Network]) -> bool:
    return any(address.version == each.version and address in each for each in prefixes)


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _source(address: Address) -> Network:
    """Return what is blocked: an IPv4 address, or the first 64 bits of an IPv6 address."""
    return ip_network((address, 64 if address.version == 6 else 32), strict=False)


def room(suricata: Suricata, active: int, blocked: int) -> int:
    """Return how many more sources alerts may block.

    ``active``: how many sources have flows; ``blocked``: how many alerts have blocked already.
    """
    share = suricata.most_blocked
    most = max(FEWEST, int(share * (active + blocked))) if share else 0
    return max(most - blocked, 0)


def block(alert: Alert, source: Network, suricata: Suricata, now: float) -> Block:
    """Return the block of an alert's source from ``now`` (Unix time) on."""
    why = f"{_WHY}{alert.signature} {alert.text}"
    return Block(source, why, now, now + suricata.block_for_s)


def is_ours(reason: str) -> bool:
    """Return whether a block with this reason was made because of an alert."""
    return reason.startswith(_WHY)


def noted(
    before: Mapping[SeenKey, Seen], alert: Alert, outcome: Outcome, source: Network, now: float
) -> dict[SeenKey, Seen]:
    """Return what has been seen after one more alert, by signature and outcome: the latest
    ``MOST_RECENT`` of them.
    """
    key = alert.signature, outcome
    old = before.get(key)
    port = f"[{alert.server}]" if alert.server.version == 6 else str(alert.server)
    new = Seen(
        alert.signature,
        alert.text,
        alert.severity,
        outcome,
        source.network_address,
        f"{port}:{alert.server_port}",
        1 if old is None else old.count + 1,
        now,
    )
    found = {**before, key: new}
    if len(found) > MOST_RECENT:
        oldest = min(found, key=lambda each: found[each].last)
        del found[oldest]
    return found
