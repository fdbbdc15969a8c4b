"""Defines the shape of ``fleet``: where the services are, and this balancer's name there."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from agent.config import kinds
from agent.config.document import Problem
from agent.config.kinds import Kind, duration, matching, refuse, shown, whole
from agent.config.section import Section
from agent.model import Etcd, Fleet

_FLEET = Fleet()
_MOST_ENDPOINTS = 9
_REMEDY = "give URLs such as https://etcd1.example.org:2379"


def _endpoints(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        refuse(f"{shown(value)} is not a list", f"{_REMEDY}, one for each member")
    if len(value) > _MOST_ENDPOINTS:
        refuse(f"{len(value)} endpoints are too many", f"give {_MOST_ENDPOINTS} at most")
    found = tuple(_endpoint(each) for each in value)
    if len(set(found)) < len(found):
        refuse("an endpoint is given twice", "give each member once")
    return found


def _endpoint(value: object) -> str:
    try:
        parts = urlsplit(kinds.text(value))
        port = parts.port
    except ValueError:
        refuse(f"{shown(value)} is not a URL", _REMEDY)
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not plain:
        refuse(f"{shown(value)} is not the URL of a member of etcd", _REMEDY)
    return f"{parts.scheme}://{parts.netloc}"


Endpoints = Annotated[tuple[str, ...], BeforeValidator(_endpoints), Kind("list of URLs")]
Prefix = Annotated[
    str,
    BeforeValidator(
        matching(
            r"/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*",
            "a prefix of keys",
            "start it with / and end it without, such as /steelyard",
            200,
        )
    ),
    Kind("text: `/` and a name, once or more often"),
]
History = Annotated[int, BeforeValidator(whole(64, 100_000)), Kind("whole number, 64 to 100000")]
Lease = Annotated[float, BeforeValidator(duration(3, 3600)), Kind("duration, 3s to 1h")]
Report = Annotated[float, BeforeValidator(duration(0.5, 60)), Kind("duration, 500ms to 1m")]
User = Annotated[
    str,
    BeforeValidator(matching(r"[!-~]+", "a user name", "use printable ASCII without spaces", 64)),
    Kind("text"),
]


_NAME = matching(
    r"[a-z0-9][a-z0-9._-]*",
    "a balancer's name",
    "use lower-case letters, digits, and . _ - after the first, such as lb1",
    63,
)
NodeName = Annotated[
    str,
    BeforeValidator(lambda value: value if value == "" else _NAME(value)),
    Kind("text: `a-z`, `0-9`, `.`, `_`, `-`"),
]


class EtcdSection(Section):
    """How etcd is reached. Version 3.4 or newer is needed, because its JSON gateway is used."""

    endpoints: Endpoints = Field(
        _FLEET.etcd.endpoints,
        description="The URLs of the members, such as `[https://etcd1.example.org:2379]`. All are "
        "used: when one does not answer, the next one is asked.",
    )
    ca_file: kinds.AbsolutePath | None = Field(
        None,
        description="The certificates that the members' certificates must be signed by, in PEM. "
        "Default: those of the system. This file and the next two are read again when they change.",
    )
    cert_file: kinds.AbsolutePath | None = Field(
        None,
        description="This balancer's client certificate, in PEM. Issue it without a common name: "
        "while etcd's authentication is on, it refuses one with a name on this interface.",
    )
    key_file: kinds.AbsolutePath | None = Field(
        None, description="The client certificate's private key, in PEM, without a password."
    )
    user: User | None = Field(None, description="The user, if etcd's authentication is on.")
    password_file: kinds.AbsolutePath | None = Field(
        None,
        description="A file with the user's password. It is read whenever the balancer "
        "authenticates itself.",
    )
    prefix: Prefix = Field(
        _FLEET.etcd.prefix,
        description="The beginning of all keys. A `/`, the fleet's name and another `/` follow.",
    )


class FleetSection(Section):
    """The fleet that this balancer belongs to: balancers that run the same services.

    The services are in etcd, as numbered versions, and every change of them reaches all balancers
    of the fleet. Everything else stays in each balancer's file. [Fleet](fleet.md) says how to
    begin, and what happens when etcd is away.
    """

    name: kinds.InstanceName | None = Field(
        _FLEET.name, description="The fleet. Default: none; the services are those of the file."
    )
    node: NodeName = Field(
        _FLEET.node,
        description="This balancer's name; each has another. Default: the name of the host.",
    )
    etcd: EtcdSection = Field(
        default_factory=lambda: EtcdSection.model_validate({}), description="How etcd is reached."
    )
    history: History = Field(
        _FLEET.history,
        description="How many versions are kept. Up to 128 more may be kept for a while.",
    )
    lease: Lease = Field(
        _FLEET.lease_s,
        description="How long the others believe what this balancer reported last. After that it "
        "counts as gone.",
    )
    report: Report = Field(
        _FLEET.report_s, description="The shortest time between two reports of this balancer."
    )


def to_fleet(section: FleetSection) -> Fleet:
    """Return what a section says."""
    etcd = section.etcd
    return Fleet(
        section.name,
        section.node,
        Etcd(
            etcd.endpoints,
            etcd.ca_file,
            etcd.cert_file,
            etcd.key_file,
            etcd.user,
            etcd.password_file,
            etcd.prefix,
        ),
        section.history,
        section.lease,
        section.report,
    )


def _is_safe(endpoint: str) -> bool:
    """Return whether nobody else can read what is sent to an endpoint."""
    parts = urlsplit(endpoint)
    try:
        return parts.scheme == "https" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"


def check(fleet: FleetSection) -> Iterator[Problem]:
    """Yield the keys of ``fleet`` that are missing, or that mean nothing."""
    etcd = fleet.etcd
    if fleet.name is None:
        if fleet != FleetSection.model_validate({}):
            yield Problem(
                ("fleet",),
                "the fleet has no name, so this has no effect",
                "give `fleet.name`, such as prod, or leave this out",
            )
        return
    if not etcd.endpoints:
        yield Problem(
            ("fleet", "etcd"),
            "where etcd can be reached is not said",
            "give `endpoints`, the URLs of its members",
        )
    pairs = (("cert_file", "key_file"), ("user", "password_file"))
    for pair in pairs:
        given = [key for key in pair if getattr(etcd, key) is not None]
        if len(given) == 1:
            (missing,) = set(pair) - set(given)
            yield Problem(
                ("fleet", "etcd", given[0]),
                f"{given[0]} without {missing} has no effect",
                f"give `{missing}`, too, or leave both out",
            )
    open_to = [each for each in etcd.endpoints if not _is_safe(each)]
    if etcd.user is not None and open_to:
        yield Problem(
            ("fleet", "etcd", "user"),
            f"the password would go through the network in plain text, to {open_to[0]}",
            "write the endpoints with https://",
        )
    secure = [each for each in etcd.endpoints if each.startswith("https:")]
    if not secure and (etcd.ca_file or etcd.cert_file):
        yield Problem(
            ("fleet", "etcd", "ca_file" if etcd.ca_file else "cert_file"),
            "no endpoint uses TLS, so this has no effect",
            "write the endpoints with https://",
        )
    if 0 < len(secure) < len(etcd.endpoints):
        yield Problem(
            ("fleet", "etcd", "endpoints"),
            "some endpoints use TLS and some do not",
            "write all of them with https://",
        )
