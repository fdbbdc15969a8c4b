"""Documents of a few words, and what loading them comes to."""

from __future__ import annotations

import pytest
import yaml

from agent.config.load import parse
from agent.errors import ConfigError
from agent.model import Config


def service(**values: object) -> dict[str, object]:
    return {"name": "chat", "vip": "10.0.0.10", "port": 80} | values


def backend(number: int, **values: object) -> dict[str, object]:
    return {"name": f"gpu-{number}", "address": f"10.0.1.{number}"} | values


def load(*services: dict[str, object], **values: object) -> Config:
    return parse(yaml.safe_dump({"interface": "eth0", "services": list(services)} | values), "f")


def problems(*services: dict[str, object], **values: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*services, **values)
    assert all(problem.remedy and problem.where for problem in caught.value.problems)
    return [problem.message for problem in caught.value.problems]
