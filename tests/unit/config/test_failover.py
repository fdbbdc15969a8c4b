"""The section `failover`: read, written again, refused with words."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from agent.config.document import write_yaml
from agent.config.load import parse
from agent.config.plan import global_changes
from agent.config.render import document
from agent.failover.model import (
    Announcements,
    Authentication,
    Checksum,
    Failover,
    FlowSync,
    Instance,
    Method,
    Track,
    TrackedInterface,
    TrackedScript,
)
from agent.failover.plan import claimed_vips, concerns, plan
from agent.model import Config
from tests.unit.config.documents import backend, load, problems, service

V4, V6 = ip_address("10.0.0.10"), ip_address("fd00::10")
EVERYTHING = {
    "name": "web",
    "vrid": 51,
    "interface": "eth1",
    "vips": ["10.0.0.10", "10.0.0.11"],
    "version": 2,
    "priority": 150,
    "advert_interval": "2s",
    "preempt_delay": "5s",
    "accept": False,
    "group": "all",
    "peers": ["10.0.0.2"],
    "source": "10.0.0.1",
    "authentication": "ah",
    "password": "s3cr3t01",
    "virtual_mac": True,
    "announcements": {"repeat": 3, "delay": "1s", "refresh": "0s"},
    "track": {
        "interfaces": [{"name": "eth2", "weight": 30}],
        "scripts": [
            {
                "name": "gw", "command": "/bin/ping -c1 '10.0.0.254'", "interval": "2s",
                "timeout": "1s", "rise": 2, "fall": 3, "weight": -20,
            }
        ],
        "services": 0,
        "dataplane": False,
        "agent": 5,
        "agent_grace": "10s",
    },
}  # fmt: skip


def load_failover(*services: dict[str, object], **section: object) -> Config:
    return load(*services, failover=section)


def instance(name: str = "web", **values: object) -> dict[str, object]:
    return {"name": name} | values


def test_everything_becomes_the_model() -> None:
    config = load_failover(
        instances=[EVERYTHING],
        key_file="/etc/key",
        socket="/run/f.sock",
        sync={"peers": ["fd00::2"], "listen": "fd00::1", "port": 99, "interval": "1s",
              "rate": 100_000},
    )  # fmt: skip
    track = Track(
        interfaces=(TrackedInterface("eth2", 30),),
        scripts=(
            TrackedScript("gw", ("/bin/ping", "-c1", "10.0.0.254"), 2.0, 1.0, 2, 3, -20),
        ),
        services=0, dataplane=False, agent=5, agent_grace_s=10.0,
    )  # fmt: skip
    web = Instance(
        "web", Method.VRRP, 51, "eth1", 2, 150, 2.0, True, 5.0, False,
        (V4, ip_address("10.0.0.11")), "all", (IPv4Address("10.0.0.2"),), IPv4Address("10.0.0.1"),
        Authentication.AH, "s3cr3t01", Checksum.V3, True, Announcements(3, 1.0, 0.0), track,
    )  # fmt: skip
    sync = FlowSync((IPv6Address("fd00::2"),), IPv6Address("fd00::1"), 99, 1.0, 100_000)
    assert config.failover == Failover(Path("/run/f.sock"), Path("/etc/key"), (web,), sync)


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"instances": [EVERYTHING], "key_file": "/k", "sync": {"peers": ["10.0.0.2"]}},
        {"instances": [instance(checksum="v2", preempt=False), instance("b", vips=["10.9.0.1"],
                       vrid=2)]},
        {"instances": [instance(method="announce", track={"services": 9})]},
    ],
)  # fmt: skip
def test_what_is_written_is_read_again(section: dict[str, object]) -> None:
    config = load_failover(service(backends=[backend(1)]), **section)
    again = parse(write_yaml(document(config)), "f")
    assert again == config
    assert not global_changes(config, again)


def test_a_reload_takes_another_failover() -> None:
    old, new = load_failover(), load_failover(instances=[instance()])
    (change,) = global_changes(old, new)
    assert (change.field, change.needs_restart) == ("failover", False)


BOTH = (service(), service(name="chat6", vip="fd00::10"))


def test_an_instance_without_vips_has_what_no_other_names() -> None:
    config = load(
        *BOTH,
        service(name="other", vip="10.0.0.99"),
        service(name="net", vip="192.0.2.0/24"),
        nat={"sources_ipv4": ["10.0.0.77"]},
        failover={"instances": [instance(vrid=7), instance("other", vips=["10.0.0.99"], vrid=8)]},
    )
    four, six, other = plan(config).routers
    assert (four.name, four.family, four.vips) == ("web/ipv4", 4, (V4, ip_address("10.0.0.77")))
    # RFC 9568: a link-local one first; here the one of the virtual MAC 00:00:5e:00:02:07
    assert (six.name, six.family, six.vips) == (
        "web/ipv6",
        6,
        (ip_address("fe80::200:5eff:fe00:207"), V6),
    )
    assert (four.group, six.group) == ("web", "web")
    assert (other.name, other.vips, other.services) == (
        "other",
        (ip_address("10.0.0.99"),),
        ("other",),
    )
    assert claimed_vips(config) == {V4, V6, ip_address("10.0.0.99"), ip_address("10.0.0.77")}


def test_adverts_go_to_the_peers_of_their_family() -> None:
    peers = ["10.0.0.2", "fd00::2"]
    config = load_failover(*BOTH, instances=[instance(peers=peers, source="fd00::1")])
    four, six = plan(config).routers
    assert (four.peers, four.source) == ((ip_address(peers[0]),), None)
    assert (six.peers, six.source) == ((ip_address(peers[1]),), ip_address("fd00::1"))


def test_the_failover_process_is_told_of_what_concerns_it_alone() -> None:
    with_one = load(service(), failover={"instances": [instance()]})
    assert concerns(with_one) == concerns(
        load(
            service(backends=[backend(1)], scheduler="maglev"), failover={"instances": [instance()]}
        )
    )
    for other in (
        load(service(vip="10.0.0.11"), failover={"instances": [instance()]}),
        load(service(), failover={"instances": [instance(priority=9)]}),
        load(service(), failover={"instances": [instance()]}, interface="eth1"),
    ):
        assert concerns(with_one) != concerns(other)


def test_announced_vips_are_on_lo_and_need_no_election() -> None:
    (router,) = plan(load_failover(*BOTH, instances=[instance(method="announce")])).routers
    assert (router.interface, router.family, router.vips) == ("lo", 0, (V4, V6))


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        ([instance(vrid=0)], "vrid: 0 is out of range"),
        ([instance(priority=256)], "priority: 256 is out of range"),
        ([instance(version=4)], "version: 4 is not a version of VRRP"),
        ([instance(advert_interval="15ms")], "is not a multiple of 10ms"),
        ([instance(advert_interval="41s")], "version 3 allows at most 40.95s"),
        ([instance(version=2, advert_interval="1500ms")], "version 2 only has whole seconds"),
        ([instance(authentication="hmac", version=2)], "authentication hmac needs version 3"),
        ([instance(authentication="password")], "authentication password needs version 2"),
        ([instance(authentication="ah", version=2)], "authentication ah needs a password"),
        ([instance(password="x")], "password means nothing with authentication none"),
        ([instance(authentication="ah", version=2, password="123456789")], "longer than 8 bytes"),
        ([instance(preempt=False, preempt_delay=3)], "preempt_delay means nothing without preempt"),
        ([instance(method="announce", vrid=3)], "vrid means nothing for method announce"),
        ([instance(track={"scripts": [{"name": "a", "command": "ls"}]})], "an absolute path"),
        ([instance(track={"scripts": [{"name": "a", "command": "/l", "x": 1}]})], "x: unknown key"),
        ([instance(authentication="hmac")], "authentication: hmac needs the secret"),
        ([instance(), instance(vips=["10.9.0.1"], vrid=2)], "another instance is called 'web'"),
        ([instance(), instance("b", vips=["10.9.0.1"])], "1 belongs to another instance on eth0"),
        ([instance(), instance("b", vrid=2)], "without vips it takes all that are left"),
        ([instance(vips=["10.0.1.1"])], "10.0.1.1 is a backend's address"),
        ([instance(version=2)], "version 2 is for IPv4 only, and some of the VIPs are IPv6"),
        ([instance(peers=["10.0.0.2"])], "no peer has an IPv6 address"),
        ([instance(vips=["10.9.0.1"]), instance("b", vips=["10.9.0.1"], vrid=2)],
         "10.9.0.1 belongs to another instance"),
        ([instance(group="g"), instance("b", method="announce", group="g", vips=["10.9.0.1"])],
         "group g has instances of both methods"),
        ([instance(group="g"), instance("b", group="g", vips=["10.9.0.1"], vrid=2, priority=9)],
         "web of the same group has priority 100"),
    ],
)  # fmt: skip
def test_what_is_refused(instances: list[dict[str, object]], words: str) -> None:
    services = (service(backends=[backend(1)]), service(name="chat6", vip="fd00::10"))
    found = problems(*services, failover={"instances": instances})
    assert [words in problem for problem in found] == [True]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"version": 2}, "version 2 is for IPv4 only"),
        ({"peers": ["10.0.0.2"]}, "no peer has an IPv6 address"),
    ],
)
def test_sources_of_nat_are_vips_too(given: dict[str, object], words: str) -> None:
    """Else that router of IPv6 would be one of version 2, or say everything by multicast."""
    nat = {"sources_ipv6": ["fd00::77"]}
    found = problems(failover={"instances": [instance(**given)]}, nat=nat)
    assert [words in problem for problem in found] == [True]


def test_sync_needs_a_key() -> None:
    assert "sync needs the secret" in problems(failover={"sync": {"peers": ["10.0.0.2"]}})[0]
