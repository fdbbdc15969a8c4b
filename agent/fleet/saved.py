"""Keeps on disk which version of the fleet's services a balancer runs.

So it starts with them while the store is away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ConfigError
from agent.files import write_atomically
from agent.fleet.versions import Document, Documents


@dataclass(frozen=True, slots=True)
class Saved:
    """What a balancer runs: a version (0: none yet), and its services.

    ``frozen``: why it takes no further versions; None: it does.
    """

    version: int
    since: float  # seconds since the epoch
    services: Documents
    frozen: str | None = None


def path_of(state_dir: Path, name: str) -> Path:
    """Return where an instance keeps what it runs of its fleet."""
    return state_dir / f"{name}.fleet.json"


def read(path: Path, fleet: str) -> Saved | None:
    """Return what was saved, or None if nothing was, or for another fleet.

    Raises ConfigError if it is damaged: the services of the file would be no replacement.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    match document:
        case {
            "fleet": str(of),
            "version": int(version),
            "since": float(since) | int(since),
            "services": list(services),
            "frozen": str(_) | None as frozen,
        }:
            if of != fleet:
                return None
            found: dict[str, Document] = {}
            for service in services:
                if not isinstance(service, dict) or not isinstance(service.get("name"), str):
                    raise _damaged(path, "a service has no name")
                found[service["name"]] = service
            return Saved(version, since, found, frozen)
    raise _damaged(path, "something is missing")


def write(path: Path, fleet: str, saved: Saved) -> None:
    """Save what is run. Raises OSError."""
    head = {
        "fleet": fleet,
        "version": saved.version,
        "since": saved.since,
        "frozen": saved.frozen,
    }
    # A service a line, for people; `indent` would take ten times as long.
    services = ",\n".join(json.dumps(service) for service in saved.services.values())
    write_atomically(path, f'{json.dumps(head)[:-1]}, "services": [\n{services}\n]}}\n')


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"what this balancer ran of its fleet cannot be read: {why}",
        where=str(path),
        remedy="remove it: the agent then begins with the services of its file, and takes the "
        "fleet's as soon as it reaches the store",
    )
