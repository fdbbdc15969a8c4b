"""What may be said of Suricata's alerts."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from agent.config.plan import global_changes
from agent.config.render import document
from agent.model import Suricata
from tests.unit.config.documents import load, problems, service

EVE = {"eve": "/var/log/suricata/eve.json"}


def test_with_the_file_alone_nobody_is_blocked() -> None:
    config = load(service(), suricata=EVE)
    assert config.suricata == Suricata(Path(EVE["eve"]))
    assert not config.suricata.blocks
    assert load(**document(config)) == config
    assert load(service()).suricata == Suricata()


def test_everything_can_be_said_and_is_taken_over_while_the_agent_runs() -> None:
    given = EVE | {
        "block_severity": 1, "block_signatures": [2024897], "log_signatures": [7],
        "block_for": "1h", "most_blocked": "10%", "proxies": ["10.0.0.20", "fd00:20::/64"],
    }  # fmt: skip
    config = load(service(), suricata=given)
    assert config.suricata == Suricata(
        Path(EVE["eve"]), 1, (2024897,), (7,), 3600.0, 0.1,
        (ip_network("10.0.0.20/32"), ip_network("fd00:20::/64")),
    )  # fmt: skip
    assert config.suricata.blocks
    assert load(**document(config)) == config
    changes = global_changes(load(service()), config)
    assert len(changes) == 7
    assert not any(change.needs_restart for change in changes)


@pytest.mark.parametrize(
    "given", [EVE | {"block_severity": "none"}, EVE | {"block_severity": None}]
)
def test_none_is_no_severity(given: dict[str, object]) -> None:
    assert load(service(), suricata=given).suricata == Suricata(Path(EVE["eve"]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"block_severity": 1}, "no alerts are read, so this has no effect"),
        ({"proxies": ["10.0.0.20"]}, "no alerts are read"),
        ({"eve": "eve.json"}, "is not an absolute path"),
        (EVE | {"block_severity": 0}, "0 is out of range"),
        (EVE | {"block_severity": "high"}, "'high' is not a whole number"),
        (EVE | {"block_signatures": 2024897}, "2024897 is not a list"),
        (EVE | {"block_signatures": [7, 7]}, "7 is given twice"),
        (EVE | {"block_signatures": [-7]}, "-7 is out of range"),
        (EVE | {"block_signatures": [*range(1, 1026)]}, "1025 signatures are too many"),
        (EVE | {"block_signatures": [7, 8], "log_signatures": [8]}, "8 is in `block_signatures`"),
        (EVE | {"block_for": "0s"}, "is out of range"),
        (EVE | {"most_blocked": "all"}, "'all' is not a share"),
        (EVE | {"proxies": ["0.0.0.0/0"]}, "0.0.0.0/0 is too large: any host in it could name any"),
        (EVE | {"proxies": ["10.0.0.20/24"]}, "is an address inside of 10.0.0.0/24"),
        (EVE | {"block": 1}, "block"),
    ],
)
def test_what_means_nothing_is_refused(given: dict[str, object], words: str) -> None:
    found = problems(service(), suricata=given)
    assert len(found) == 1
    assert words in found[0]
