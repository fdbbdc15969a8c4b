"""Decides how the options of a lab are saved, so that later commands find what was built."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict

from agent.errors import ConfigError
from agent.model import Forward, Hook, Scheduler
from lbctl.lab.topology import Lab


def to_document(lab: Lab) -> dict[str, object]:
    """Return the options of a lab as JSON values; ``from_document`` reads them back."""
    return {
        key: value.value if isinstance(value, enum.Enum) else value
        for key, value in asdict(lab).items()
    }


def from_document(document: Mapping[str, object]) -> Lab:
    """Return a lab from what ``to_document`` wrote; raises ConfigError on anything else."""
    try:
        return Lab(
            name=str(document["name"]),
            backends=int(str(document["backends"])),
            spares=int(str(document["spares"])),
            balancers=int(str(document["balancers"])),
            clients=int(str(document["clients"])),
            forward=Forward(document["forward"]),
            scheduler=Scheduler(document["scheduler"]),
            hook=Hook(document["hook"]),
            weights=tuple(int(weight) for weight in document["weights"]),  # type: ignore[attr-defined]
            arms=int(str(document["arms"])),
            vlan=None if document["vlan"] is None else int(str(document["vlan"])),
            engines=tuple(map(str, document["engines"])),  # type: ignore[call-overload]
            time_scale=float(str(document["time_scale"])),
            etcd=bool(document["etcd"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the options of the lab cannot be read: {error!r}",
            where="lab.json",
            remedy="remove what is left of it: `lbctl lab down`, with --name if it has one",
        ) from error
