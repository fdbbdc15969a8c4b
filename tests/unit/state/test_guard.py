"""What the guard below the program drops: every way that a service is served, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address

from agent.model import ANY_PORT, Backend, Config, Forward, Protocol, Service, ServiceKey
from agent.state.guard import ruleset, table_name
from tests.unit.state.world import TABLES

BACKEND = Backend("a", ip_address("10.1.0.1"))
CHECKS = '"range": [20480, 24575]'
OWN_PORT = replace(BACKEND, name="b", address=ip_address("fd01::1"), port=8080)


def service(vip, port, protocol=Protocol.TCP, forward=Forward.DSR, backends=(BACKEND,), **key):
    name = f"s{vip}-{port}-{protocol.value}"
    where = ServiceKey(ip_address(vip), port, protocol, **key)
    return Service(name, where, forward=forward, backends=backends)


def rules(*services: Service, **given):
    return ruleset("t", Config("t", "eth0", services=services, tables=TABLES, **given))


def sets(commands):
    found = (command["add"]["set"] for command in commands if "set" in command.get("add", ()))
    return {each["name"]: [tuple(e["concat"]) for e in each["elem"]] for each in found}


def decided(commands):
    """The rules that send packets to be decided, as text."""
    found = (command["add"]["rule"] for command in commands if "rule" in command.get("add", ()))
    return [json.dumps(rule["expr"]) for rule in found if "goto" in str(rule["expr"])]


def lookups(commands):
    """Those that are not about what answers health checks."""
    return [each for each in decided(commands) if CHECKS not in each]


def test_what_answers_health_checks_by_the_vip_is_dropped():
    """The host's stack has no socket for it, and would reset at another balancer."""
    found = rules(
        service("10.0.0.1", 80),
        service("10.0.1.0", 80, vip_bits=24, forward=Forward.IPIP),
        service("10.0.0.1", 53, Protocol.UDP),
        service("10.0.2.0", 80, vip_bits=24, forward=Forward.NAT),
    )
    about = [each for each in decided(found) if CHECKS in each]
    assert len(about) == 2
    assert '"saddr"' in about[0]
    assert "@served4" in about[0]
    assert '"addr": "10.0.1.0", "len": 24' in about[1]
    assert not [
        each for each in decided(rules(service("10.0.0.1", 53, Protocol.UDP))) if CHECKS in each
    ]


def test_one_address_and_one_port_are_looked_up_in_a_set():
    found = rules(service("10.0.0.1", 80), service("fd00::1", 53, Protocol.UDP))
    assert sets(found) == {
        "served4": [("10.0.0.1", "tcp", 80)],
        "served6": [("fd00::1", "udp", 53)],
    }
    assert len(lookups(found)) == 2
    assert not any("@answers" in rule for rule in lookups(found))


def test_prefixes_ranges_and_any_port_have_a_rule_each():
    found = lookups(
        rules(
            service("10.0.1.0", 80, vip_bits=24),
            service("10.0.0.1", 8000, port_last=8010),
            service("10.0.0.2", ANY_PORT, Protocol.UDP),
        )
    )
    assert len(found) == 3
    assert '"addr": "10.0.1.0", "len": 24' in found[2]
    assert '"range": [8000, 8010]' in found[0]
    assert '"range": [0, 65535]' in found[1]


def test_answers_of_fullnat_are_known_by_where_they_come_from_and_by_our_ports():
    backends = (BACKEND, OWN_PORT)
    found = rules(service("10.0.0.1", 80, forward=Forward.FULLNAT, backends=backends))
    assert sets(found)["answers4"] == [("10.1.0.1", "tcp", 80)]
    assert sets(found)["answers6"] == [("fd01::1", "tcp", 8080)]
    answers = [rule for rule in lookups(found) if "@answers" in rule]
    assert len(answers) == 2
    assert all('"range": [10240, 32767]' in rule for rule in answers)


def test_the_same_configuration_makes_the_same_rules_whatever_its_order():
    one, two = service("10.0.0.1", 80), service("10.0.0.2", 80)
    assert rules(one, two) == rules(two, one)


def test_without_services_nothing_is_dropped():
    assert lookups(rules()) == []
    assert sets(rules()) == {}


def test_each_instance_has_a_table_of_its_own():
    assert table_name("lb1") != table_name("lb2")
