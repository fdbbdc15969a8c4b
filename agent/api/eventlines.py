"""Decides how an event is shown: on one line, in words, as tcpdump would write it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, tzinfo
from ipaddress import ip_address
from typing import Any

from agent.humanise import exact, plural

# What each reason means, by its label.
REASONS = {
    "fragment": "the first fragment of its datagram was not seen",
    "malformed": "lengths or flags that no proper sender makes",
    "extension": "IPv6 extension headers without an end",
    "no-backend": "no usable backend",
    "no-flow": "belongs to no recorded flow",
    "no-room": "the flow table has no room for it",
    "no-port": "no source port is free",
    "ttl-exceeded": "its TTL ends here",
    "too-big": "does not fit the path to the backend",
    "no-headroom": "the driver left no room for the outer header",
    "internal": "a table is missing or inconsistent",
    "held": "new flows are held back during a handover, or until there is a backend",
    "martian": "its source address cannot be a client's",
    "broadcast": "a new flow in a broadcast or multicast frame",
    "source-route": "a new flow with an IPv4 source route",
    "port-zero": "a new flow from or to port 0",
    "challenged": "its sender has not proved that it is at its address (SYN protection)",
    "verified": "proved that its sender is at its address (SYN protection)",
    "blocked": "its source is blocked (lbctl guard list)",
    "denied": "a new flow from a source that is on a denied list",
    "not-allowed": "a new flow from a source that is on no allowed list",
    "limited": "beyond a limit of the service",
}
_FATES = {"passed": "passed to the host"}
TIME_STYLES = 5  # as many as tcpdump has


class Stamps:
    """Writes times as tcpdump does; ``style`` is how often ``-t`` was given.

    0: time of day; 1: none; 2: seconds since the epoch; 3: since the line before; 4: date and time;
    5: since the first line. ``zone`` None means this host's time zone.
    """

    def __init__(self, style: int, zone: tzinfo | None = None) -> None:
        self._style = min(style, TIME_STYLES)
        self._zone = zone
        self._reference: datetime | None = None

    def stamp(self, at: str) -> str:
        """Return the beginning of a line, for an RFC 3339 time."""
        moment = datetime.fromisoformat(at).astimezone(self._zone)
        match self._style:
            case 0:
                return f"{moment:%H:%M:%S.%f} "
            case 1:
                return ""
            case 2:
                return f"{moment.timestamp():.6f} "
            case 4:
                return f"{moment:%Y-%m-%d %H:%M:%S.%f} "
        reference = self._reference or moment
        if self._style == 3 or self._reference is None:
            self._reference = moment
        return f"{_span((moment - reference).total_seconds())} "


def line(event: Mapping[str, Any], stamps: Stamps, numeric: bool) -> str:
    """Return an event in words. ``numeric``: show backends by their addresses."""
    family = "IP6" if ip_address(event["client"]).version == 6 else "IP"
    client = _end(event["client"], event["client_port"])
    vip = _end(event["vip"], event["port"])
    way = f"{vip} > {client}" if event["event"] == "reply" else f"{client} > {vip}"
    flags = f" {event['tcp_flags']}" if event["tcp_flags"] and event["event"] != "answer" else ""
    return (
        f"{stamps.stamp(event['at'])}{family} {way} {event['protocol']}{flags}: "
        f"{_words(event, numeric)}"
    )


def _words(event: Mapping[str, Any], numeric: bool) -> str:
    backend = event["backend_address" if numeric else "backend"] or "a backend that was removed"
    service = f" [{event['service']}]" if event["service"] else ""
    size = f"{exact(event['length_bytes'])} bytes"
    match event["event"]:
        case "drop":
            fate, reason = _FATES.get(event["fate"], event["fate"]), event["reason"]
            return f"{fate}: {REASONS.get(reason, 'unknown reason')} ({reason}){service}"
        case "pick":
            of = f" of {event['service']}" if event["service"] else ""
            how = f" ({event['scheduler']})" if event["scheduler"] else ""
            return f"new flow{of} goes to {backend}{how}"
        case "packet":
            return f"{size} go to {backend}, flow {event['flow_state']}{service}"
        case "reply":
            return f"{size} come from {backend}, flow {event['flow_state']}{service}"
        case "answer":
            asked = f"{exact(event['waited_bytes'])} request bytes waited"
            place = f" [{'/'.join(filter(None, (event['service'], backend)))}]"
            return f"answered after {_waited(event['waited_us'])}: {asked}{place}"
        case "close":
            how = "RST" if "R" in (event["tcp_flags"] or "") else "FIN"
            return f"{how} ends the flow to {backend}, it was {event['flow_state']}{service}"
    return str(event["event"])


def summary(shown: int, ring: int, client: int, *, filtered: bool) -> str:
    """Return the last line: how many events were shown, and how many were lost.

    ``filtered``: the shown events passed a filter. Events that were lost because the ring was full
    never reached it.
    """
    text = f"{plural(shown, 'event')}, {exact(ring + client)} lost"
    before = ", before the filter" if filtered else ""
    causes = [
        *([f"{exact(ring)} because the ring was full{before}"] if ring else []),
        *([f"{exact(client)} because they were not read fast enough"] if client else []),
    ]
    return f"{text} ({'; '.join(causes)})" if causes else text


def _end(address: str, port: int | None) -> str:
    return address if port is None else f"{address}.{port}"


def _span(seconds: float) -> str:
    """Return the time between two lines, which is negative if CPUs wrote them in reverse order."""
    sign, micros = ("-", -seconds) if seconds < 0 else ("", seconds)
    whole = round(micros * 1e6)
    hours, rest = divmod(whole, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    return f"{sign}{hours:02d}:{minutes:02d}:{rest // 1_000_000:02d}.{rest % 1_000_000:06d}"


def _waited(micros: int) -> str:
    """Return a time with about three digits: 412 us, 8.12 ms, 812 ms, 1.23 s."""
    if micros < 1000:
        return f"{micros} us"
    value, unit = (micros / 1e3, "ms") if micros < 999_500 else (micros / 1e6, "s")
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"
