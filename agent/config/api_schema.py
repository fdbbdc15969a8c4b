"""Defines the shape of ``api``: where `lb-agent api` serves the API over TLS, and to whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BeforeValidator, Field

from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.document import Problem
from agent.config.kinds import Kind, refuse, shown
from agent.config.section import Section
from agent.model import RemoteApi, Role, RoleNames

_API = RemoteApi()
MOST_NAMES = 256  # with one role
_LONGEST_NAME = 64  # RFC 5280, appendix A.1: ub-common-name


def _name(value: object) -> str:
    """Return the common name of a certificate."""
    text = kinds.text(value)
    if not text.isprintable() or text != text.strip() or not 0 < len(text) <= _LONGEST_NAME:
        refuse(
            f"{shown(value)} is not a common name of a certificate",
            f"give printable text of at most {_LONGEST_NAME} characters, such as alice",
        )
    return text


def _names(value: object) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    if len(given) > MOST_NAMES:
        refuse(f"{len(given)} names are too many", f"give at most {MOST_NAMES}")
    return tuple(dict.fromkeys(_name(each) for each in given))


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_names),
    Kind("a common name of a certificate, or a list of them"),
]


class ApiRolesSection(Section):
    """Who may do what through `lb-agent api`: client certificates, by their common names.

    The roles are those of `socket_roles`. A certificate that is named nowhere here may do nothing,
    whoever has signed it.
    """

    viewer: Names = Field((), description="Clients that may read everything but secrets.")
    operator: Names = Field(
        (),
        description="Clients that may also drain, change weights, move VIPs, block and trace.",
    )
    admin: Names = Field((), description="Clients that may do everything.")


class ApiSection(Section):
    """The API beyond this host, which `lb-agent api` serves over TLS 1.3 to client certificates.

    It is a process of its own that has no rights on this host but to open the API's socket. The
    agent decides who may do what, and its audit log has the name of the certificate and the
    client's address. See [security](security.md#from-other-hosts).
    """

    listen: net.Listen = Field(
        _API.listen, description="Where it is served, such as `192.0.2.11:9443`."
    )
    certificate: kinds.AbsolutePath | None = Field(
        None,
        description="Its TLS certificate with its chain, in PEM. This and the next three files are "
        "read again when they change; that ends the connections that are open.",
    )
    key_file: kinds.AbsolutePath | None = Field(
        None, description="The certificate's private key, in PEM, without a password."
    )
    client_ca: kinds.AbsolutePath | None = Field(
        None,
        description="The certificates that clients' certificates must be signed by, in PEM. Use an "
        "authority that signs nothing else.",
    )
    crl_file: kinds.AbsolutePath | None = Field(
        None,
        description="The certificates that were revoked: a list that `client_ca` has signed, in "
        "PEM. Once the list has expired, nobody is let in. Default: none are revoked.",
    )
    user: kinds.UserName = Field(
        _API.user,
        description="The user that `lb-agent api` runs as. It may tell the agent who sends a "
        "request, so nothing else may run as this user.",
    )
    roles: ApiRolesSection = Field(
        default_factory=lambda: ApiRolesSection.model_validate({}),
        description="The common names of the certificates that may use it.",
    )


def to_api(section: ApiSection) -> RemoteApi:
    """Return what a section says."""
    roles = section.roles
    return RemoteApi(
        section.listen,
        section.certificate,
        section.key_file,
        section.client_ca,
        section.crl_file,
        section.user,
        RoleNames(roles.viewer, roles.operator, roles.admin),
    )


def check(api: ApiSection, others: dict[str, tuple[str, int] | None]) -> Iterator[Problem]:
    """Yield the keys of ``api`` that are missing, or that mean nothing.

    ``others``: what else listens, by the name of its setting.
    """
    if api.listen is None:
        if api != ApiSection.model_validate({}):
            yield Problem(
                ("api",),
                "it is not served anywhere, so this has no effect",
                "give `api.listen`, such as 192.0.2.11:9443, or leave this out",
            )
        return
    for key in ("certificate", "key_file", "client_ca"):
        if getattr(api, key) is None:
            yield Problem(("api",), f"it is served over TLS, and has no {key}", f"give `{key}`")
    for name, listen in others.items():
        if listen == api.listen:
            yield Problem(
                ("api", "listen"),
                f"this is where `{name}` is served",
                f"give another port than {api.listen[1]}",
            )
    roles = to_api(api).roles
    if not roles.are_used:
        yield Problem(
            ("api",),
            "no certificate has a role, so every request would be refused",
            "name some in `roles`, such as {viewer: [grafana], admin: [alice]}",
        )
    known: dict[str, Role] = {}
    for role, names in roles.by_role.items():
        for number, name in enumerate(names):
            if known.setdefault(name, role) is not role:
                yield Problem(
                    ("api", "roles", role.value, number),
                    f"{name} has the role {known[name].value}, too",
                    "name each certificate once: a role includes the ones before it",
                )
