"""Defines the shape of a tier's file: what HAProxy listens on, whom it lets ask, and where to.

It is a file of its own, because a tier often runs on other hosts than the balancer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from agent.config import kinds, lists
from agent.config import network_kinds as net
from agent.config.document import Problem
from agent.config.kinds import Kind, refuse, shown
from agent.config.load import parse_document, read_text
from agent.config.section import Section
from agent.errors import ConfigError
from agent.files import check_trusted
from agent.model import AddressList, Network

DEFAULT_FILE = Path("/etc/steelyard/tier.yaml")
DEFAULT_FOLDER = Path("/run/steelyard/tier")
MOST_LISTENERS = 64
MOST_ROUTES = 256
MOST_PROXIES = 256
MOST_SOURCES = 1024


class Profile(enum.StrEnum):
    """Mozilla's recommendations for servers (wiki.mozilla.org/Security/Server_Side_TLS, 5.7)."""

    MODERN = "modern"
    INTERMEDIATE = "intermediate"


class ProxyProtocol(enum.StrEnum):
    """How a proxy in front of the tier says who the client is."""

    PROXY = "proxy"  # the PROXY protocol, versions 1 and 2
    FORWARDED_FOR = "forwarded-for"  # the last address of X-Forwarded-For


class AffinityBy(enum.StrEnum):
    """What tells one session from another."""

    PROMPT = "prompt"
    HEADER = "header"
    KEY = "key"


def _end(value: object) -> tuple[str, int]:
    return net.address_and_port(value, "203.0.113.10:443 or [2001:db8::10]:443")


def _body(value: object) -> int:
    size = kinds.most_bytes(value)
    if size is None:
        refuse("a body needs a limit", "give bytes, or a text such as 32MiB")
    return size


def _sources(value: object) -> Network:
    prefix = net.clients(value)
    if not 1 < prefix.num_addresses <= MOST_SOURCES:
        number = "one address" if prefix.num_addresses == 1 else f"more than {MOST_SOURCES}"
        refuse(f"{prefix} is {number}", "give 2 to 1024 addresses, such as 10.255.0.0/24")
    return prefix


def _most(high: int) -> Callable[[object], int | None]:
    """Return a check for a whole number from 1 to ``high``, or for `none`."""
    number = kinds.whole(1, high)
    return lambda value: None if value in (None, "none") else number(value)


_MILLION = 1_000_000
End = Annotated[tuple[str, int], BeforeValidator(_end), Kind("address:port")]
Ends = Annotated[
    tuple[tuple[str, int], ...],
    BeforeValidator(net.listed(_end, MOST_LISTENERS, "addresses")),
    Kind("list of address:port"),
]
Proxies = Annotated[
    tuple[Network, ...],
    BeforeValidator(net.listed(net.clients, MOST_PROXIES, "prefixes")),
    Kind("list of prefixes"),
]
ProxyFiles = Annotated[
    tuple[Path, ...], BeforeValidator(net.list_files), Kind("list of absolute paths")
]
Sources = Annotated[
    tuple[Network, ...],
    BeforeValidator(net.listed(_sources, 2, "prefixes")),
    Kind("list of prefixes, one of each family of `engines`"),
]
HeaderName = Annotated[
    str,
    BeforeValidator(
        kinds.matching(r"[A-Za-z0-9-]+", "the name of a header", "write it as in X-Session-ID", 64)
    ),
    Kind("text"),
]
PerMinute = Annotated[
    int | None, BeforeValidator(_most(1000 * _MILLION)), Kind("whole number from 1; `none`")
]
Concurrent = Annotated[
    int | None, BeforeValidator(_most(_MILLION)), Kind("whole number from 1; `none`")
]
Streams = Annotated[
    int, BeforeValidator(kinds.whole(1, _MILLION)), Kind("whole number, 1 to 1000000")
]
Waiting = Annotated[
    int, BeforeValidator(kinds.whole(0, _MILLION)), Kind("whole number, 0 to 1000000")
]
Body = Annotated[int, BeforeValidator(_body), Kind("bytes, such as `32MiB`")]
Seconds = Annotated[float, BeforeValidator(kinds.duration(1, 300)), Kind("duration, 1s to 5m")]
Idle = Annotated[float, BeforeValidator(kinds.duration(1, 86_400)), Kind("duration, 1s to 24h")]
RoutePath = Annotated[
    str,
    BeforeValidator(
        kinds.matching(
            r"/[A-Za-z0-9._~/%-]*",
            "the beginning of a path",
            "start it with /, as in /v1/embeddings",
            256,
        )
    ),
    Kind("text, starts with `/`"),
]
RouteModel = Annotated[
    str,
    BeforeValidator(
        kinds.matching(
            r"[A-Za-z0-9._:/@-]+\*?",
            "a model's name, or its beginning",
            "write it as clients do; a * at the end stands for anything: llama-*",
            256,
        )
    ),
    Kind("text; `*` at the end stands for anything"),
]


class ClientCertificates(Section):
    """The certificates of clients (mutual TLS)."""

    ca_file: kinds.AbsolutePath = Field(description="Whose certificates are accepted, in PEM.")
    crl_file: kinds.AbsolutePath | None = Field(
        None, description="Which of them were revoked, in PEM."
    )
    required: bool = Field(True, description="Refuse clients without a certificate.")


class Limits(Section):
    """How much one key may ask for; without `keys`, one client's address (IPv6: its /64).
    Each node of a tier counts for itself.
    """

    requests_per_minute: PerMinute = Field(None, description="Requests, refused ones included.")
    tokens_per_minute: PerMinute = Field(
        None,
        description="Tokens that requests ask for: `max_tokens`, `max_completion_tokens` or "
        "`max_output_tokens`.",
    )
    tokens_assumed: Streams = Field(
        1024,
        description="What a request counts that does not say how many tokens it wants, or says it "
        "behind the first 63 KiB of its body.",
    )
    concurrent: Concurrent = Field(None, description="Requests that are answered at the same time.")
    body: Body = Field(32 << 20, description="The largest body of a request.")
    head_timeout: Seconds = Field(
        10.0, description="How long a client may take to send its request."
    )


class Queue(Section):
    """How many requests the engines of one VIP get at once, and how many wait for that."""

    concurrent: Streams = Field(1024, description="Requests that are sent to one VIP at once.")
    waiting: Waiting = Field(
        256, description="Requests beyond these that wait; others are answered with 429."
    )
    timeout: Seconds = Field(10.0, description="How long a request waits before 503.")


class Affinity(Section):
    """Send the requests of a session to the engine that has answered it before, whose prefix cache
    knows its prompt: to the balancer, each session is a client with an address of its own. The
    service there needs `affinity`, too.
    """

    by: Annotated[AffinityBy, *kinds.choice(AffinityBy)] = Field(
        AffinityBy.PROMPT,
        description="What a session is: `prompt`: a conversation, by `prompt_cache_key` of the "
        "body, or how its prompt begins; `header`; or `key`: all requests with one key.",
    )
    header: HeaderName = Field(
        "X-Session-ID", description="The header that names the session, for `by: header`."
    )
    sources: Sources = Field(
        description="The addresses that HAProxy connects from, 2 to 1024 in a prefix. They belong "
        "to this host alone: `ip route add local PREFIX dev lo`, and a route to it for those who "
        "answer."
    )

    def of(self, address: str) -> Network | None:
        """Return the addresses that connections to this one can come from."""
        version = ip_address(address).version
        return next((each for each in self.sources if each.version == version), None)


class Route(Section):
    """Requests that go to other engines than the rest. All that is given has to apply."""

    path: RoutePath | None = Field(None, description="How the path begins.")
    model: RouteModel | None = Field(None, description="The `model` of the body.")
    engines: End = Field(description="The VIP and port of their engines.")


class Behind(Section):
    """Proxies in front of the tier, and how they say who the client is. Others are not believed."""

    prefixes: Proxies = Field((), description="Where they are.")
    files: ProxyFiles = Field(
        (),
        description="Files with more of them, one on each line, as in the agent's `lists`. They "
        "are read again when they change.",
    )
    protocol: Annotated[ProxyProtocol, *kinds.choice(ProxyProtocol)] = Field(
        ProxyProtocol.PROXY, description="How they say it."
    )


class Plain(Section):
    """HTTP without TLS: clients are sent to HTTPS, and nothing else is answered."""

    listen: Ends = Field(description="Where clients connect to, as a rule port 80.")
    acme: End | None = Field(
        None,
        description="Where certbot answers the challenges of a CA (http-01, RFC 8555): "
        "`certbot certonly --standalone --http-01-port`.",
    )


class Tier(Section):
    """One tier."""

    listen: Ends = Field(
        description="Where clients connect to. The host needs these addresses when HAProxy starts."
    )
    engines: End = Field(description="The VIP and port of the engines, which is spoken to in HTTP.")
    certificates: kinds.AbsolutePath = Field(
        description="The folder of certificates: `NAME.pem` or `NAME.crt`, with the key in it or "
        "in `NAME.key`; or `NAME/fullchain.pem` and `NAME/privkey.pem`, as certbot writes."
    )
    default_certificate: kinds.Name | None = Field(
        None,
        description="The certificate for clients that name no host, or an unknown one; without "
        "it, the first by name.",
    )
    plain: Plain | None = Field(None, description="Answer HTTP without TLS, too.")
    profile: Annotated[Profile, *kinds.choice(Profile)] = Field(
        Profile.INTERMEDIATE, description="Versions and ciphers of TLS, after Mozilla."
    )
    client_certificates: ClientCertificates | None = Field(
        None, description="Ask clients for a certificate."
    )
    keys: kinds.AbsolutePath | None = Field(
        None,
        description="The file of the keys that clients send as `Authorization: Bearer`; without "
        "it, anybody may ask.",
    )
    forward_key: bool = Field(
        False, description="Let engines see the client's key, too; they always see its name."
    )
    limits: Limits = Field(
        default_factory=lambda: Limits.model_validate({}),
        description="How much one key or client may ask for.",
    )
    queue: Queue = Field(
        default_factory=lambda: Queue.model_validate({}),
        description="How many requests engines get at once.",
    )
    affinity: Affinity | None = Field(None, description="Keep sessions at their engines.")
    routes: tuple[Route, ...] = Field(
        (), description="Requests that go elsewhere; the first one that applies counts."
    )
    behind: Behind | None = Field(None, description="Proxies in front of the tier.")
    idle_timeout: Idle = Field(
        1800.0, description="How long neither side may send anything while a request is answered."
    )
    max_connections: Streams = Field(20_000, description="Clients' connections at once.")
    source_connections: Streams | None = Field(
        None,
        description="Connections of one address (IPv6: its /64) at once; proxies of `behind` may "
        "have more. Default: a quarter of `max_connections`.",
    )
    metrics: net.Listen = Field(
        ("127.0.0.1", 9121), description="Where Prometheus gets the metrics: `address:port`."
    )
    folder: kinds.AbsolutePath = Field(
        DEFAULT_FOLDER, description="Where HAProxy's configuration and the sockets are."
    )
    user: kinds.UserName = Field("haproxy", description="The user that HAProxy runs as.")


def load(path: Path) -> Tier:
    """Return the settings in a file. Raises ConfigError."""
    check_trusted(path)
    return parse_document(Tier, read_text(path, "deploy/tier.example.yaml"), str(path), _rules)


def _rules(tier: Tier) -> Iterator[Problem]:
    if not tier.listen:
        yield Problem(("listen",), "there is no address", "give at least one address and port")
    plain = tier.plain.listen if tier.plain else ()
    for end in sorted(set(plain) & set(tier.listen)):
        yield Problem(
            ("plain", "listen"),
            f"{end[0]}:{end[1]} is an address of `listen`, too",
            "give each its own port, such as 80 and 443",
        )
    if len(tier.routes) > MOST_ROUTES:
        yield Problem(
            ("routes",), f"{len(tier.routes)} are too many", f"give at most {MOST_ROUTES}"
        )
    for number, route in enumerate(tier.routes):
        if route.path is None and route.model is None:
            yield Problem(
                ("routes", number),
                "it applies to every request",
                "give `path` or `model`, or change `engines` of the tier",
            )
    ends = [
        (("routes", number, "engines"), each.engines) for number, each in enumerate(tier.routes)
    ]
    if tier.behind is not None and not tier.behind.prefixes and not tier.behind.files:
        yield Problem(("behind",), "it names no proxy", "give `prefixes`, or `files` with some")
    yield from _affinity_rules(tier)
    for path, end in ((("engines",), tier.engines), *ends):
        if end in tier.listen:
            yield Problem(
                path,
                f"the tier listens on {shown(f'{end[0]}:{end[1]}')} itself",
                "give the VIP of the engines, which is another service of the balancer",
            )


def _affinity_rules(tier: Tier) -> Iterator[Problem]:
    affinity = tier.affinity
    if affinity is None:
        return
    versions = [each.version for each in affinity.sources]
    if len(versions) > len(set(versions)):
        yield Problem(
            ("affinity", "sources"),
            f"there are two prefixes of IPv{versions[0]}",
            "give one prefix of each family",
        )
    for end in engines_of(tier):
        if affinity.of(end[0]) is None:
            yield Problem(
                ("affinity", "sources"),
                f"none of them can connect to {end[0]}",
                f"give a prefix of IPv{ip_address(end[0]).version}, too",
            )
    if affinity.by is AffinityBy.KEY and tier.keys is None:
        yield Problem(("affinity", "by"), "the tier has no keys", "give `keys`, or by: prompt")


def proxies_of(behind: Behind) -> tuple[Network, ...]:
    """Return the prefixes of trusted proxies, from the tier's file and from others.

    Raises ConfigError for a file that is wrong or that others may write, and if there are none.
    """
    for path in behind.files:
        check_trusted(path)
    found = lists.read(AddressList("behind", behind.prefixes, behind.files))
    proxies: list[Network] = [IPv4Network(prefix) for prefix in found.of(4)]
    proxies += [IPv6Network(prefix) for prefix in found.of(6)]
    if not proxies:
        raise ConfigError(
            "these files name no proxy, so nobody could say who clients are",
            where=", ".join(map(str, behind.files)),
            remedy="put the prefixes of the proxies there, or remove `behind`",
        )
    return tuple(proxies)


def engines_of(tier: Tier) -> tuple[tuple[str, int], ...]:
    """Return every VIP and port that requests go to."""
    return tuple(dict.fromkeys((tier.engines, *(route.engines for route in tier.routes))))
