"""The generated page of docs."""

from __future__ import annotations

from agent.config import reference
from agent.config.schema import DocumentSection
from agent.config.service_schema import Section


def test_every_key_is_described() -> None:
    def described(section: type[Section]) -> bool:
        return all(info.description for info in section.model_fields.values())

    sections: list[type[Section]] = [
        DocumentSection,
        *(section for _, section in reference.SECTIONS),
    ]
    assert all(described(section) for section in sections)
