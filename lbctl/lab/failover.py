"""Owns what happens to the lab's balancers if there are several: roles, deaths, cut cables."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping

from agent.errors import SteelyardError
from agent.failover import client
from lbctl.lab import netns, processes, wiring
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Lab, Node, Role

PROCESS = "failover"  # its name, beside agent and http server
MASTER, BACKUP = "master", "backup"
_ASK_S = 1.0
_POLL_S = 0.02
_SETTLE_S = 60.0


def process_of(balancer: Node) -> str:
    """Return the name of a balancer's failover process, of its log and of its pid file."""
    return f"{balancer.name}-failover"


def make_key(lab: Lab) -> None:
    """Write the secret that the balancers share."""
    lab.key_file.touch(mode=0o600)
    lab.key_file.write_text(f"{secrets.token_urlsafe(32)}\n")


def start(lab: Lab, balancer: Node) -> None:
    """Start the failover process of a balancer."""
    program = processes.program("lb-agent", "agent.main")
    command = [*program, "failover", "--config", str(lab.config_path(balancer))]
    processes.start(lab.run_dir, process_of(balancer), balancer.namespace, command)


def roles(lab: Lab, balancer: Node) -> dict[str, str]:
    """Return the role of each virtual router of a balancer; empty: it does not answer."""
    try:
        status = client.ask(lab.failover_socket(balancer), {"do": "status"}, _ASK_S)
    except (SteelyardError, OSError):
        return {}
    return {router["name"]: router["role"] for router in status["routers"]}


def summary(roles: Mapping[str, str]) -> str | None:
    """Return the role of a whole balancer, in one word if its virtual routers agree."""
    distinct = set(roles.values())
    if len(distinct) == 1:
        return distinct.pop()
    return ", ".join(f"{name} {role}" for name, role in roles.items()) or None


def await_answer(lab: Lab, balancer: Node, timeout_s: float = _SETTLE_S) -> None:
    """Wait until the failover process of a balancer answers."""
    _await(lab, balancer, lambda: bool(roles(lab, balancer)), "answering", timeout_s)


def await_role(lab: Lab, balancer: Node, role: str, timeout_s: float = _SETTLE_S) -> float:
    """Wait until a balancer has a role for all VIPs; return the moment (monotonic seconds)."""
    _await(lab, balancer, lambda: summary(roles(lab, balancer)) == role, role, timeout_s)
    return time.monotonic()


def _await(lab: Lab, balancer: Node, so: Callable[[], bool], wanted: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not so():
        if time.monotonic() > deadline:
            found = summary(roles(lab, balancer)) or "not answering"
            raise LabError(
                f"{balancer.name} should be {wanted} and is {found}",
                where=f"lab {lab.name}",
                remedy=f"see {lab.run_dir / process_of(balancer)}.log",
            )
        time.sleep(_POLL_S)


def settle(lab: Lab) -> None:
    """Start the failover processes of all balancers, so that the first one becomes master."""
    first, *others = lab.nodes(Role.BALANCER)
    start(lab, first)
    # From here on the first one becomes master before the others have started.
    fit = (BACKUP, MASTER)
    _await(lab, first, lambda: summary(roles(lab, first)) in fit, "fit", _SETTLE_S)
    for balancer in others:
        start(lab, balancer)
    await_role(lab, first, MASTER)
    for balancer in others:
        await_role(lab, balancer, BACKUP)


def strike(lab: Lab, balancer: Node) -> float:
    """Kill a balancer's agent and failover process (SIGKILL) and cut its cables, all together.

    Return the moment. Only the cut stops the service: the kernel would go on without the processes.
    """
    both = (balancer.name, process_of(balancer))
    # From here on the processes do nothing, although the kernel takes some time to end them.
    processes.freeze(lab.run_dir, *both)
    at_s = cut(lab, balancer)
    processes.kill(lab.run_dir, *both)
    return at_s


def cut(lab: Lab, node: Node, *, silent: bool = False) -> float:
    """Cut the cables of a host; return when they were cut. ``silent``: the host sees them up."""
    netns.ip(wiring.cut_commands(node, silent=silent), lab.switch)
    return time.monotonic()


def mend(lab: Lab, node: Node) -> float:
    """Undo ``cut``; return the moment before that."""
    at_s = time.monotonic()
    netns.ip(wiring.mend_commands(lab, node), lab.switch)
    return at_s
