"""Holds a service between the document and the model, where the rules between values check it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.config.document import Path
from agent.config.service_schema import BackendSection, ServiceSection
from agent.model import ServiceKey

# Turns a path into its place (file and line), so that an error can point at the first of two.
type Where = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A service, as far as it could be read, with its index in the document."""

    index: int
    name: str | None
    key: ServiceKey | None
    section: ServiceSection | None  # without backends; None: it is invalid by itself
    backends: tuple[tuple[int, BackendSection], ...]  # those that could be read

    @property
    def path(self) -> Path:
        return ("services", self.index)

    def backend_path(self, index: int) -> Path:
        """Return the path of one of its backends."""
        return (*self.path, "backends", index)
