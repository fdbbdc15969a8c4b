"""What the doctor knows of a host. None means that it could not be found out."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.config.advice import Advice
from agent.errors import SteelyardError
from agent.failover.status import FailoverStatus
from agent.model import Address, Config, Forward


class Role(enum.Enum):
    """The role of the host."""

    BALANCER = "balancer"
    BACKEND = "backend"


class Verdict(enum.Enum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``fix`` is a command, or says what to do."""

    check: str
    verdict: Verdict
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What the doctor is to examine. ``forward`` None: that of the agent's services, else dsr."""

    role: Role
    interface: str
    vips: tuple[Address, ...] = ()
    forward: Forward | None = None
    others: tuple[str, ...] = ()  # further interfaces with the program


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of an attempt; ``problem`` empty: it worked."""

    problem: str = ""


@dataclass(frozen=True, slots=True)
class Bcc:
    """The BCC that this Python finds; ``found`` without ``usable`` is a different package."""

    found: bool
    usable: bool
    version: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """An XDP program on an interface."""

    id: int
    name: str
    mode: str


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter at tc ingress; ``program`` is the id of its BPF program."""

    priority: int
    kind: str
    name: str
    program: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """The slot that other programs call with ``hook: external``.

    ``program`` is the id of the program in it, 0: none; ``callers``: programs that could call it.
    """

    path: str
    program: int
    callers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """An offload of a network card; ``fixed``: the driver does not let it be changed."""

    on: bool
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Queues:
    """Receive queues in use, and how many the card has."""

    current: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Link:
    """An interface."""

    name: str
    kind: str = ""  # veth, vlan, bond, ipip, …; empty: a card
    up: bool = True
    carrier: bool = True
    mtu: int = 1500
    driver: str | None = None
    parent: str | None = None  # of a VLAN
    master: str | None = None  # a bridge or bond that it is a port of
    program: Program | None = None
    addresses: frozenset[Address] = frozenset()
    features: Mapping[str, Feature] | None = None
    queues: Queues | None = None
    xdp_features: frozenset[str] | None = None  # what the driver can do, according to the kernel
    filters: tuple[Filter, ...] | None = None  # at tc ingress, in their order


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, the kernel, and the user who runs the doctor."""

    root: bool
    capabilities: frozenset[str]
    kernel: tuple[int, int]
    kernel_release: str
    cpus: int
    bpf_map: Attempt | None
    bpf_program: Attempt | None
    btf: bool
    jit: int | None
    bpffs: bool
    bcc: Bcc
    open_files: int
    clock: bool | None = None  # whether it is synchronised, according to the kernel


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The agent's configuration file: its mistakes, and what looks unintended."""

    path: str
    problems: tuple[SteelyardError, ...] = ()
    advice: tuple[Advice, ...] = ()


@dataclass(frozen=True, slots=True)
class Process:
    """The process of the running agent, from /proc.

    ``locked_memory``: bytes that it may lock, infinite without a limit; ``same_python``: it runs in
    the doctor's own virtual environment.
    """

    open_files: int | None = None
    locked_memory: float | None = None
    capabilities: frozenset[str] | None = None
    same_python: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """The release that the doctor belongs to; ``written``: when its newest file was written."""

    version: str
    written: float


class CertificateUse(enum.Enum):
    """What a certificate is needed for."""

    PAGE = "the status page"
    SERVER = "a server, as the agent's health check sees it"
    STORE = "this balancer as a client of its fleet's store"
    STORE_CA = "the members of the fleet's store, whose certificates it signs"
    API = "the API for other hosts"
    API_CA = "the API's clients, whose certificates it signs"
    API_CRL = "the API's clients: the list of those that were revoked"
    TIER = "clients of this host's tier"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that this host depends on, or a list of revoked ones.

    ``until``: its end in seconds since the epoch, infinity: it has none; None: it cannot be read,
    for ``problem``.
    ``common_name``: of its subject; empty: it has none.
    """

    where: str
    until: float | None
    problem: str = ""
    denied: bool = False
    use: CertificateUse = CertificateUse.PAGE
    common_name: str = ""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """The agent's answers; ``problem`` and ``remedy`` if it did not answer.

    ``config`` is then that of the file, if there is a valid one.
    """

    socket: str
    status: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    problem: str = ""
    remedy: str = ""
    denied: bool = False
    process: Process | None = None
    guard: Mapping[str, Any] | None = None  # blocks and lists; None: the agent has none
    certificates: tuple[Certificate, ...] = ()
    file: ConfigFile | None = None  # if no agent answers, and the file exists


@dataclass(frozen=True, slots=True)
class Firewall:
    """A chain of nftables that drops incoming packets by default, and the names in its rules."""

    chain: str
    words: frozenset[str]  # protocols and ports
    ranges: tuple[tuple[int, int], ...] = ()  # of ports

    def names(self, *words: str) -> bool:
        """Return whether a rule names one of these."""
        return any(
            word in self.words
            or (word.isdigit() and any(low <= int(word) <= high for low, high in self.ranges))
            for word in words
        )


@dataclass(frozen=True, slots=True)
class FailoverFacts:
    """Facts about a balancer with instances of failover.

    ``problem`` and ``remedy`` are set if the failover process did not answer, ``key_problem`` and
    ``key_remedy`` concern the file with the secret.
    """

    config: Config
    status: FailoverStatus | None = None
    problem: str = ""
    remedy: str = ""
    denied: bool = False
    key_problem: str | None = ""
    key_remedy: str = ""
    macvlan: bool | None = None  # whether the kernel has it
    firewall: Firewall | None = None


@dataclass(frozen=True, slots=True)
class StoreMember:
    """A member of the fleet's store; ``problem`` empty: it answers, and is healthy.

    ``is_tls``: it can be reached, and the problem is one of certificates.
    """

    url: str
    problem: str = ""
    is_tls: bool = False


@dataclass(frozen=True, slots=True)
class Secret:
    """A file with a secret for the fleet's store that is not as it should be.

    ``denied``: the user who runs the doctor cannot read it; ``works``: the agent uses it all the
    same.
    """

    problem: str
    remedy: str
    denied: bool = False
    works: bool = False


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """Facts about a balancer of a fleet. Its certificates are among those of ``AgentFacts``.

    ``tls_problem``: why the files for TLS cannot be used; no member was asked then.
    """

    name: str
    has_user: bool  # so etcd's authentication is on
    members: tuple[StoreMember, ...] = ()
    tls_problem: str = ""
    tls_denied: bool = False
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True, slots=True)
class TierFacts:
    """What the tier of this host says of itself; ``problem`` and ``remedy`` if it did not answer.

    ``connections``: of its HAProxy's newest worker; None: HAProxy does not answer.
    """

    connections: int | None = None
    problems: tuple[str, ...] = ()
    problem: str = ""
    remedy: str = ""
    denied: bool = False


@dataclass(frozen=True, slots=True)
class InstalledUnit:
    """The file that systemd uses for a unit: its path, and whether it is the one that this release
    ships. ``hides``: the file below /usr/lib that it takes the place of; empty: none.
    """

    path: str
    as_shipped: bool
    hides: str = ""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts; ``sysctl`` by name with dots, as ``sysctl`` prints them."""

    host: Host
    links: tuple[Link, ...]
    agent: AgentFacts
    sysctl: Mapping[str, int] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()  # ids of the programs pinned by agents of this host
    entry: Entry | None = None  # of the running agent, with `hook: external`
    failover: FailoverFacts | None = None
    fleet: FleetFacts | None = None
    tier: TierFacts | None = None
    gue_ports: frozenset[int] = frozenset()  # UDP ports whose packets the kernel unpacks
    nft_installed: bool = True
    nft_tables: frozenset[str] | None = None  # of the family inet; None: they cannot be seen
    installed: Installed | None = None
    units: tuple[InstalledUnit, ...] = ()
    now: float = 0.0  # seconds since the epoch

    @property
    def hook(self) -> str:
        """The hook in use, or else the configured one; auto if no agent answers."""
        used = (self.agent.status or {}).get("dataplane", {}).get("hook", "none")
        return str(used if used != "none" else (self.agent.config or {}).get("hook", "auto"))

    @property
    def is_xdp(self) -> bool:
        """Return whether the balancer sees packets before the kernel's network stack does."""
        return self.hook != "tc"

    def is_ours(self, program: int) -> bool:
        """Return whether a program belongs to a balancer of this host."""
        running = (self.agent.status or {}).get("dataplane", {}).get("program_id")
        return program == running or program in self.pinned

    def link(self, name: str) -> Link | None:
        """Return the interface of that name."""
        return next((link for link in self.links if link.name == name), None)
