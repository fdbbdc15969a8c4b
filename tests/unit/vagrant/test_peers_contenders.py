"""When IPVS has its backends, who comes first in a round, and what a machine has to be again."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import cast

import pytest

from vagrant.peers import contenders, rounds, setting
from vagrant.peers.contenders import Contender

VIP = IPv4Address("10.77.1.100")
TABLE = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.77.1.100:8091 mh (mh-port)
  -> 10.77.0.101:8091             Route   100    0          0
  -> 10.77.0.102:8091             Route   100    0          0
TCP  10.77.1.100:8092 mh (mh-port)
  -> 10.77.0.101:8092             Tunnel  100    0          3
  -> 10.77.0.102:8092             Tunnel  100    0          0
TCP  10.77.1.100:8093 mh (mh-port)
  -> 10.77.0.101:8093             Masq    100    0          0
  -> 10.77.0.102:8093             Masq    100    1          0
"""


def test_all_servers_are_there() -> None:
    assert contenders.missing_servers(TABLE, VIP, 2) is None


@pytest.mark.parametrize(
    ("table", "lacks"),
    [
        (TABLE.replace("  -> 10.77.0.102:8092             Tunnel  100", "  #"), "TUN has 1 of 2"),
        (TABLE.replace("Masq    100    1", "Masq    0      1"), "NAT has 1 of 2"),
        ("IP Virtual Server version 1.2.1 (size=4096)\n", "DR has 0 of 2"),
    ],
)
def test_a_server_that_is_missing_or_has_no_weight_is_named(table: str, lacks: str) -> None:
    assert lacks in (contenders.missing_servers(table, VIP, 2) or "")


def test_each_round_begins_with_another_side() -> None:
    both = cast("tuple[Contender, ...]", ("a", "b"))
    orders = ["".join(cast("tuple[str, ...]", rounds.order(both, n))) for n in range(3)]
    assert orders == ["ab", "ba", "ab"]


def test_answers_of_nat_go_by_the_table_that_the_provisioning_has() -> None:
    rules = [
        {"priority": 0, "src": "all", "table": "local"},
        {"priority": 1000, "src": "all", "ipproto": "tcp", "sport": 8082, "table": "82"},
    ]
    assert setting.nat_table(rules, 8082) == "82"
    assert setting.nat_table(rules, 8083) is None


def test_what_has_changed_is_told_line_by_line() -> None:
    assert setting.differences(["a", "b"], ["a", "b"]) == []
    assert setting.differences(["a", "b"], ["b", "c"]) == ["-a", "+c"]
