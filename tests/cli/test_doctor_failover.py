"""The doctor on failover: each check against facts that are made up, and what it gathers."""

from __future__ import annotations

import dataclasses
import json

import pytest

from agent.config.load import parse
from agent.failover.model import Method, Mode, Role
from agent.failover.status import FailoverStatus, Problem, RouterStatus
from lbctl.doctor import gather_failover
from lbctl.doctor.facts import FailoverFacts, Firewall
from tests.cli.doctor_facts import CARD, HOST, RUNNING, STATUS, VIP, VIP6, facts, verdicts

SERVICES = [
    {
        "name": "web",
        "vip": str(VIP),
        "port": 80,
        "backends": [{"name": "be1", "address": "10.0.0.21"}],
    }
]
SYNC = {"peers": ["10.0.0.2"]}
ROUTER = RouterStatus(
    name="web",
    instance="web",
    method=Method.VRRP,
    group="web",
    interface="eth0",
    family=4,
    vrid=51,
    version=3,
    role=Role.BACKUP,
    since=0.0,
    why="",
    mode=Mode.NORMAL,
    priority=100,
    configured_priority=100,
    priority_reasons=(),
    interval_s=0.1,
    vips=(str(VIP),),
    peers=(),
    master=None,
    master_priority=None,
)
STANDING = FailoverStatus(
    pid=1,
    started=0.0,
    version="0.1.0",
    realtime=True,
    memory_locked=True,
    agent_seen=0.0,
    config_problem="",
    routers=(ROUTER,),
)


def configured(instance=(), sync=None, **rest):
    document = {
        "interface": "eth0",
        "services": SERVICES,
        "failover": {
            "key_file": "/etc/steelyard/failover.key",
            "instances": [{"name": "web"} | dict(instance)],
            "sync": SYNC if sync is None else sync,
        },
    }
    return parse(json.dumps(document | rest), "a test")


def with_failover(config=None, sysctl=None, **changed):
    made = FailoverFacts(config or configured(), STANDING)
    found = facts(sysctl=sysctl)
    return dataclasses.replace(found, failover=dataclasses.replace(made, **changed))


def with_router(**changed):
    routers = (dataclasses.replace(ROUTER, **changed),)
    return with_failover(status=dataclasses.replace(STANDING, routers=routers))


def with_status(**changed):
    return with_failover(status=dataclasses.replace(STANDING, **changed))


FULLNAT = {
    "services": [SERVICES[0] | {"forward": "fullnat"}],
    "nat": {"sources_ipv4": ["10.0.0.11"]},
}
VIRTUAL = configured({"virtual_mac": True})
WALL = Firewall("inet filter input", frozenset({"22"}), ((9000, 9100),))
MISMATCH = Problem("vips", "10.0.0.2 has other VIPs; have the same on both", 0.0, 0.0, 1)


def test_a_kernel_that_marks_no_addresses_is_a_problem():
    old = dataclasses.replace(HOST, kernel=(5, 15), kernel_release="5.15.0-1")
    found = verdicts(dataclasses.replace(with_failover(), host=old))["failover kernel"]
    assert (found.verdict.value, "5.18" in found.fix) == ("problem", True)


def test_a_failover_in_order_has_no_complaint_wherever_its_vips_are():
    assert verdicts(with_failover()) == {}


@pytest.mark.parametrize(
    ("found", "check", "verdict", "says"),
    [
        (
            with_failover(status=None, problem="no failover process: there is no such socket"),
            "failover",
            "problem",
            "systemctl enable --now lb-agent-failover",
        ),
        (
            with_failover(status=None, problem="it did not answer", remedy="journalctl"),
            "failover",
            "problem",
            "journalctl",
        ),
        (
            with_failover(status=None, problem="permission denied", denied=True),
            "failover",
            "warning",
            "sudo lbctl doctor",
        ),
        (with_status(config_problem="line 3"), "failover", "problem", "line 3"),
        (
            with_router(role=Role.FAULT, priority_reasons=("eth0 is down",)),
            "failover",
            "problem",
            "eth0 is down",
        ),
        (with_router(problems=(MISMATCH,)), "failover", "problem", "other VIPs"),
        (with_status(realtime=False), "real time", "warning", "CAP_SYS_NICE"),
        (with_status(memory_locked=False), "real time", "warning", "locked memory"),
        (
            with_failover(key_problem="mode 0644", key_remedy="chmod 0600"),
            "failover key",
            "problem",
            "chmod 0600",
        ),
        (with_failover(key_problem=None, key_remedy="sudo"), "failover key", "unknown", "sudo"),
        (with_failover(VIRTUAL, macvlan=False), "macvlan", "problem", "modprobe macvlan"),
        (with_failover(VIRTUAL, macvlan=None), "macvlan", "unknown", "sudo"),
        (
            with_failover(
                configured({"vips": [str(VIP6)]}), {"net.ipv6.conf.eth0.disable_ipv6": 1}
            ),
            "failover ipv6",
            "problem",
            "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0",
        ),
        (
            with_failover(configured(sync={}), firewall=WALL),
            "firewall",
            "unknown",
            "nft insert rule inet filter input meta l4proto vrrp accept",
        ),
        (
            with_failover(firewall=dataclasses.replace(WALL, words=frozenset({"vrrp"}))),
            "firewall",
            "unknown",
            "tcp dport 9118",
        ),
        (with_failover(configured(sync={})), "flow sync", "warning", "sync.peers"),
        (
            with_failover(configured({"method": "announce"}, sync={})),
            "flow sync",
            "warning",
            "router",
        ),
        (
            with_failover(configured({"vips": [str(VIP)]}, **FULLNAT)),
            "fullnat",
            "warning",
            "10.0.0.11",
        ),
    ],
)
def test_each_mistake_is_found_with_its_remedy(found, check, verdict, says):
    finding = verdicts(found)[check]
    assert finding.verdict.value == verdict
    assert says in f"{finding.message} {finding.fix}"


def test_what_is_as_it_should_be_is_no_complaint():
    passes = Firewall("inet filter input", frozenset({"112"}), ((9000, 9200),))
    assert verdicts(with_failover(firewall=passes)) == {}
    assert verdicts(with_failover(VIRTUAL, macvlan=True)) == {}
    assert verdicts(with_failover(configured(**FULLNAT))) == {}


def test_a_peer_without_an_exchange_is_named():
    status = STATUS | {"failover": {"flow_sync": [{"peer": "10.0.0.2", "state": "refused"}]}}
    agent = dataclasses.replace(RUNNING, status=status)
    found = dataclasses.replace(
        facts(CARD, agent=agent), failover=FailoverFacts(configured(), STANDING)
    )
    assert "10.0.0.2 (refused)" in verdicts(found)["flow sync"].message


def test_the_rules_of_a_firewall_are_understood():
    chain = {"family": "inet", "table": "filter", "name": "input", "hook": "input"}
    port = {"payload": {"protocol": "tcp", "field": "dport"}}
    accepted = {"set": [22, {"range": [9000, 9200]}]}
    rules = [
        {"chain": chain | {"policy": "drop"}},
        {"rule": {"expr": [{"match": {"left": port, "right": accepted}}]}},
        {"rule": {"expr": [{"match": {"left": {"meta": {"key": "l4proto"}}, "right": "vrrp"}}]}},
    ]
    wall = gather_failover.firewall(json.dumps({"nftables": rules}))
    assert wall is not None
    assert wall.chain == "inet filter input"
    assert wall.names("vrrp")
    assert wall.names("9118")
    assert not wall.names("9201")
    guard = {"rule": {"table": "steelyard-lb1", "expr": [{"match": {"right": "9201"}}]}}
    wall = gather_failover.firewall(json.dumps({"nftables": [*rules, guard]}))
    assert wall is not None
    assert not wall.names("9201"), "the balancer's own guard lets nothing in"
    rules[0] = {"chain": chain | {"policy": "accept"}}
    assert gather_failover.firewall(json.dumps({"nftables": rules})) is None
    assert gather_failover.firewall(None) is None


def test_without_an_instance_nothing_is_asked(tmp_path):
    assert gather_failover.gather(None, tmp_path / "agent.sock", None) is None
    assert gather_failover.gather({"failover": {}}, tmp_path / "agent.sock", None) is None


def test_what_a_host_without_the_process_and_with_an_open_secret_has(tmp_path):
    key = tmp_path / "key"
    key.write_text("k" * 32)
    key.chmod(0o644)
    document = {
        "interface": "eth0",
        "services": SERVICES,
        "failover": {"key_file": str(key), "instances": [{"name": "web", "virtual_mac": True}]},
    }
    found = gather_failover.gather(document, tmp_path / "agent.sock", None)
    assert found is not None
    assert found.status is None
    assert "no such socket" in found.problem
    assert "0644" in (found.key_problem or "")
    key.chmod(0o600)
    found = gather_failover.gather(document, tmp_path / "agent.sock", None)
    assert found is not None
    assert found.key_problem == ""


HOLDER = dataclasses.replace(CARD, addresses=frozenset({VIP}))


def holding(found, **changed):
    return dataclasses.replace(found, links=(dataclasses.replace(HOLDER, **changed),))


def test_a_vip_that_stays_on_a_node_that_is_not_master_is_named():
    left = verdicts(holding(with_router(role=Role.BACKUP)))["vip left"]
    assert "10.0.0.10 is on eth0, and this node is backup of web" in left.message
    assert left.fix == "ip address del 10.0.0.10/32 dev eth0"
    dead = with_failover(status=None, problem="there is no such socket")
    assert "systemctl start lb-agent-failover" in verdicts(holding(dead))["vip left"].fix


def test_a_vip_where_it_belongs_is_not_left():
    assert "vip left" not in verdicts(holding(with_router(role=Role.MASTER)))
    assert "vip left" not in verdicts(holding(with_router(role=Role.BACKUP), name="lo"))
    announced = configured({"method": "announce"})
    assert "vip left" not in verdicts(holding(with_failover(announced)))
    unseen = with_failover(status=None, problem="permission denied", denied=True)
    assert "vip left" not in verdicts(holding(unseen))
