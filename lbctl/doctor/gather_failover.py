"""Gathers the facts about failover: the process, the secret, macvlan, the firewall."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.config.load import parse
from agent.errors import SteelyardError
from agent.failover import client
from agent.failover.host import rtnetlink
from agent.failover.host.kernel import Kernel
from agent.failover.model import socket_of
from agent.failover.secret import read_secret
from agent.failover.status import FailoverStatus, from_json
from agent.failover.vrrp.headers import virtual_mac
from agent.model import Config
from agent.state.guard import table_name
from lbctl.doctor.facts import FailoverFacts, Firewall

_ANSWER_TIMEOUT_S = 3.0


def gather(
    document: Mapping[str, Any] | None, agent_socket: Path, rules: str | None
) -> FailoverFacts | None:
    """Return the facts; None: no instance is configured. ``rules``: of ``nft -j list ruleset``."""
    config = _config(document)
    if config is None:
        return None
    status, error = _ask(socket_of(config.failover, agent_socket))
    key_problem, key_remedy = _key(config.failover.key_file)
    return FailoverFacts(
        config,
        status,
        problem=error.message if error else "",
        remedy=error.remedy if error else "",
        denied=error is not None and isinstance(error.__cause__, PermissionError),
        key_problem=key_problem,
        key_remedy=key_remedy,
        macvlan=_has_macvlan() if any(i.virtual_mac for i in config.failover.instances) else None,
        firewall=firewall(rules),
    )


def _config(document: Mapping[str, Any] | None) -> Config | None:
    if not (document or {}).get("failover", {}).get("instances"):
        return None
    try:
        return parse(json.dumps(document), "the agent's configuration")
    except SteelyardError:  # an agent of another version
        return None


def _ask(socket: Path) -> tuple[FailoverStatus | None, SteelyardError | None]:
    try:
        return from_json(client.ask(socket, {"do": "status"}, _ANSWER_TIMEOUT_S)), None
    except SteelyardError as error:
        return None, error


def _key(path: Path | None) -> tuple[str | None, str]:
    """Return the problem with the secret, and the remedy; None: it cannot be seen from here."""
    if path is None:
        return "", ""
    try:
        read_secret(path)
    except SteelyardError as error:
        if isinstance(error.__cause__, PermissionError):
            return None, "sudo lbctl doctor"
        return f"{path}: {error.message}", error.remedy
    return "", ""


def _has_macvlan() -> bool | None:
    """Ask for a macvlan on no interface: the error says whether the kernel has macvlan."""
    try:
        kernel = Kernel()
    except SteelyardError:
        return None
    try:
        answer = kernel.change([0], _impossible)[0]
    except OSError:
        return None
    finally:
        kernel.close()
    return {errno.ENODEV: True, errno.EOPNOTSUPP: False}.get(answer)


def _impossible(sequence: int, parent: int) -> bytes:
    return rtnetlink.add_macvlan(sequence, parent, "vrrp4.0", virtual_mac(4, 0))


def firewall(rules: str | None) -> Firewall | None:
    """Return the first chain that drops by default; None: there is none, or it cannot be seen."""
    try:
        found = json.loads(rules or "{}").get("nftables", [])
    except ValueError:
        return None
    found = [entry for entry in found if not any(map(_is_guard, entry.values()))]
    for entry in found:
        chain = entry.get("chain") or {}
        if chain.get("hook") == "input" and chain.get("policy") == "drop":
            rules_and_sets = (each for each in found if "rule" in each or "set" in each)
            values = [value for each in rules_and_sets for value in _leaves(each)]
            return Firewall(
                f"{chain['family']} {chain['table']} {chain['name']}",
                frozenset(value for value in values if isinstance(value, str)),
                tuple(value for value in values if isinstance(value, tuple)),
            )
    return None


def _is_guard(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry belongs to a balancer's guard; the names in it are no exceptions."""
    return str(entry.get("table", "")).startswith(table_name(""))


def _leaves(value: object) -> Iterator[str | tuple[int, int]]:
    """Yield words and numbers in nested values, and ranges of numbers."""
    if isinstance(value, dict):
        match value.get("range"):
            case [int(low), int(high)]:
                yield low, high
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield str(value)
