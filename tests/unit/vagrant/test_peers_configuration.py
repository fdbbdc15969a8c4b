"""Both sides get the same addresses, checks and adverts from the balancer's own configuration."""

from __future__ import annotations

import re
from ipaddress import IPv4Address

import pytest

from agent.config import load
from agent.model import CheckKind, Forward, Scheduler
from vagrant.peers import configuration
from vagrant.peers.configuration import Ground
from vagrant.peers.plan import MODES
from vagrant.smoke.children import VagrantError

OWN = """\
name: lb1
interface: eth1
tables: {flows: 262144}
nat:
  sources_ipv4: [10.77.0.100]
  sources_ipv6: ["fd77::100"]
failover:
  key_file: /etc/steelyard/failover.key
  instances:
    - {name: web, vrid: 77, priority: 150, advert_interval: 500ms}
  sync:
    peers: [10.77.0.12]
defaults:
  scheduler: round-robin
  health: {type: http, path: /health, interval: 4s, timeout: 3s, rise: 2, fall: 2}
services:
  - name: dsr6
    vip: "fd77:0:0:1::100"
    port: 80
    backends:
      - {name: be1, address: "fd77::101"}
  - name: nat
    vip: "10.77.1.100"
    port: 82
    forward: nat
    backends:
      - {name: be1, address: "10.77.0.101", port: 8082, weight: 30}
      - {name: be2, address: "10.77.0.102", port: 8082}
"""


@pytest.fixture
def ground() -> Ground:
    return configuration.read(OWN, "lb1")


def test_the_ground_is_read(ground: Ground) -> None:
    assert ground.vip == IPv4Address("10.77.1.100")
    assert ground.gateway == IPv4Address("10.77.0.100")
    assert [str(backend.address) for backend in ground.backends] == ["10.77.0.101", "10.77.0.102"]
    assert ground.nat_port == 8082
    assert ground.target(MODES[0]) == "10.77.1.100:8091"


@pytest.mark.parametrize(
    "text",
    [
        OWN.replace("forward: nat", "forward: fullnat"),
        OWN.replace("sources_ipv4: [10.77.0.100]", "sources_ipv4: []"),
        re.sub(r"failover:.*?(?=defaults:)", "", OWN, flags=re.DOTALL),
    ],
)
def test_a_configuration_that_lacks_something_is_refused(text: str) -> None:
    with pytest.raises(VagrantError, match="lb1"):
        configuration.read(text, "lb1")


def test_steelyard_has_a_service_for_each_mode_and_tells_nobody(ground: Ground) -> None:
    config = load.parse(configuration.agent_yaml(ground), "made")
    assert config.name != "lb1"  # its tables and its state are its own
    assert str(config.state_dir) != "/var/lib/steelyard"
    assert config.failover.sync.peers == ()
    assert config.failover.instances == ground.config.failover.instances
    assert config.nat.sources_v6 == ()
    assert config.tables.flows == 262144
    assert [(s.forward, s.key.port) for s in config.services] == [
        (Forward.DSR, 8091),
        (Forward.IPIP, 8092),
        (Forward.NAT, 8093),
    ]
    for service in config.services:
        assert service.key.vip == ground.vip
        assert service.scheduler is Scheduler.MAGLEV
        assert service.health.kind is CheckKind.HTTP
        assert (service.health.interval_s, service.health.timeout_s) == (4.0, 3.0)
        # No port of a backend: all are asked on the port of the service, as with keepalived.
        assert [(b.name, b.port, b.weight) for b in service.backends] == [
            ("be1", None, 30),
            ("be2", None, 100),
        ]


def test_keepalived_has_the_same(ground: Ground) -> None:
    text = configuration.keepalived_conf(ground)
    assert text.count("{") == text.count("}")
    assert "virtual_router_id 77" in text
    assert "priority 150" in text
    assert "advert_int 0.5" in text
    for address in ("10.77.1.100/32", "10.77.0.100/32"):
        assert f"        {address}\n" in text
    for mode in MODES:
        block = text.split(f"virtual_server 10.77.1.100 {mode.port} {{")[1]
        block = block.split("\nvirtual_server")[0]
        assert f"lvs_method {mode.ipvs}\n" in block
        assert "lvs_sched mh\n    mh-port\n" in block
        assert "delay_loop 4\n    connect_timeout 3\n    retry 1\n    delay_before_retry 4" in block
        assert f"real_server 10.77.0.101 {mode.port} {{\n        weight 30" in block
        assert f"real_server 10.77.0.102 {mode.port} {{\n        weight 100" in block
        assert block.count("path /health") == 2
        assert block.count("status_code 200-399") == 2


def test_servers_say_their_name_on_every_port() -> None:
    text = configuration.nginx_conf("be7")
    assert 'return 200 "be7\\n";' in text
    assert re.findall(r"listen (\d+)", text) == [str(mode.port) for mode in MODES]
    assert text.count("{") == text.count("}")
