"""Reads a configuration file for ``apply`` and ``diff``: the services it wants, and the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config.load import check_end, parse
from agent.config.plan import global_changes
from agent.config.redact import hides
from agent.config.render import document
from agent.errors import ConfigError
from lbctl.environment import Agent, Environment
from lbctl.output import to_yaml

STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class Wanted:
    """``services`` in the form that the API takes; ``ignored``: other settings that differ."""

    services: list[dict[str, Any]]
    ignored: tuple[str, ...]


def read(env: Environment, agent: Agent, path: Path) -> Wanted:
    """Return the file's services, checked here so that errors name its lines.

    The agent's own settings may be left out. If they are in the file and differ, ``apply``
    cannot change them, and says so.
    """
    name, text = _text(env, path)
    check_end(text, name)
    running = agent.get("/v1/config")["config"]
    complete = _states_interface(text)
    config = parse(text if complete else _with_interface(text, running["interface"]), name)
    services: Any = document(config).get("services", [])
    if not complete:
        return Wanted(services, ())
    known = {key: value for key, value in running.items() if not hides(value)}
    differing = global_changes(parse(to_yaml(known), "running configuration"), config)
    hidden = running.keys() - known.keys()  # from whoever is no admin
    return Wanted(services, tuple(each.field for each in differing if each.field not in hidden))


def _text(env: Environment, path: Path) -> tuple[str, str]:
    if path == STDIN:
        return "standard input", env.stdin.read()
    try:
        return str(path), path.read_text()
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="name a file that you can read, or - for standard input",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            "is not UTF-8 text", where=str(path), remedy="is this a configuration file?"
        ) from error


def _states_interface(text: str) -> bool:
    """Return whether the file is a whole one; broken YAML counts as whole: the parser then says
    where.
    """
    import yaml

    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:
        return True
    return not isinstance(loaded, Mapping) or "interface" in loaded


def _with_interface(text: str, interface: str) -> str:
    """Return the same document with the running interface, without moving any line."""
    flow = re.match(r"(?:\s|#[^\n]*\n)*\{", text)
    if flow:
        inner = "" if re.match(r"\s*\}", text[flow.end() :]) else ","
        return f'{text[: flow.end()]}"interface": "{interface}"{inner}{text[flow.end() :]}'
    return f'{text.rstrip()}\ninterface: "{interface}"\n'
