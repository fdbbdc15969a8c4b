"""Decides whether the balancers are as they should be, from what their agents say of themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

SOCKET = "/run/steelyard/agent.sock"
_PATHS = ("status", "failover", "services")
# What `lbctl` asks as well, without Python's start, which takes an emulated machine seconds.
QUESTION = (
    *("curl", "--silent", "--show-error", "--fail", "--max-time", "60", "--unix-socket", SOCKET),
    *(f"http://agent/v1/{path}" for path in _PATHS),
)


@dataclass(frozen=True, slots=True)
class Service:
    """A service, as a client sees it, and its backends."""

    name: str
    vip: str
    port: int
    forward: str
    backends: Mapping[str, str]  # name -> state

    @property
    def family(self) -> str:
        """ipv4 or ipv6."""
        return f"ipv{ip_address(self.vip).version}"

    @property
    def target(self) -> str:
        """Where a client finds it."""
        return f"[{self.vip}]:{self.port}" if ":" in self.vip else f"{self.vip}:{self.port}"


@dataclass(frozen=True, slots=True)
class View:
    """One balancer."""

    version: str
    interface: str
    attached: bool
    hook: str
    priority: int
    roles: Mapping[str, str]  # virtual router -> role
    reasons: tuple[str, ...]
    problems: tuple[str, ...]
    sync: Mapping[str, str]  # peer -> state
    services: tuple[Service, ...]

    @property
    def role(self) -> str:
        """One word if its virtual routers agree."""
        distinct = sorted(set(self.roles.values()))
        return distinct[0] if len(distinct) == 1 else ", ".join(distinct) or "none"


def parse(text: str) -> View:
    """A balancer from the answers to ``QUESTION``; raises ValueError."""
    try:
        status, failover, services = _documents(text)
        routers = failover["instances"]
        return View(
            version=status["agent"]["version"],
            interface=status["dataplane"]["interface"],
            attached=status["dataplane"]["attached"],
            hook=status["dataplane"]["hook"],
            priority=max((router["priority_configured"] or 0 for router in routers), default=0),
            roles={router["name"]: router["role"] for router in routers},
            reasons=tuple(router["why"] for router in routers),
            problems=tuple(p["text"] for router in routers for p in router["problems"]),
            sync={peer["address"]: peer["state"] for peer in failover["flow_sync"]["peers"]},
            services=tuple(map(_service, services["services"])),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"the agent's answer lacks {error}") from error


def _documents(text: str) -> Iterator[Any]:
    decoder, rest = json.JSONDecoder(), text.lstrip()
    while rest:
        document, end = decoder.raw_decode(rest)
        yield document
        rest = rest[end:].lstrip()


def _service(document: Mapping[str, Any]) -> Service:
    return Service(
        document["name"],
        document["vip"],
        int(document["port"]),
        document["forward"],
        {backend["name"]: backend["state"] for backend in document["backends"]},
    )


def preferred(views: Mapping[str, View]) -> str:
    """The balancer that should be master: that of the highest priority."""
    return max(views, key=lambda name: views[name].priority)


def lacking(views: Mapping[str, View | None]) -> str | None:
    """What is not yet as it should be when nothing is wrong; None: nothing."""
    for name, view in views.items():
        if view is None:
            return f"{name}: its agent does not answer"
    known = {name: view for name, view in views.items() if view is not None}
    master = preferred(known)
    for name, view in known.items():
        if why := _lacking_alone(view, "master" if name == master else "backup", len(known)):
            return f"{name}: {why}"
    return None


def _lacking_alone(view: View, role: str, balancers: int) -> str | None:
    down = [
        f"{service.name}/{backend} is {state}"
        for service in view.services
        for backend, state in service.backends.items()
        if state != "up"
    ]
    if not view.attached:
        return "the program is not attached"
    if not view.services or down:
        return ", ".join(down) or "no services"
    if balancers == 1:
        return None
    if view.role != role:
        return f"{view.role} instead of {role} ({'; '.join(dict.fromkeys(view.reasons))})"
    if view.problems:
        return "; ".join(view.problems)
    apart = [f"{peer} {state}" for peer, state in view.sync.items() if state != "connected"]
    return f"flow sync: {', '.join(apart) or 'no peers'}" if apart or not view.sync else None


def states_of(views: Sequence[View], backend: str) -> set[str]:
    """The states that a backend has, in all services of all these balancers."""
    return {service.backends[backend] for view in views for service in view.services}
