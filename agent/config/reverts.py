"""Decides what comes back when a change for a limited time ends.

Only weights and states of backends can be changed for a time. A later change of the same setting,
without a time, is meant to last, so nothing comes back then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from agent.config.edit import Edit, EditOp
from agent.config.layers import OVERRIDABLE, Document, override_of, with_override
from agent.config.load_fields import override_document
from agent.config.render import backend_fields
from agent.model import Address, Backend, Config, Service


@dataclass(frozen=True, slots=True)
class Revert:
    """A setting of a backend that goes back to ``back`` at a time (seconds since the epoch), if it
    is still what was set. ``back`` None: to what the backend's source says.
    """

    service: str
    backend: str
    address: Address
    port: int | None
    field: str  # weight or state
    set_to: object
    back: object
    at: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is about: there is one for each setting."""
        return self.service, self.backend, self.field


def planned(
    pending: Iterable[Revert],
    running: Config,
    edits: Sequence[Edit],
    for_s: float | None,
    now: float,
) -> tuple[Revert, ...]:
    """Return what comes back after these edits of what runs. ``for_s`` None: they are to last."""
    found = {each.key: each for each in pending}
    for edit in edits:
        if edit.op is not EditOp.BACKEND_SET:
            continue
        service, backend = _find(running, str(edit.service), str(edit.backend))
        for field in OVERRIDABLE:
            if service is None or backend is None or field not in edit.values:
                continue
            key = service.name, backend.name, field
            before = found.pop(key, None)
            if for_s is None:
                continue
            back = before.back if before else _now(service, backend, field)
            value = edit.values[field]
            place = backend.address, backend.port
            found[key] = Revert(service.name, backend.name, *place, field, value, back, now + for_s)
    return tuple(found.values())


def undo(running: Config, revert: Revert) -> Edit | None:
    """Return the edit of what runs by which a setting goes back; None: somebody has changed it."""
    service, backend = _find(running, revert.service, revert.backend)
    if service is None:
        return None
    if backend is not None:
        if backend_fields(backend)[revert.field] != revert.set_to:
            return None
        values = {revert.field: revert.back}
        return Edit(EditOp.BACKEND_SET, revert.service, revert.backend, values)
    # Its source does not name it now, but may do so again.
    gone = Backend(revert.backend, revert.address, port=revert.port)
    override = override_of(service, gone.address, gone.port)
    if override is None or override_document(override).get(revert.field) != revert.set_to:
        return None
    left = with_override(service, gone, {revert.field: revert.back})
    return Edit(EditOp.SERVICE_SET, revert.service, values={"overrides": left})


def _find(config: Config, service: str, backend: str) -> tuple[Service | None, Backend | None]:
    found = next((s for s in config.services if s.name == service), None)
    backends = found.backends if found else ()
    return found, next((b for b in backends if b.name == backend), None)


def _now(service: Service, backend: Backend, field: str) -> object:
    """Return what a setting is now, as an edit says it."""
    if not backend.discovered:
        return backend_fields(backend)[field]
    override = override_of(service, backend.address, backend.port)
    return override_document(override).get(field) if override else None


def to_json(reverts: Iterable[Revert]) -> list[Document]:
    """Return what has to outlive the agent."""
    return [
        {
            "service": each.service,
            "backend": each.backend,
            "address": str(each.address),
            "port": each.port,
            "field": each.field,
            "set_to": each.set_to,
            "back": each.back,
            "at": each.at,
        }
        for each in reverts
    ]


def from_json(data: Iterable[Mapping[str, Any]]) -> tuple[Revert, ...]:
    """Return what ``to_json`` made. Raises KeyError, TypeError or ValueError."""
    return tuple(
        Revert(
            each["service"],
            each["backend"],
            ip_address(each["address"]),
            each["port"],
            each["field"],
            each["set_to"],
            each["back"],
            float(each["at"]),
        )
        for each in data
    )
