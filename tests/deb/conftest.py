"""Built once for all tests here: the package, a later build of it, and a clean system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deb.machine import Machine, booted, build, field, make_archive


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def later(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Path:
    return build(tmp_path_factory.mktemp("later"), field(package, "Architecture"), "2")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Path:
    # python3-venv is for deploy/setup.sh.
    wanted = [field(package, "Depends"), "python3-venv"]
    return make_archive(tmp_path_factory.mktemp("system"), wanted)


@pytest.fixture
def machine(archive: Path, tmp_path: Path) -> Iterator[Machine]:
    with booted(archive, tmp_path) as system:
        yield system
