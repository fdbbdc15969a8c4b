"""The host's kernel headers: there, or a refusal that names the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.dataplane.compile import check_host_headers
from agent.errors import DataplaneError


def test_missing_host_headers_are_refused_with_the_package_to_install(tmp_path: Path) -> None:
    with pytest.raises(DataplaneError) as refused:
        check_host_headers(tmp_path / "6.12.0-amd64")
    assert "linux-headers-6.12.0-amd64" in refused.value.remedy


def test_host_headers_that_are_there_are_taken(tmp_path: Path) -> None:
    (tmp_path / "6.12.0-amd64" / "build").mkdir(parents=True)
    check_host_headers(tmp_path / "6.12.0-amd64")
