"""What is measured at scale: a configuration of the size that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.config.load import parse
from agent.model import CheckKind
from bench import scale
from bench.scale import Figure, Size


@pytest.mark.parametrize(
    ("check", "kind"), [("none", CheckKind.NONE), ("http", CheckKind.HTTP)]
)  # fmt: skip
def test_a_configuration_has_as_many_services_and_backends(
    tmp_path: Path, check: str, kind: CheckKind
):
    config = parse(scale._document(tmp_path, Size(20, 100), check), "agent.yaml")
    assert len(config.services) == 20
    addresses = {backend.address for service in config.services for backend in service.backends}
    assert len(addresses) == 100
    assert {service.health.kind for service in config.services} == {kind}


def test_a_target_is_of_the_largest_size_alone():
    figure = Figure("one edit", 12.345, "ms", 50)
    assert scale._line(scale.SIZES[-1], figure).endswith("| 12.35 | ms | 50 |")
    assert scale._line(scale.SIZES[0], figure).endswith("| 12.35 | ms |  |")


@pytest.mark.parametrize("text", ["100", "axb", "1x2x3"])
def test_a_size_that_is_none_is_refused_with_how_to_write_it(text: str):
    result = CliRunner().invoke(scale.main, ["--size", text])
    assert result.exit_code == 2
    assert "100x1000" in result.output
