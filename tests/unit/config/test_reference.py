"""The generated page of docs."""

from __future__ import annotations

import pytest

from agent.config import reference
from agent.config.schema import DocumentSection
from agent.config.service_schema import Section


def test_the_page_is_up_to_date() -> None:
    assert reference.main(["--check"]) == 0


def test_a_stale_page_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("docs")
    monkeypatch.setattr(reference, "_ROOT", folder)
    monkeypatch.setattr(reference, "TARGET", folder / "configuration.md")
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


def test_every_key_is_described() -> None:
    def described(section: type[Section]) -> bool:
        return all(info.description for info in section.model_fields.values())

    sections: list[type[Section]] = [
        DocumentSection,
        *(section for _, section in reference.SECTIONS),
    ]
    assert all(described(section) for section in sections)
