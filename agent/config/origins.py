"""Decides which layer each setting of a service comes from, for people."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from agent.config.layers import override_of
from agent.config.load_fields import override_document
from agent.config.render import IDENTITY, backend_fields, default_fields, service_fields
from agent.model import Backend, Service


class Origin(enum.Enum):
    """A layer of what runs, the lowest first. What is at its default comes from none of them."""

    FILE = "file"  # the agent's file, defaults of it included
    FLEET = "fleet"  # the version of the fleet that runs, instead of the file
    RUNTIME = "runtime"  # an operator's change that is not in the file
    SOURCE = "source"  # a source of backends
    OVERRIDE = "override"  # an operator's decision about a discovered backend


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, with its value and the layer that decided it. ``backend`` None: the service's
    own.
    """

    backend: str | None
    field: str
    value: object
    origin: Origin


def origins(
    running: Service, file: Service | None, base: Origin = Origin.FILE
) -> tuple[Setting, ...]:
    """Return the settings of a service that are not at their default, and what each backend is.

    ``file`` is what ``base``, the agent's file or the fleet's version, says of a service of that
    name, if it has one.
    """
    return (*_of_service(running, file, base), *_of_backends(running, file, base))


def _of_service(running: Service, file: Service | None, base: Origin) -> Iterator[Setting]:
    before = service_fields(file) if file is not None else default_fields(running)
    default = default_fields(running)
    for field, value in service_fields(running).items():
        is_file = before[field] == value
        is_default = field not in IDENTITY and default[field] == value
        if field == "overrides" or (is_file and is_default):
            continue  # overrides are shown with the backends that they are about
        is_written = is_file and file is not None
        yield Setting(None, field, value, base if is_written else Origin.RUNTIME)


def _of_backends(running: Service, file: Service | None, base: Origin) -> Iterator[Setting]:
    written = {backend.name: backend for backend in file.backends} if file is not None else {}
    for backend in running.backends:
        if backend.discovered:
            override = override_of(running, backend.address, backend.port)
            decided = override_document(override).keys() if override else ()
            for field, value in _telling(backend):
                origin = Origin.OVERRIDE if field in decided else Origin.SOURCE
                yield Setting(backend.name, field, value, origin)
            continue
        same = written.get(backend.name)
        before = backend_fields(same) if same is not None else {}
        for field, value in _telling(backend):
            is_same = same is not None and before[field] == value
            yield Setting(backend.name, field, value, base if is_same else Origin.RUNTIME)


def _telling(backend: Backend) -> Iterator[tuple[str, object]]:
    """Yield a backend's address, weight and state, and what else is not at its default."""
    default = backend_fields(Backend(backend.name, backend.address))
    for field, value in backend_fields(backend).items():
        if value != default[field] or field in ("address", "weight", "state"):
            yield field, value
