"""What in a valid configuration is worth a warning."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from agent.config.advice import HostFacts, advice
from agent.config.load import parse

HERE = HostFacts(
    frozenset({"lo", "eth0"}),
    frozenset({ip_address("10.0.0.5"), ip_address("fd00::5")}),
    frozenset({ip_network("10.0.0.0/24"), ip_network("fd00::/64")}),
)
GOOD = """\
interface: eth0
services:
  - name: chat
    vip: 10.0.0.10
    port: 22
    backends:
      - {name: a, address: 10.0.0.21}
      - {name: b, address: 10.0.0.22, weight: 0}
"""
NO_WEIGHT = GOOD.replace("21}", "21, weight: 0}")


def said(text: str, here: HostFacts = HERE) -> list[str]:
    return [str(each) for each in advice(parse(text, "agent.yaml"), here)]


def test_of_what_is_well_nothing_is_said() -> None:
    assert said(GOOD) == []
    assert said(GOOD.replace("10.0.0.", "fd00::")) == []


def test_a_group_without_a_secret_chooses_as_everybody_can_compute() -> None:
    group = "failover: {instances: [{name: a, vrid: 51}]}\n"
    (found,) = said(GOOD + group)
    assert found.startswith("hash_seed: ")
    assert said(GOOD + group + "hash_seed: 7\n") == []


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (GOOD.replace("0.10", "0.5"), "service chat", "10.0.0.5 is an address of this host itself"),
        (GOOD[: GOOD.index("    backends")], "service chat", "has no backend"),
        (NO_WEIGHT, "service chat", "all weights are 0"),
        (GOOD.replace("21}", "21, state: drain}"), "service chat", "none with a weight is active"),
        (GOOD.replace("0.21", "1.21"), "service chat, backend a", "10.0.1.21 is in none of this"),
    ],
)
def test_what_can_be_meant_and_often_is_not_is_a_warning(text: str, where: str, what: str) -> None:
    (found,) = said(text)
    assert found.startswith(f"{where}: ")
    assert what in found
    assert "remedy: " in found


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("0.10", "0.5") + "manage_vips: false\n",
        GOOD.replace("0.10", "0.4/30"),
        GOOD.replace("0.21", "1.21").replace("port: 22", "port: 22\n    forward: ipip"),
        NO_WEIGHT.replace(
            "weight: 0}\n      - ",
            "weight: 0}\n      - {name: c, address: 10.0.0.9, backup: true}\n      - ",
        ),
    ],
    ids=["VIPs of the operator's own", "a prefix", "through routers", "a backup"],
)
def test_what_is_meant_is_no_warning(text: str) -> None:
    assert said(text) == []


def test_on_another_host_only_the_file_is_judged() -> None:
    other = GOOD.replace("eth0", "enp1s0").replace("0.10", "0.5").replace("0.21", "1.21")
    (found,) = said(other)
    assert found.startswith("interface enp1s0: this host has no such interface")
    assert len(said(NO_WEIGHT.replace("eth0", "enp1s0"))) == 2
