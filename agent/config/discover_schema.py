"""Defines the shape of ``discover`` and ``overrides``: where further backends of a service come
from, and what operators decided about them.
"""

from __future__ import annotations

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.kinds import Kind, duration, refuse, shown, whole
from agent.config.section import Section
from agent.model import SOURCES, AdminState, Discover, Override

MOST_BACKENDS = 10_000
_DISCOVER = Discover()
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")


def _url(value: object) -> str:
    remedy = "give a URL such as https://inventory.example.org/gpu.json"
    if not isinstance(value, str):
        refuse(f"{shown(value)} is not a URL", remedy)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        refuse(f"{shown(value)} is not a URL", remedy)
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        refuse(f"{shown(value)} is not an http or https URL", remedy)
    if parts.username or parts.password:
        refuse("the URL holds a password", "leave it out, and set token_file")
    if not value.isascii() or any(c.isspace() or not c.isprintable() for c in value):
        refuse(f"{shown(value)} has characters that a URL cannot have", "write them as %XX")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        remedy = "give a name such as gpu.example.org or _http._tcp.gpu.example.org"
        refuse(f"{shown(value)} is not a name of DNS", remedy)
    return value


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    remedy = "write `label: value` below it, as in `model: llama`"
    if not isinstance(value, dict):
        refuse(f"{shown(value)} is not a mapping", remedy)
    for label, wanted in value.items():
        if not isinstance(label, str) or not isinstance(wanted, str) or not label:
            refuse(f"{shown(label)}: {shown(wanted)} is not a text", "put it in quotes")
    return tuple(sorted(value.items()))


def _server(value: object) -> tuple[str, int]:
    return net.address_and_port(value, "127.0.0.1:8600 or [::1]:53")


Url = Annotated[str, BeforeValidator(_url), Kind("http or https URL")]
_KUBERNETES = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _kubernetes(value: object) -> str:
    if not isinstance(value, str) or not _KUBERNETES.fullmatch(value):
        remedy = "give the namespace and the name of a Service, such as default/vllm"
        refuse(f"{shown(value)} is not a Service of Kubernetes", remedy)
    return value


KubernetesService = Annotated[str, BeforeValidator(_kubernetes), Kind("text: `namespace/service`")]
DiscoveryName = Annotated[str, BeforeValidator(_name), Kind("text: a name of DNS")]
Labels = Annotated[
    tuple[tuple[str, str], ...], BeforeValidator(_labels), Kind("mapping of label to value")
]
DnsServer = Annotated[tuple[str, int], BeforeValidator(_server), Kind("address:port")]
Interval = Annotated[float, BeforeValidator(duration(1, 3600)), Kind("duration, 1s to 1h")]
Timeout = Annotated[float, BeforeValidator(duration(0.1, 60)), Kind("duration, 100ms to 1m")]
Drain = Annotated[float, BeforeValidator(duration(0, 86_400)), Kind("duration, 0s to 24h")]
Number = Annotated[
    int, BeforeValidator(whole(0, MOST_BACKENDS)), Kind(f"whole number, 0 to {MOST_BACKENDS}")
]


class DiscoverSection(Section):
    """Where further backends of the service come from: `file`, `http`, `dns` or `kubernetes`.

    [Discovery](discovery.md) describes the formats, and what happens when a source is away or its
    answer looks like a mistake.
    """

    file: kinds.AbsolutePath | None = Field(
        None,
        description="A file with targets as in Prometheus' `file_sd`, YAML or JSON. It is read "
        "again when it changes.",
    )
    http: Url | None = Field(
        None, description="A URL that answers with targets as in Prometheus' HTTP SD."
    )
    dns: DiscoveryName | None = Field(
        None,
        description="A name. If it begins with `_`, its SRV records name the servers, otherwise "
        "its A or AAAA records do, of the VIP's family.",
    )
    kubernetes: KubernetesService | None = Field(
        None,
        description="A Service of Kubernetes: its endpoints are the servers, as its EndpointSlices "
        "say from moment to moment.",
    )
    interval: Interval = Field(
        _DISCOVER.interval_s,
        description="For `http`: the time between questions. For `dns`: the longest time; records "
        "whose TTL is shorter are asked for sooner. A file and Kubernetes are watched.",
    )
    timeout: Timeout = Field(
        _DISCOVER.timeout_s, description="For `http` and `dns`: the longest time for an answer."
    )
    port: net.Port | None = Field(
        None,
        description="For the A and AAAA records of `dns`: the servers' port. Default: packets keep "
        "their destination port.",
    )
    server: DnsServer | None = Field(
        None,
        description="For `dns`: the server that is asked, such as `127.0.0.1:8600` for Consul. "
        "Default: those of `/etc/resolv.conf`.",
    )
    ca_file: kinds.AbsolutePath | None = Field(
        None,
        description="For `http`: the certificates that the source's certificate must be signed "
        "by. Default: those of the system.",
    )
    token_file: kinds.AbsolutePath | None = Field(
        None,
        description="For `http`: a file with a token that is sent as `Authorization: Bearer`. It "
        "is read again each time.",
    )
    kubeconfig: kinds.AbsolutePath | None = Field(
        None,
        description="For `kubernetes`: a file as kubectl has it, with the API server and who we "
        "are. Default: the service account of the pod in which the agent runs.",
    )
    port_name: kinds.Name | None = Field(
        None,
        description="For `kubernetes`: the name of the endpoints' port, if they have several.",
    )
    match: Labels = Field(
        (),
        description="For `file` and `http`: labels that a target must have. Others are left to "
        "other services.",
    )
    min: Number = Field(
        _DISCOVER.min,
        description="An answer with fewer targets is not used. 0: an empty answer is used, too.",
    )
    max: Number = Field(_DISCOVER.max, description="An answer with more targets is not used.")
    most_removed: kinds.Share = Field(
        _DISCOVER.most_removed,
        description="The share of the targets that may be missing in a new answer. If more are, "
        "the answer is not used until somebody accepts it (`lbctl discovery accept`). One target "
        "always may be.",
    )
    drain: Drain = Field(
        _DISCOVER.drain_s,
        description="How long a backend that the source no longer names keeps its open flows. It "
        "is removed earlier if it has none left.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [kind for kind in SOURCES if getattr(self, kind) is not None]
        if len(given) > 1:
            refuse(f"{' and '.join(given)} are both given", "keep one of them")
        if self.min > self.max:
            refuse(f"min {self.min} is more than max {self.max}", "lower min, or raise max")
        return self

    def model(self) -> Discover:
        """Return the model's value."""
        return Discover(
            self.file,
            self.http,
            self.dns,
            self.kubernetes,
            self.interval,
            self.timeout,
            self.port,
            self.server,
            self.ca_file,
            self.token_file,
            self.kubeconfig,
            self.port_name,
            self.match,
            self.min,
            self.max,
            self.most_removed,
            self.drain,
        )


class OverrideSection(Section):
    """What holds for a backend that a source has named, whatever the source says about it.

    `lbctl backend set --weight`, `drain` and the like write it; it is kept while the source does
    not name the backend.
    """

    address: net.UnicastAddress = Field(description="Address of the server.")
    port: net.Port | None = Field(
        None, description="Its port, if its source names one. Default: none."
    )
    weight: kinds.Weight | None = Field(
        None, description="Its weight. Default: as its source says."
    )
    state: Annotated[AdminState | None, *kinds.choice(AdminState)] = Field(
        None, description="Its state. Default: as its source says."
    )

    def model(self) -> Override:
        """Return the model's value."""
        return Override(self.address, self.port, self.weight, self.state)
