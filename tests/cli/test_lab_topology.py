"""What a lab consists of, and what its parts make of their input: no root, no network."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest

from agent.config.load import parse
from agent.errors import ConfigError
from agent.failover.model import socket_of
from agent.failover.plan import claimed_vips
from agent.model import AdminState, CheckKind, Forward, Hook, Scheduler, TelemetryKind
from lbctl.lab import build, cli, documents, http, server, statefile, topology, wiring
from lbctl.lab.topology import Lab, Role, lab_command


def test_nodes_are_named_after_their_role_and_number() -> None:
    lab = Lab(backends=2, balancers=2, clients=2)
    assert [node.name for node in lab.nodes()] == ["client", "client2", "lb1", "lb2", "be1", "be2"]
    assert lab.namespaces()[:3] == ("lab-switch", "lab-client", "lab-client2")


def test_addresses_are_unique_and_show_the_same_digits_in_both_families() -> None:
    lab = Lab(
        backends=topology.MAX_BACKENDS,
        balancers=topology.MAX_BALANCERS,
        clients=topology.MAX_CLIENTS,
    )
    nodes = lab.nodes()
    assert len({node.ipv4 for node in nodes} | {lab.vips[0]}) == len(nodes) + 1
    assert len({node.ipv6 for node in nodes} | {lab.vips[1]}) == len(nodes) + 1
    for node in nodes:
        assert node.ipv4 in ipaddress.ip_network("10.99.0.0/24")
        assert node.ipv6 in ipaddress.ip_network("fd99::/64")
        assert str(node.ipv4).rsplit(".", 1)[1] == str(node.ipv6).rsplit(":", 1)[1]


@pytest.mark.parametrize(
    "options",
    [
        {"backends": 0},
        {"backends": 90, "spares": 11},
        {"balancers": 9},
        {"clients": 0},
        {"name": "../etc"},
        {"name": ""},
        {"vlan": 4095},
        {"arms": 2},
        {"arms": 2, "forward": Forward.GUE},
        {"arms": 3, "forward": Forward.NAT},
        {"engines": ("h100", "abacus")},
        {"time_scale": 0.0},
    ],
)
def test_a_lab_that_cannot_be_is_refused_with_a_remedy(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        Lab(**options)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_a_node_is_found_by_its_name_and_by_its_namespace() -> None:
    lab = Lab()
    assert lab.node("be2") == lab.node("lab-be2")
    with pytest.raises(ConfigError, match="be9") as caught:
        lab.node("be9")
    assert "be3" in caught.value.remedy


@pytest.mark.parametrize("forward", Forward)
@pytest.mark.parametrize("vlan", [None, 100])
def test_the_agent_accepts_the_configuration_of_a_lab(forward: Forward, vlan: int | None) -> None:
    arms = 2 if forward.is_nat else 1
    lab = Lab(
        forward=forward,
        spares=1,
        weights=(100, 50),
        hook=Hook.GENERIC,
        arms=arms,
        vlan=vlan,
        scheduler=Scheduler.LEAST_CONN,
    )
    balancer = lab.node("lb1")
    import yaml

    config = parse(yaml.safe_dump(documents.agent_document(lab, balancer)), "lab")
    assert config.name == "lab-lb1"
    assert config.hook is Hook.GENERIC
    assert config.backend_interfaces == (("eth1",) if arms == 2 else ())
    assert [service.key.vip for service in config.services] == list(lab.vips)
    for service in config.services:
        assert service.forward is forward
        assert service.scheduler is Scheduler.LEAST_CONN
        assert service.health.kind is CheckKind.HTTP
        assert [backend.weight for backend in service.backends] == [100, 50, 100]
        assert {backend.admin for backend in service.backends} == {AdminState.ACTIVE}
        ports = {backend.port for backend in service.backends}
        assert ports == ({8080} if forward is Forward.NAT else {None})


@pytest.mark.parametrize("forward", Forward)
def test_engines_have_a_service_for_prompts_that_is_balanced_by_their_load(
    forward: Forward,
) -> None:
    lab = Lab(forward=forward, engines=("h100", "a100"), scheduler=Scheduler.MAGLEV)
    import yaml

    config = parse(yaml.safe_dump(documents.agent_document(lab, lab.node("lb1"))), "lab")
    web, _, chat = config.services
    assert (chat.key.vip, chat.key.port) == (lab.vips[0], 8000)
    assert (chat.scheduler, chat.telemetry.kind) == (Scheduler.LEAST_LOAD, TelemetryKind.VLLM)
    assert (web.scheduler, web.telemetry.kind) == (Scheduler.MAGLEV, TelemetryKind.NONE)
    commands = [" ".join(build.server_command(lab, node)) for node in lab.nodes(Role.BACKEND)]
    assert [command.split("--hardware ")[1].split()[0] for command in commands] == [
        "h100",
        "a100",
        "h100",
    ]
    for command in commands:
        asked = {backend.port or 8000 for backend in chat.backends}
        asked |= {backend.port or 80 for backend in web.backends}
        assert all(f"--port {port}" in command for port in asked)


def test_a_lab_without_engines_has_the_small_server() -> None:
    command = build.server_command(Lab(), Lab().node("be1"))
    assert "lbctl.lab.server" in command
    assert len(Lab().services) == 2


def test_one_balancer_has_the_vips_by_its_agent_and_no_failover() -> None:
    document = documents.agent_document(Lab(), Lab().node("lb1"))
    assert document["manage_vips"] is True
    assert "failover" not in document


@pytest.mark.parametrize("forward", Forward)
@pytest.mark.parametrize("arms", [1, 2])
def test_two_balancers_share_all_that_others_know_them_by(forward: Forward, arms: int) -> None:
    lab = Lab(forward=forward, balancers=2, arms=arms if forward.is_nat else 1)
    import yaml

    first, second = (
        parse(yaml.safe_dump(documents.agent_document(lab, balancer)), "lab")
        for balancer in lab.nodes(Role.BALANCER)
    )
    assert first.failover.sync.peers == (lab.node("lb2").ipv4,)
    assert second.failover.sync.peers == (lab.node("lb1").ipv4,)
    assert claimed_vips(first) == claimed_vips(second) == {*lab.vips, *lab.inside}
    for config, priority in ((first, 150), (second, 100)):
        assert {i.priority for i in config.failover.instances} == {priority}
        assert {i.interval_s for i in config.failover.instances} == {0.1}
        assert len({i.group or i.name for i in config.failover.instances}) == 1, "all move together"
        assert socket_of(config.failover, config.socket) == lab.failover_socket(
            lab.node(config.name)
        )
    assert first.failover.key_file == second.failover.key_file
    if not forward.is_nat:
        assert not lab.inside
        return
    # Of no host, in the backends' network, on the arm that leads there.
    own = [a.ip for node in lab.nodes() for link in node.links for a in link.addresses]
    assert not set(lab.inside) & set(own)
    arm = lab.node("lb1").links[-1]
    networks = [address.network for address in arm.addresses]
    assert all(any(address in network for network in networks) for address in lab.inside)
    assert first.failover.instances[1].interface == arm.interface
    if forward is Forward.NAT:
        assert lab.node("be1").gateways == lab.inside
    else:
        assert (*first.nat.sources_v4, *first.nat.sources_v6) == lab.inside


def test_more_balancers_have_lower_priorities_one_below_the_other() -> None:
    lab = Lab(balancers=topology.MAX_BALANCERS)
    found = [
        documents.agent_document(lab, balancer)["failover"]["instances"][0]["priority"]  # type: ignore[index]
        for balancer in lab.nodes(Role.BALANCER)
    ]
    assert found[:3] == [150, 100, 99]
    assert found == sorted(set(found), reverse=True)


def test_a_cut_cable_and_a_mended_one_are_the_hosts_own() -> None:
    lab = Lab(forward=Forward.NAT, arms=2, balancers=2)
    lb1 = lab.node("lb1")
    assert wiring.cut_commands(lb1, silent=False) == [
        "link set lb1 down",
        "link set lb1-back down",
    ]
    assert wiring.cut_commands(lb1, silent=True)[0] == "link set lb1 nomaster"
    # What was said of a port as it was plugged in is forgotten with it.
    assert wiring.mend_commands(lab, lb1)[:2] == [
        "link set lb1 master br0 up",
        "link set lb1 type bridge_slave flood off",
    ]
    assert set(wiring.mend_commands(lab, lb1)) <= set(wiring.switch_commands(lab))


@pytest.mark.parametrize("forward", [Forward.IPIP, Forward.GUE])
def test_tunnels_have_room_for_the_outer_headers_and_clients_do_not_know(forward: Forward) -> None:
    lab = Lab(forward=forward)
    mtus = {node.role: node.mtu for node in lab.nodes()}
    assert mtus[Role.CLIENT] == 1500
    assert mtus[Role.BALANCER] >= 1500 + 40 + 8
    assert mtus[Role.BACKEND] >= 1500 + 40 + 8
    assert {node.mtu for node in Lab().nodes()} == {1500}
    commands = wiring.node_commands(lab, lab.node("be1"))
    assert "route add 10.99.0.0/24 dev eth0 mtu 1500" in commands
    assert "route add fd99::/64 dev eth0 mtu 1500" in commands
    commands = wiring.node_commands(lab, lab.node("lb1"))
    assert [c for c in commands if "mtu" in c] == [
        "route add 10.99.0.21 dev eth0 mtu 1500",
        "route add fd99::21 dev eth0 mtu 1500",
    ], "only to clients"


@pytest.mark.parametrize("forward", [f for f in Forward if not f.is_nat])
def test_backends_have_the_vips_and_do_not_speak_arp_for_them(forward: Forward) -> None:
    lab = Lab(forward=forward)
    commands = wiring.node_commands(lab, lab.node("be1"))
    assert f"address add {lab.vips[0]}/32 dev lo" in commands
    assert f"address add {lab.vips[1]}/128 dev lo nodad" in commands
    settings = wiring.sysctls(Role.BACKEND)
    assert settings["ipv4/conf/all/arp_ignore"] == "1"
    assert settings["ipv4/conf/all/arp_announce"] == "2"
    assert not any("dev lo" in c for c in wiring.node_commands(lab, lab.node("client")))


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT])
@pytest.mark.parametrize("arms", [1, 2])
def test_backends_of_nat_know_no_vip_and_no_way_to_the_clients(forward: Forward, arms: int) -> None:
    lab = Lab(forward=forward, arms=arms)
    client, be1 = lab.node("client"), lab.node("be1")
    commands = wiring.node_commands(lab, be1)
    assert not any(str(vip) in command for vip in lab.vips for command in commands)
    for address in (client.ipv4, client.ipv6):
        networks = [a.network for link in be1.links for a in link.addresses]
        assert not any(address in network for network in networks)
    routes = [command for command in commands if command.startswith("route add")]
    if forward is Forward.FULLNAT:
        assert routes == []
    else:
        inner = [a.ip for link in lab.node("lb1").links for a in link.addresses]
        assert routes == [
            "route add 0.0.0.0/0 via 10.99.1.11",
            "route add ::/0 via fd99:0:0:1::11",
        ]
        assert {ipaddress.ip_address(route.split()[-1]) for route in routes} <= set(inner)


def test_a_second_arm_has_a_bridge_of_its_own() -> None:
    one, two = (Lab(forward=Forward.NAT, arms=arms) for arms in (1, 2))
    assert [link.bridge for link in one.node("lb1").links] == ["br0"]
    assert one.node("be1").links[0].bridge == "br0"
    assert [(link.interface, link.bridge) for link in two.node("lb1").links] == [
        ("eth0", "br0"),
        ("eth1", "br1"),
    ]
    assert two.node("be1").links[0].bridge == "br1"
    assert two.node("client").links[0].bridge == "br0"
    native = Lab(forward=Forward.NAT, arms=2, hook=Hook.NATIVE)
    assert wiring.ports_with_xdp(native) == ["lb1", "lb1-back"]


@pytest.mark.parametrize("hook", [Hook.AUTO, Hook.TC, Hook.GENERIC])
def test_only_native_xdp_needs_help_at_the_far_end(hook: Hook) -> None:
    assert wiring.ports_with_xdp(Lab(hook=hook)) == []


def test_with_a_vlan_all_addresses_are_on_it_and_the_lab_places_the_vips() -> None:
    lab = Lab(vlan=100)
    for node in lab.nodes():
        commands = wiring.node_commands(lab, node)
        assert "link add link eth0 name eth0.100 type vlan id 100" in commands
        assert f"address add {node.ipv4}/24 dev eth0.100" in commands
        assert not any(command.endswith("dev eth0") for command in commands)
        placed = f"address add {lab.vips[0]}/32 dev eth0.100" in commands
        assert placed is (node.name == "lb1")
        if node.role is Role.BALANCER:
            assert documents.agent_document(lab, node)["manage_vips"] is False
    pair = Lab(vlan=100, balancers=2)
    commands = wiring.node_commands(pair, pair.node("lb1"))
    assert not any(str(vip) in command for vip in pair.vips for command in commands)
    failover = documents.agent_document(pair, pair.node("lb1"))["failover"]
    assert failover["instances"][0]["interface"] == "eth0.100"  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "ports"),
    [
        ({"vlan": None, "hook": Hook.NATIVE}, []),
        ({"vlan": 100, "hook": Hook.NATIVE}, ["lb1"]),
        ({"vlan": 100, "hook": Hook.GENERIC}, ["lb1"]),
        ({"vlan": 100, "hook": Hook.TC}, []),
        ({"vlan": 100}, []),
        (
            {"vlan": 100, "forward": Forward.NAT, "arms": 2, "hook": Hook.NATIVE},
            ["lb1", "lb1-back"],
        ),
        ({"vlan": 100, "forward": Forward.GUE, "hook": Hook.NATIVE}, ["lb1", "be1"]),
        ({"vlan": 100, "forward": Forward.IPIP, "hook": Hook.TC}, ["be1"]),
    ],
)
def test_tags_are_in_the_frame_where_xdp_looks_for_them(
    options: dict[str, Any], ports: list[str]
) -> None:
    assert wiring.ports_with_tags_in_frames(Lab(backends=1, **options)) == ports


def test_the_command_line_offers_what_the_model_knows() -> None:
    assert [Forward(word) for word in cli.FORWARDS] == list(Forward)
    assert [Scheduler(word) for word in cli.SCHEDULERS] == list(Scheduler)
    assert {Hook(word) for word in cli.HOOKS} == set(Hook) - {Hook.EXTERNAL}


@pytest.mark.parametrize("role", Role)
def test_no_host_of_the_lab_forwards(role: Role) -> None:
    settings = wiring.sysctls(role)
    assert settings["ipv4/ip_forward"] == "0"
    assert settings["ipv6/conf/all/forwarding"] == "0"


def test_every_host_has_a_cable_to_the_switch() -> None:
    lab = Lab(backends=2)
    commands = wiring.switch_commands(lab)
    for node in lab.nodes():
        assert any(f"netns {node.namespace}" in command for command in commands)
        assert f"link set {node.name} master br0 up" in commands


@pytest.mark.parametrize("forward", Forward)
def test_etcd_is_where_the_balancers_reach_it(forward: Forward) -> None:
    assert Lab(forward=forward).etcd_urls == ()
    lab = Lab(forward=forward, etcd=True, balancers=2, arms=2 if forward.is_nat else 1)
    assert lab.etcd_urls == ("http://10.99.0.31:2379",)
    (host,) = lab.nodes(Role.ETCD)
    front = {node.links[0].bridge for node in lab.nodes(Role.BALANCER)}
    assert {link.bridge for link in host.links} == front


def test_options_survive_the_state_file() -> None:
    lab = Lab(
        name="x",
        backends=2,
        spares=1,
        clients=2,
        forward=Forward.FULLNAT,
        scheduler=Scheduler.SOURCE,
        weights=(1, 2),
        arms=2,
        vlan=7,
        engines=("h100", "a100"),
        time_scale=2.5,
        etcd=True,
    )
    for each in (lab, Lab()):
        assert statefile.from_document(statefile.to_document(each)) == each
    broken = statefile.to_document(lab) | {"forward": "pigeon"}
    with pytest.raises(ConfigError):
        statefile.from_document(broken)


@pytest.mark.parametrize(
    ("namespace", "owned"),
    [
        ("lab-be12", True),
        ("lab-switch", True),
        ("lab-client", True),
        ("lab-etcd", True),
        ("lab-other", False),
        ("lab-be1-x", False),
        ("my-lab-be1", False),
        ("lab2-be1", False),
    ],
)
def test_only_namespaces_of_the_lab_are_its_own(namespace: str, owned: bool) -> None:
    assert topology.owned_namespace("lab", namespace) is owned


def test_server_reads_requests_and_refuses_nonsense() -> None:
    request = http.parse_request(b"GET /slow?seconds=2&chunks=4 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (request.method, request.path, request.keep_alive) == ("GET", "/slow", True)
    assert server.slow_parameters(request.query) == (2.0, 4)
    assert not http.parse_request(b"GET / HTTP/1.0\r\n\r\n").keep_alive
    assert not http.parse_request(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").keep_alive


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / SPDY/3\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"BREW / HTTP/1.1\r\n\r\n", 405),
    ],
)
def test_server_answers_a_bad_request_with_its_status(head: bytes, status: int) -> None:
    with pytest.raises(http.BadRequestError) as caught:
        http.parse_request(head)
    assert caught.value.status == status


@pytest.mark.parametrize("query", [{"seconds": ["nan"]}, {"chunks": ["0"]}, {"seconds": ["-1"]}])
def test_server_refuses_streams_out_of_bounds(query: dict[str, list[str]]) -> None:
    with pytest.raises(http.BadRequestError):
        server.slow_parameters(query)


def test_remedies_name_the_lab_that_they_are_about() -> None:
    assert lab_command("lab") == "lbctl lab"
    assert lab_command("other") == "lbctl lab --name other"


@pytest.mark.parametrize("words", ["--name other status", "status --name other"])
def test_the_name_of_a_lab_stands_before_or_after_the_command(
    words: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "check_machine", lambda: None)
    monkeypatch.setattr(build, "read", lambda _name: None)
    result = run("lab", *words.split())
    assert result.code == 1
    assert "there is no lab called other\n  remedy: build it: sudo lbctl lab --name other up" in (
        result.err
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engines", ""], "'' leaves a GPU empty; available: a100, h100"),
        (["--engines", "h100,"], "'h100,' leaves a GPU empty; available: a100, h100"),
        (["--engines", "h100, ,a100"], "leaves a GPU empty; available: a100, h100"),
        (["--time-scale", "10"], "--time-scale needs --engines"),
    ],
)
def test_engines_are_asked_for_in_full_or_not_at_all(
    words: list[str], said: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "up", lambda *_: pytest.fail("a lab was built"))
    result = run("lab", "up", *words)
    assert result.code == 2
    assert said in result.err


@pytest.mark.parametrize(
    ("words", "engines", "time_scale"),
    [
        ([], (), 1.0),
        (["--engines", "h100, a100"], ("h100", "a100"), 1.0),
        (["--engines", "a100", "--time-scale", "10"], ("a100",), 10.0),
    ],
)
def test_lab_up_builds_the_engines_that_are_asked_for(
    words: list[str],
    engines: tuple[str, ...],
    time_scale: float,
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[Lab] = []
    monkeypatch.setattr(build, "check_machine", lambda: None)
    monkeypatch.setattr(build, "up", lambda lab, *_: built.append(lab))
    assert run("lab", "up", *words).code == 0
    assert [(lab.engines, lab.time_scale) for lab in built] == [(engines, time_scale)]
