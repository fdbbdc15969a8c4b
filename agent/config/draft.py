"""Decides what a first configuration looks like, from six answers and what this host sees.

The text is for people: they will change it. It is valid as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from agent.config.advice import HostFacts
from agent.model import Address, Forward, TelemetryKind

# Where engines listen unless they are told otherwise, the most frequent first: vLLM, Triton and
# trtllm-serve; llama.cpp and TGI; SGLang; LMDeploy; Ollama; then what any web server has.
ENGINE_PORTS = (8000, 8080, 30000, 23333, 11434, 3000, 80)
# What the names of an engine's metrics begin with.
_MARKS = (
    (b"dynamo_component_", TelemetryKind.DYNAMO),
    (b"vllm:", TelemetryKind.VLLM),
    (b"vllm_", TelemetryKind.VLLM),
    (b"sglang:", TelemetryKind.SGLANG),
    (b"sglang_", TelemetryKind.SGLANG),
    (b"llamacpp:", TelemetryKind.LLAMACPP),
    (b"tgi_", TelemetryKind.TGI),
    (b"lmdeploy:", TelemetryKind.LMDEPLOY),
    (b"nv_inference_", TelemetryKind.TRITON),
)
FORWARD = {
    Forward.FULLNAT: "servers need no setup, can be anywhere, and see the balancer's address",
    Forward.DSR: "answers bypass the balancer; each server needs the VIP on lo",
    Forward.NAT: "servers see clients' addresses; the balancer has to be their gateway",
    Forward.IPIP: "as dsr, through a tunnel to servers that can be anywhere",
    Forward.GUE: "as ipip, in UDP",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server. ``port``: where its engine listens; None: not known."""

    address: Address
    port: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found at a server: its engine's port, whether GET /health was answered well there,
    and which engine's metrics are at /metrics.
    """

    port: int | None = None
    health: bool = False
    engine: TelemetryKind | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """The answers. ``health``: the path that is asked for; None: only a connection is made."""

    interface: str
    vip: Address
    port: int
    servers: tuple[Server, ...]
    forward: Forward
    health: str | None
    engine: TelemetryKind | None = None


def engine_of(page: bytes) -> TelemetryKind | None:
    """Return which engine a metrics page is of; None: of none that is known."""
    lines = page.splitlines()
    for mark, kind in _MARKS:
        if any(line.startswith((mark, b"# TYPE " + mark)) for line in lines):
            return kind
    return None


def proposed_port(seen: Collection[Seen]) -> int:
    """Return the port for clients: where the engines listen, if it is the same everywhere."""
    ports = {each.port for each in seen if each.port is not None}
    return ports.pop() if len(ports) == 1 else 80


def proposed_forward(vip: Address, port: int, servers: Collection[Server]) -> tuple[Forward, str]:
    """Return the mode that needs the least setup, and a sentence about that."""
    if any(server.address.version != vip.version for server in servers):
        return (
            Forward.IPIP,
            "A server has an address of the other family, so it has to be a tunnel.",
        )
    if any(server.port not in (None, port) for server in servers):
        return (
            Forward.FULLNAT,
            f"The servers do not listen on port {port}, so it has to be changed.",
        )
    return Forward.FULLNAT, "The first needs the least setup, the second is faster."


def _is_near(address: Address, networks: Collection[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def objection(draft: Draft, here: HostFacts) -> str:
    """Return why a draft can only be a mistake; empty: it can be meant."""
    if draft.vip in here.addresses:
        return f"{draft.vip} is an address of this host itself; a VIP is one that no host has"
    if draft.vip in {server.address for server in draft.servers}:
        return f"{draft.vip} is a server's own address; a VIP is one that no host has"
    for server in draft.servers:
        if not draft.forward.is_nat and server.port not in (None, draft.port):
            mode = draft.forward.value
            return f"{server.address} listens on port {server.port}, and {mode} changes no port"
    if draft.forward is Forward.DSR:
        for server in draft.servers:
            if not _is_near(server.address, here.networks):
                return f"{server.address} is in no network of this host, and dsr needs that"
    return ""


def named(servers: Collection[Server]) -> Iterator[tuple[str, Server]]:
    """Yield the servers with their names."""
    for number, server in enumerate(servers, 1):
        yield server.name or f"gpu-{number}", server


def text(draft: Draft) -> str:
    """Return the configuration file."""
    health = "{type: tcp}" if draft.health is None else f"{{type: http, path: {draft.health}}}"
    lines = [
        "# Written by `lb-agent init`. Change it, then: lb-agent check, lbctl reload.",
        "# All keys: docs/configuration.md.",
        f"interface: {draft.interface}",
        "services:",
        "  - name: chat",
        f'    vip: "{draft.vip}"' if draft.vip.version == 6 else f"    vip: {draft.vip}",
        f"    port: {draft.port}",
        f"    forward: {draft.forward.value}  # {FORWARD[draft.forward]}",
        f"    health: {health}",
    ]
    if draft.engine is not None:
        lines.append(f"    telemetry: {{type: {draft.engine.value}}}  # what the engines report")
    lines.append("    backends:")
    for name, server in named(draft.servers):
        own = ""
        if draft.forward.is_nat and server.port not in (None, draft.port):
            own = f", port: {server.port}"
        lines.append(f'      - {{name: {name}, address: "{server.address}"{own}}}')
    return "\n".join(lines) + "\n"


def on_servers(draft: Draft) -> tuple[str, ...]:
    """Return the commands for each server."""
    if draft.forward.is_nat:
        return ()
    mode = draft.forward.value
    return (f"deploy/backend-setup.sh up {mode} --persist {draft.vip}",)
