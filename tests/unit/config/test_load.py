"""Loading the operator's file: what is accepted, what is refused, and how it says so."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from agent.config.load import load_file, parse
from agent.errors import ConfigError
from agent.model import (
    UDP_TIMEOUTS,
    AdminState,
    CheckKind,
    Config,
    Forward,
    HealthCheck,
    Hook,
    Limits,
    Nat,
    Protocol,
    Rate,
    RoleNames,
    SynProtection,
    Tables,
)
from tests.unit.config.documents import backend, load, problems, service

ROOT = Path(__file__).resolve().parents[3]


def test_checks_of_every_kind_become_the_model() -> None:
    def checked(protocol: str = "tcp", **health: object) -> HealthCheck:
        return load(service(protocol=protocol, health=health)).services[0].health

    engine = checked(type="completion", model="org/m", every="1m")
    assert (engine.kind, engine.path, engine.model) == (
        CheckKind.COMPLETION, "/v1/completions", "org/m"
    )  # fmt: skip
    assert (engine.every_s, engine.answer_within_s) == (60, 10)
    assert checked(type="completion", path="/v1/chat/completions").path == "/v1/chat/completions"
    assert checked(type="grpc", grpc_service="a.B").grpc_service == "a.B"
    assert checked(type="exec", command="/bin/check 'a b'").command == ("/bin/check", "a b")
    udp = checked("udp", type="udp", send="hex:00ff", expect="pong")
    assert (udp.send, udp.expect) == ("hex:00ff", "pong")
    dns = checked("udp", type="dns", query="example.com", record="A")
    assert (dns.query, dns.record) == ("example.com", "A")
    assert checked("udp", type="exec", command="/bin/true").kind is CheckKind.EXEC


def test_the_interface_alone_is_a_configuration() -> None:
    assert parse("interface: eth0\n", "f") == Config(name="default", interface="eth0")


def test_a_full_document_becomes_the_model() -> None:
    config = load(
        service(
            port="any",
            protocol="udp",
            forward="ipip",
            down_flows="reroute",
            timeouts={"established": "5m"},
            health={
                "type": "http",
                "port": 8000,
                "interval": "1s",
                "expect_status": [200, "300-399"],
            },
            backends=[backend(1, weight=0, state="drain"), {"name": "six", "address": "fd00::6"}],
        ),
        name="edge-1",
        metrics="[::1]:9000",
        tunnel_source={"ipv4": "10.0.0.2"},
        tables={"flows": 2048, "ring_slots": 251},
    )
    (chat,) = config.services
    assert (chat.key.port, chat.key.protocol, chat.forward) == (0, Protocol.UDP, Forward.IPIP)
    assert chat.timeouts.established_s == 300
    assert chat.timeouts.acked_s == UDP_TIMEOUTS.acked_s
    assert chat.health.expect_status == ((200, 200), (300, 399))
    assert (chat.backends[0].weight, chat.backends[0].admin) == (0, AdminState.DRAIN)
    assert chat.backends[1].address == ip_address("fd00::6")
    assert not chat.count_waiting  # only of tcp
    assert config.metrics_listen == ("::1", 9000)
    assert config.tables == Tables(flows=2048, ring_slots=251)


def test_limits_are_merged_with_those_of_defaults_and_none_takes_one_away() -> None:
    config = load(
        service(limits={"new_flows_per_source": "600/m", "new_flows": "none"}),
        defaults={
            "limits": {
                "new_flows": "100/s",
                "packets_per_source": "10000/h",
                "open_flows_per_source": 200,
                "waiting_per_source": "8MiB",
            }
        },
    )
    assert config.services[0].limits == Limits(
        new_flows_per_source=Rate(600, 60.0),
        packets_per_source=Rate(10_000, 3600.0),
        open_flows_per_source=200,
        waiting_per_source=8 << 20,
    )


def test_cookies_of_the_defaults_are_for_the_services_that_can_give_them() -> None:
    config = load(
        service(name="m", syn_protection="auto"),
        service(name="n", port=81, syn_protection="auto", forward="nat"),
        service(name="o", port=82),
        defaults={"syn_cookies": True},
        companion={"key_file": "/etc/steelyard/cookies.key"},
    )
    assert [one.gives_cookies for one in config.services] == [True, False, False]
    assert config.companion_key_file == Path("/etc/steelyard/cookies.key")
    assert config.companion_port == 9120


def test_everything_around_forwarding_becomes_the_model() -> None:
    config = load(
        hook="tc",
        backend_interfaces=["eth1", "eth2"],
        gue={"port": 6081},
        nat={
            "sources_ipv4": ["192.0.2.7", "192.0.2.8"],
            "sources_ipv6": ["fd00::7"],
            "ports": "20000-29999",
        },
    )
    assert (config.hook, config.backend_interfaces) == (Hook.TC, ("eth1", "eth2"))
    assert config.gue_port == 6081
    assert config.nat == Nat(
        (IPv4Address("192.0.2.7"), IPv4Address("192.0.2.8")),
        (IPv6Address("fd00::7"),),
        20000,
        29999,
    )


def test_the_shipped_example_loads() -> None:
    config = load_file(ROOT / "deploy" / "agent.example.yaml")
    assert [service.name for service in config.services] == ["chat", "embeddings", "speech"]


def test_metrics_can_be_off_in_bare_yaml() -> None:
    assert parse("interface: eth0\nmetrics: off\n", "f").metrics_listen is None


def test_a_key_without_a_value_means_its_default() -> None:
    text = "interface: eth0\nname:\ntables: {flows: }\nservices:\ndefaults:\n"
    assert parse(text, "f") == Config(name="default", interface="eth0")


def test_udp_services_are_not_checked_unless_told_to() -> None:
    (dns,) = load(service(protocol="udp", port=53)).services
    assert dns.health.kind is CheckKind.NONE


def test_a_short_interval_shortens_the_default_timeout() -> None:
    (chat,) = load(service(health={"interval": "500ms"})).services
    assert chat.health.timeout_s == 0.5


def test_ports_of_backends_can_be_what_is_checked() -> None:
    own = [backend(1, port=8000), backend(2, port=8001)]
    (chat,) = load(service(port="any", forward="fullnat", backends=own)).services
    assert chat.health.kind is CheckKind.TCP


# Defaults


def test_defaults_are_merged_key_by_key_under_every_service() -> None:
    config = load(
        service(health={"interval": "5s"}),
        service(name="b", port=81, forward="dsr"),
        defaults={"forward": "ipip", "health": {"type": "http", "path": "/up"}},
    )
    first, second = config.services
    assert (first.forward, second.forward) == (Forward.IPIP, Forward.DSR)
    assert (first.health.path, first.health.interval_s) == ("/up", 5)


def test_a_default_for_tcp_means_nothing_for_udp() -> None:
    config = load(
        service(name="chat"),
        service(name="dns", port=53, protocol="udp"),
        defaults={"syn_protection": "always"},
    )
    always, off = SynProtection.ALWAYS, SynProtection.OFF
    assert [one.syn_protection for one in config.services] == [always, off]


def test_a_tcp_check_does_not_inherit_http_keys() -> None:
    (chat,) = load(
        service(health={"type": "tcp"}),
        defaults={"health": {"type": "http", "path": "/up", "rise": 5}},
    ).services
    assert (chat.health.path, chat.health.rise) == ("/", 5)


def test_a_wrong_default_is_reported_once_where_it_stands() -> None:
    messages = problems(
        service(), service(name="b", port=81), defaults={"health": {"rise": 0, "interval": "x"}}
    )
    assert messages == [
        "defaults.health.interval: 'x' is not a duration",
        "defaults.health.rise: 0 is out of range",
    ]


def test_an_inherited_check_that_does_not_fit_points_at_the_defaults() -> None:
    messages = problems(service(port="any"), defaults={"health": {"type": "http"}})
    assert messages == ["defaults.health.type: http checks of a service for any port need a port"]


# What is refused


def test_every_problem_is_reported_in_the_order_of_the_lines() -> None:
    text = """\
interface: eth0
nam: edge
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    backends:
      - {name: gpu-1, address: 10.0.0.21, weight: 2000}
      - {name: gpu-2, addres: 10.0.0.22}
  - name: chat
    vip: 10.0.0.10
    port: 80
"""
    with pytest.raises(ConfigError) as caught:
        parse(text, "agent.yaml")
    found = [(problem.where, problem.message) for problem in caught.value.problems]
    assert found == [
        ("agent.yaml:2", "nam: unknown key"),
        ("agent.yaml:8", "services[0].backends[0].weight: 2000 is out of range"),
        ("agent.yaml:9", "services[0].backends[1].address: is missing"),
        ("agent.yaml:9", "services[0].backends[1].addres: unknown key"),
        (
            "agent.yaml:10",
            "services[1].name: another service is called 'chat' (agent.yaml:4)",
        ),
        (
            "agent.yaml:11",
            "services[1].vip: tcp://10.0.0.10:80 already belongs to another service (agent.yaml:4)",
        ),
    ]
    assert caught.value.message == found[0][1]
    assert "did you mean 'name'?" in caught.value.remedy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weigth": 1}, "services[0].weigth: unknown key"),
        ({"port": 0}, "services[0].port: 0 is not a port"),
        ({"port": 70000}, "services[0].port: 70000 is out of range"),
        ({"port": "80"}, "services[0].port: '80' is not a port"),
        ({"port": True}, "services[0].port: true is not a port"),
        ({"vip": 5}, "services[0].vip: 5 is not text"),
        ({"vip": "example.com"}, "services[0].vip: 'example.com' is not an IP address"),
        ({"vip": "224.0.0.1"}, "services[0].vip: 224.0.0.1 is a multicast address"),
        ({"vip": "::"}, "services[0].vip: :: is the unspecified address"),
        ({"vip": "127.0.0.1"}, "services[0].vip: 127.0.0.1 is a loopback address"),
        ({"vip": "::ffff:10.0.0.1"}, "services[0].vip: ::ffff:10.0.0.1 is an IPv4-mapped address"),
        ({"vip": "fe80::1%eth0"}, "services[0].vip: fe80::1%eth0 has a zone"),
        ({"name": "Chat"}, "services[0].name: 'Chat' is not a name"),
        ({"name": 7}, "services[0].name: 7 is not text"),
        ({"protocol": "sctp"}, "services[0].protocol: 'sctp' is not known"),
        ({"forward": []}, "services[0].forward: a list is not known"),
        ({"timeouts": {"acked": "1s"}}, "services[0].timeouts.acked: '1s' is out of range"),
        ({"timeouts": {"closing": "8h"}}, "services[0].timeouts.closing: '8h' is out of range"),
        ({"timeouts": "1m"}, "services[0].timeouts: '1m' is not a mapping"),
        ({"limits": {"new_flows": "9/d"}}, "services[0].limits.new_flows: '9/d' is not a rate"),
        ({"limits": {"new_flows": "0/s"}}, "services[0].limits.new_flows: '0/s' is out of range"),
        ({"limits": {"new_flows": 9}}, "services[0].limits.new_flows: 9 is not a rate"),
        (
            {"limits": {"open_flows_per_source": 0}},
            "services[0].limits.open_flows_per_source: 0 is out of range",
        ),
        (
            {"limits": {"waiting_per_source": 9}, "protocol": "udp"},
            "services[0].limits.waiting_per_source: means nothing for a udp service",
        ),
        (
            {"limits": {"waiting_per_source": 9}, "count_waiting": False},
            "services[0].limits.waiting_per_source: needs count_waiting",
        ),
        (
            {"syn_cookies": True},
            "services[0].syn_cookies: means nothing without syn_protection",
        ),
        (
            {"syn_cookies": True, "syn_protection": "auto"},
            "services[0].syn_cookies: needs a key that balancers and servers share",
        ),
        (
            {"syn_cookies": True, "syn_protection": "auto", "forward": "nat"},
            "services[0].syn_cookies: a server of nat cannot accept them",
        ),
        (
            {"syn_cookies": True, "syn_protection": "auto", "vip": "198.51.100.0/24"},
            "services[0].syn_cookies: means nothing for a VIP that is a prefix",
        ),
        (
            {"syn_cookies": True, "protocol": "udp"},
            "services[0].syn_cookies: means nothing for a udp service",
        ),
        ({"detect": "blck"}, "services[0].detect: 'blck' is not known"),
        (
            {"detect": "block"},
            "services[0].detect: with dsr, anybody can forge the address of a client",
        ),
        (
            {"detect": "block", "forward": "nat", "protocol": "udp"},
            "services[0].detect: with udp, anybody can forge the address of a client",
        ),
        ({"trusted": ["office"]}, "services[0].trusted: there is no list 'office'"),
        (
            {"limits": {"waiting_per_source": "8MBit"}},
            "services[0].limits.waiting_per_source: '8MBit' is not a number of bytes",
        ),
        ({"backends": {"a": 1}}, "services[0].backends: a mapping is not a list"),
        ({"backends": ["gpu-1"]}, "services[0].backends[0]: 'gpu-1' is not a mapping"),
        ({"backends": [None]}, "services[0].backends[0]: nothing is not a mapping"),
        ({"health": {"timeout": "3s"}}, "services[0].health: timeout 3s is longer than"),
        ({"health": {"path": "/x"}}, "services[0].health.path: means nothing for a check of"),
        (
            {"health": {"type": "http", "model": "m"}},
            "services[0].health.model: means nothing for a check of type http",
        ),
        ({"health": {"type": "exec"}}, "services[0].health: a check of type exec needs a command"),
        (
            {"health": {"type": "exec", "command": "check --fast"}},
            "services[0].health.command: 'check --fast' does not begin with an absolute path",
        ),
        (
            {"health": {"type": "udp", "send": "hex:0"}},
            "services[0].health.send: 'hex:0' is not hexadecimal",
        ),
        (
            {"health": {"type": "dns", "query": "a b"}},
            "services[0].health.query: 'a b' is not a domain name",
        ),
        (
            {"health": {"type": "dns", "record": "ANY"}},
            "services[0].health.record: 'ANY' is not a record type",
        ),
        (
            {"health": {"type": "grpc"}, "protocol": "udp"},
            "services[0].health.type: grpc checks of a udp service need a port",
        ),
        (
            {"health": {"type": "grpc", "verify_tls": False}},
            "services[0].health.verify_tls: means nothing without tls",
        ),
        (
            {"health": {"type": "https", "tls": True}},
            "services[0].health.tls: means nothing for a check of type https",
        ),
        (
            {"health": {"type": "http", "verify_tls": False}},
            "services[0].health.verify_tls: means nothing for a check of type http",
        ),
        (
            {"health": {"type": "http", "path": "/a\r\nX: y"}},
            "services[0].health.path: '/a\\r\\nX: y' is not a request path",
        ),
        (
            {"health": {"type": "http", "expect_status": "600"}},
            "services[0].health.expect_status: '600' is not an HTTP status",
        ),
        (
            {"health": {"type": "tcp"}, "protocol": "udp"},
            "services[0].health.type: tcp checks of a udp service need a port",
        ),
        ({"port": "any"}, "services[0].health: tcp checks of a service for any port need"),
        (
            {"port": "any", "forward": "fullnat", "backends": [backend(1)]},
            "services[0].health: tcp checks of a service for any port need",
        ),
        (
            {"backends": [backend(1), backend(1, address="10.0.1.9")]},
            "services[0].backends[1].name: another backend of this service is called 'gpu-1'",
        ),
        (
            {"backends": [backend(1), backend(2, address="10.0.1.1")]},
            "services[0].backends[1].address: another backend of this service has 10.0.1.1",
        ),
        (
            {"backends": [backend(1, address="10.0.0.10")]},
            "services[0].backends[0].address: 10.0.0.10 is a VIP",
        ),
        (
            {"backends": [backend(1, address="fd00::1")]},
            "services[0].backends[0].address: fd00::1 is not of the VIP's family",
        ),
    ],
)
def test_a_wrong_service_is_refused(values: dict[str, object], message: str) -> None:
    (found,) = problems(service(**values))
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interface": None}, "interface: is missing"),
        ({"interface": "a/b"}, "interface: 'a/b' is not an interface name"),
        ({"interface": "x" * 16}, "interface: 'xxxxxxxxxxxxxxxx' is too long"),
        ({"name": "Edge_1"}, "name: 'Edge_1' is not an instance name"),
        ({"hook": "natve"}, "hook: 'natve' is not known"),
        ({"socket": "agent.sock"}, "socket: 'agent.sock' is not an absolute path"),
        ({"socket": "/" + "x" * 107}, "socket: '/xxxxx"),
        ({"metrics": "9117"}, "metrics: '9117' is not an address and a port"),
        ({"metrics": "1.2.3.4:0"}, "metrics: port 0 is out of range"),
        ({"manage_vips": "maybe"}, "manage_vips: 'maybe' is neither true nor false"),
        ({"hash_seed": -1}, "hash_seed: -1 is out of range"),
        ({"hash_seed": 1.5}, "hash_seed: 1.5 is not a whole number"),
        ({"xdp_mode": "auto"}, "xdp_mode: is called hook now"),
        ({"ipip_source": {"ipv4": "10.0.0.2"}}, "ipip_source: is called tunnel_source now"),
        ({"backend_interfaces": ["eth0"]}, "backend_interfaces: eth0 is already the `interface`"),
        ({"backend_interfaces": "eth1"}, "backend_interfaces: 'eth1' is not a list"),
        ({"gue": {"port": 0}}, "gue.port: 0 is out of range"),
        ({"nat": {"source": []}}, "nat.source: unknown key"),
        ({"tunnel_source": {"ipv4": "fd00::1"}}, "tunnel_source.ipv4: fd00::1 is not an IPv4"),
        ({"tables": {"flows": 3000}}, "tables.flows: 3000 is not a power of two"),
        ({"tables": {"ring_slots": 65536}}, "tables.ring_slots: 65536 is not prime"),
        ({"tables": {"size": 1}}, "tables.size: unknown key"),
        ({"tables": {"services": 2}}, "services: 2 services do not fit into a table of 2"),
        ({"tables": {"backends": 3}}, "services: 3 backends do not fit into a table of 3"),
        ({"defaults": {"vip": "10.0.0.1"}}, "defaults.vip: unknown key"),
        ({"services": "chat"}, "services: 'chat' is not a list"),
        ({"services": ["chat"]}, "services[0]: 'chat' is not a mapping"),
    ],
)
def test_wrong_globals_are_refused(values: dict[str, object], message: str) -> None:
    services = [
        service(backends=[backend(1), backend(2), backend(3)]),
        service(name="b", port=81),
    ]
    (found,) = problems(**({"services": services} | values))
    assert found.startswith(message)


def test_one_vip_may_serve_several_ports_and_protocols() -> None:
    config = load(
        service(),
        service(name="b", port=81),
        service(name="c", protocol="udp"),
        service(name="d", port="any", health={"type": "none"}),
    )
    assert len({service.key for service in config.services}) == 4


@pytest.mark.parametrize("text", ["- a\n", "just text\n", "42\n"])
def test_a_document_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the document is"):
        parse(text, "f")


def test_an_empty_file_lacks_its_interface() -> None:
    with pytest.raises(ConfigError, match="interface: is missing"):
        parse("", "f")


def test_a_file_that_does_not_exist_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_file(tmp_path / "none.yaml")
    assert caught.value.where == str(tmp_path / "none.yaml")
    assert "agent.example.yaml" in caught.value.remedy


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_bytes(b"interface: eth0\nname: \xff\n")
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    assert caught.value.where == f"{path}:2"


def test_braces_in_a_value_do_not_disturb_the_message() -> None:
    assert problems(service(name="{x} {message}")) == [
        "services[0].name: '{x} {message}' is not a name"
    ]


WHOLE = """\
interface: eth0
services:
  - name: chat
    vip: 10.0.0.10
    port: 8000
    backends:
      - address: 10.0.0.121
        name: gpu-1
      - address: 10.0.0.122
        name: gpu-2
        weight: 100
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_text_that_was_cut_off_within_a_line_is_never_taken(ending: str) -> None:
    whole = WHOLE.replace("\n", ending)
    parse(whole, "agent.yaml")
    taken = []
    for length in range(1, len(whole)):
        with contextlib.suppress(ConfigError):
            parse(whole[:length], "agent.yaml")
            taken.append(whole[:length])
    assert all(text.endswith("\n") for text in taken)


def test_a_last_line_that_does_not_end_is_named() -> None:
    with pytest.raises(ConfigError, match="the last line does not end") as caught:
        parse(WHOLE[: WHOLE.index("22") + 1], "agent.yaml")
    assert caught.value.where == "agent.yaml:9"
    assert "line feed" in caught.value.remedy


def test_json_says_itself_where_it_ends() -> None:
    assert parse('{"interface": "eth0"}', "agent.json").interface == "eth0"


def test_groups_get_roles() -> None:
    config = load(socket_roles={"viewer": ["lb-view", "adm", "adm"], "operator": "lb-ops"})
    roles = config.socket_roles
    assert roles == RoleNames(("lb-view", "adm"), ("lb-ops",), ())
    assert roles.are_used
    assert not load(socket_roles={"viewer": []}).socket_roles.are_used
    assert load(audit_log={"required": True}).audit_required


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        ({"viewer": [7]}, "7 is not text"),
        ({"viewer": ["a b"]}, "'a b' is not a group name"),
        ({"vewer": ["adm"]}, "unknown key"),
        ({"viewer": ["adm"] * 33}, "33 groups are too many"),
        (["adm"], "is not a mapping"),
    ],
)
def test_roles_that_make_no_sense(roles: object, says: str) -> None:
    assert says in problems(socket_roles=roles)[0]


def test_roles_and_a_group_of_the_socket_exclude_each_other() -> None:
    with pytest.raises(ConfigError) as caught:
        load(socket_group="adm", socket_roles={"viewer": ["lb-view"]})
    assert caught.value.where == "f:3"
    assert "socket_roles: {admin: [adm]}" in caught.value.remedy
    assert load(socket_group="adm", socket_roles={"viewer": []}).socket_group == "adm"
