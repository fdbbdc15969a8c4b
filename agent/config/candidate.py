"""A service on its way from the document to the model: what the rules between values look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.config.document import Path
from agent.config.service_schema import BackendSection, ServiceSection
from agent.model import ServiceKey

# Names the place of a path, to say where the first of two is.
type Where = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A service as far as it could be read, at its place in the document."""

    index: int
    name: str | None
    key: ServiceKey | None
    section: ServiceSection | None  # without backends; None: it has problems of its own
    backends: tuple[tuple[int, BackendSection], ...]  # those that could be read

    @property
    def path(self) -> Path:
        return ("services", self.index)

    def backend_path(self, index: int) -> Path:
        """The place of one of its backends."""
        return (*self.path, "backends", index)
