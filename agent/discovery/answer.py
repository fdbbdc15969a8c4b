"""Decides which targets the answer of a source names, and which of them cannot be used.

An answer comes as text in Prometheus' format (file_sd, HTTP SD) or as DNS records. The order in
which a source lists its targets does not matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

from agent.discovery.groups import read_groups
from agent.errors import DiscoveryError
from agent.model import MAX_PRIORITY, MAX_WEIGHT, Address, AdminState, Target

MOST_TARGETS = 20_000
USUAL_WEIGHT = 100  # of a target for which the source gives none
_ENDPOINT = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::([0-9]{1,6}))?", re.ASCII)
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # as agent.config.kinds.Name
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_MAX_NUMBER = 10**15
_MAX_PORT = 65_535
_BROADCAST = IPv4Address("255.255.255.255")
_THIS_NETWORK = IPv4Network("0.0.0.0/8")  # RFC 1122, section 3.2.1.3
_MOST_SHOWN = 60  # characters
_RECORD_TYPES = {4: "A", 6: "AAAA"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A target that cannot be used."""

    what: str  # as the source writes it
    why: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a source has answered: the targets by IP version, address and port, and the refused.

    ``valid_s``: the smallest time to live (0 is possible) of the DNS records; None: not DNS.
    """

    targets: tuple[Target, ...]
    refused: tuple[Refused, ...] = ()
    valid_s: float | None = None


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """An SRV record (RFC 2782); ``target`` "." means that there is no such service."""

    priority: int
    weight: int
    port: int
    target: str


class UnusableError(Exception):
    """Says why a target is refused."""


def record_type(family: int) -> str:
    """Return the DNS record type of addresses of IP version ``family``."""
    return _RECORD_TYPES[family]


# -- Prometheus' format


def parse_targets(text: str, where: str, match: Sequence[tuple[str, str]] = ()) -> Answer:
    """Return the targets of a file_sd or HTTP SD text, JSON or YAML.

    Groups that lack a label of ``match`` are skipped. Raises DiscoveryError if the text is not a
    list of groups, and if there are too many targets or bytes.
    """
    findings = Findings(where)
    for group in read_groups(text, where):
        if any((_text(group.labels.get(label)) or "") != value for label, value in match):
            continue
        for written in group.targets:
            findings.add(written, partial(_target, written, group.labels))
    return findings.answer()


def _target(written: object, labels: Mapping[str, object]) -> Target:
    address, port = _endpoint(written)
    state = _label(labels, "state") or AdminState.ACTIVE.value
    if state not in [known.value for known in AdminState]:
        raise UnusableError(f"its state {shown(state)} is not active, drain or maintenance")
    return Target(
        address,
        port,
        name=_name(labels, "name"),
        weight=_whole(labels, "weight", MAX_WEIGHT, USUAL_WEIGHT),
        admin=AdminState(state),
        backup=_truth(labels, "backup"),
        priority=_whole(labels, "priority", MAX_PRIORITY, 0),
        zone=_name(labels, "zone"),
    )


def _endpoint(written: object) -> tuple[Address, int | None]:
    if not isinstance(written, str):
        raise UnusableError("it is not a string such as 10.0.0.5:8000")
    parts = _ENDPOINT.fullmatch(written)
    if parts is None:
        raise UnusableError(_malformed(written))
    try:
        address = ip_address(parts[1] if parts[2] is None else parts[2])
    except ValueError as error:
        raise UnusableError(_malformed(written)) from error
    if (address.version == 6) != (parts[1] is not None):
        raise UnusableError("brackets belong around an IPv6 address, and around nothing else")
    return usable_address(address), None if parts[3] is None else usable_port(int(parts[3]))


def _malformed(written: str) -> str:
    try:
        if ip_address(written).version == 6:
            # 2001:db8::5:8000 is an address, though perhaps not the one that is meant.
            return "an IPv6 address must be in brackets, such as [2001:db8::5]:8000"
    except ValueError:
        pass
    return "it is not an IP address with a port, such as 10.0.0.5:8000 (names are not resolved)"


def _label(labels: Mapping[str, object], label: str) -> str:
    """Return a label's value; as in Prometheus, an empty one is the same as none."""
    value = _text(labels.get(label))
    if value is None:
        raise UnusableError(f"its {label} is neither a string nor an ordinary number")
    return value


def _text(value: object) -> str | None:
    """Return a label's value as text, or None if it has no text."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float() if -_MAX_NUMBER < value < _MAX_NUMBER:  # not for NaN
            return str(int(value)) if value == int(value) else str(value)
    return None


def _whole(labels: Mapping[str, object], label: str, most: int, usual: int) -> int:
    value = _label(labels, label)
    if not value:
        return usual
    if not _WHOLE.fullmatch(value) or int(value) > most:
        raise UnusableError(f"its {label} {shown(value)} is not a whole number from 0 to {most}")
    return int(value)


def _truth(labels: Mapping[str, object], label: str) -> bool:
    value = _label(labels, label).lower()
    if value and value not in _YES + _NO:
        raise UnusableError(f"its {label} {shown(value)} is neither true nor false")
    return value in _YES


def _name(labels: Mapping[str, object], label: str) -> str | None:
    value = _label(labels, label)
    if value and not NAME.fullmatch(value):
        raise UnusableError(
            f"its {label} {shown(value)} is not a name of at most 64 lower-case letters, digits, "
            "and . _ - after the first"
        )
    return value or None


def usable_port(port: int) -> int:
    """Return the port. Raises UnusableError if it is not a port."""
    if not 1 <= port <= _MAX_PORT:
        raise UnusableError(f"port {shown(port)} is not from 1 to {_MAX_PORT}")
    return port


def usable_address(address: Address) -> Address:
    """Return the address. Raises UnusableError if it is not the unicast address of one host."""
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise UnusableError("its address is valid on one interface only")
        if address.ipv4_mapped:
            raise UnusableError(f"{address} is an IPv4-mapped address: write {address.ipv4_mapped}")
    for kind, is_kind in (
        ("the unspecified address", address.is_unspecified),
        ("a loopback address", address.is_loopback),
        ("a link-local address", address.is_link_local),
        ("a multicast address", address.is_multicast),
        ("the broadcast address", address == _BROADCAST),
        ("a reserved address", address.is_reserved or address in _THIS_NETWORK),
    ):
        if is_kind:
            raise UnusableError(f"{address} is {kind}, not the unicast address of one host")
    return address


# -- DNS


def from_addresses(
    addresses: Iterable[str], port: int | None, where: str, valid_s: float | None = None
) -> Answer:
    """Return the addresses of A or AAAA records as targets, all with the same port."""
    findings = Findings(where)
    for written in addresses:
        findings.add(written, partial(_resolved, written, port, USUAL_WEIGHT, 0))
    return findings.answer(valid_s)


def from_srv(
    records: Iterable[SrvRecord],
    addresses: Mapping[str, Sequence[str]],
    family: int,
    where: str,
    valid_s: float | None = None,
) -> Answer:
    """Return the targets of SRV records; ``addresses`` has those of each record's ``target``.

    The lowest SRV priority becomes our priority 0, the next one 1, and so on to MAX_PRIORITY. SRV
    weights compare records of one priority; there they are scaled if the largest exceeds
    MAX_WEIGHT. Zero, "a very small chance" in RFC 2782, becomes 1, as our 0 means none; if all are
    zero, each becomes USUAL_WEIGHT. A target with several addresses has its weight at each.
    """
    available = [record for record in records if record.target != "."]
    ranks = {
        priority: min(rank, MAX_PRIORITY)
        for rank, priority in enumerate(sorted({record.priority for record in available}))
    }
    heaviest: dict[int, int] = {}
    for record in available:
        rank = ranks[record.priority]
        heaviest[rank] = max(heaviest.get(rank, 0), record.weight)
    findings = Findings(where)
    for record in available:
        rank = ranks[record.priority]
        weight = _scaled(record.weight, heaviest[rank])
        found = addresses.get(record.target, ())
        if not found:
            findings.refuse(record.target, f"the name has no {record_type(family)} records")
        for written in found:
            findings.add(
                f"{record.target} ({written})",
                partial(_resolved, written, record.port, weight, rank),
            )
    return findings.answer(valid_s)


def _scaled(weight: int, heaviest: int) -> int:
    if heaviest == 0:
        return USUAL_WEIGHT
    return max(1, weight * MAX_WEIGHT // heaviest if heaviest > MAX_WEIGHT else weight)


def _resolved(written: str, port: int | None, weight: int, priority: int) -> Target:
    return Target(
        usable_address(ip_address(written)),
        None if port is None else usable_port(port),
        weight=weight,
        priority=priority,
    )


# -- common to all sources


class Findings:
    """Collects the usable and the refused targets of one answer."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._targets: list[Target] = []
        self._refused: list[Refused] = []

    def add(self, what: object, make: Callable[[], Target]) -> None:
        """Add what ``make()`` returns, or the reason why it raises UnusableError."""
        try:
            self.keep(make())
        except UnusableError as error:
            self.refuse(what, str(error))

    def keep(self, target: Target) -> None:
        """Add a target that can be used."""
        self._targets.append(target)
        self._check_number()

    def refuse(self, what: object, why: str) -> None:
        """Add a target that cannot be used."""
        self._refused.append(Refused(shown(what), why))
        self._check_number()

    def answer(self, valid_s: float | None = None) -> Answer:
        """Return the answer. Sorting comes first, so the order of the source has no influence."""
        kept: dict[tuple[Address, int | None], Target] = {}
        names: dict[str, str] = {}
        refused = list(self._refused)
        for target in sorted(self._targets, key=_order):
            what = _endpoint_text(target)
            first = kept.setdefault((target.address, target.port), target)
            if first is not target:
                if first != target:
                    refused.append(Refused(what, "it is listed twice, with different settings"))
            elif target.name in names:
                # It is not kept without the name, because operators refer to backends by name.
                other = names[target.name]
                refused.append(Refused(what, f"its name {target.name} is also that of {other}"))
                del kept[target.address, target.port]
            elif target.name is not None:
                names[target.name] = what
        unique = sorted(set(refused), key=lambda entry: (entry.what, entry.why))
        return Answer(tuple(kept.values()), tuple(unique), valid_s)

    def _check_number(self) -> None:
        if len(self._targets) + len(self._refused) > MOST_TARGETS:
            raise DiscoveryError(
                f"the answer has more than {MOST_TARGETS} targets",
                where=self._where,
                remedy="divide the source among several services, or use 'match' to select fewer",
            )


def _order(target: Target) -> tuple[int | str, ...]:
    address = target.address
    preferred = (target.priority, target.backup, target.admin.value, target.weight)
    names = (target.name or "", target.zone or "")
    return (address.version, int(address), target.port or 0, *preferred, *names)


def _endpoint_text(target: Target) -> str:
    address = f"[{target.address}]" if target.address.version == 6 else str(target.address)
    return address if target.port is None else f"{address}:{target.port}"


def shown(value: object) -> str:
    """Return a value of a source for a message, on one line and not too long."""
    match value:
        case str():
            words = value if value.isprintable() else repr(value)
        case dict() | list():
            # With YAML's aliases its text could have any length.
            return "a mapping" if isinstance(value, dict) else "a list"
        case _:
            words = json.dumps(value)
    return words if len(words) <= _MOST_SHOWN else f"{words[: _MOST_SHOWN - 1]}…"
