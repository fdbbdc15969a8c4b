"""NAT: what can be served, and whose answer a packet is."""

from __future__ import annotations

import pytest

from tests.unit.config.documents import backend, load, problems, service


def nat(name: str, vip: str, port: object, *backends: dict[str, object]) -> dict[str, object]:
    return service(
        name=name,
        vip=vip,
        port=port,
        forward="nat",
        health={"type": "none"},
        backends=list(backends),
    )


ONE = backend(1)
SHARED = "services[1].backends[0].address: with nat, its answers and those of service a cannot"


@pytest.mark.parametrize("forward", ["dsr", "ipip", "gue"])
def test_only_nat_changes_ports(forward: str) -> None:
    (found,) = problems(service(forward=forward, backends=[backend(1, port=8000)]))
    assert found == (
        f"services[0].backends[0].port: means nothing with forward: {forward}, which changes no "
        "port"
    )


@pytest.mark.parametrize("forward", ["dsr", "nat", "fullnat"])
def test_only_tunnels_lead_to_another_family(forward: str) -> None:
    backends = [backend(1, address="fd00::1")]
    (found,) = problems(service(forward=forward, backends=backends))
    assert found.startswith(
        "services[0].backends[0].address: fd00::1 is not of the VIP's family, IPv4"
    )
    for tunnel in ("ipip", "gue"):
        assert load(service(forward=tunnel, backends=backends)).services[0].backends


def test_an_address_serves_twice_on_different_ports() -> None:
    backends = [ONE, backend(2, address="10.0.1.1", port=8001)]
    assert len(load(service(forward="nat", backends=backends)).services[0].backends) == 2


@pytest.mark.parametrize("port", [None, 80])
def test_an_address_serves_once_on_one_port(port: int | None) -> None:
    other = backend(2, address="10.0.1.1", port=80)
    (found,) = problems(service(forward="fullnat", backends=[backend(1, port=port), other]))
    assert found.startswith(
        "services[0].backends[1].address: another backend of this service has 10.0.1.1 port 80"
    )


def test_nat_serves_no_prefix() -> None:
    prefix = service(vip="192.0.2.0/24", forward="nat")
    (found,) = problems(prefix)
    assert found.startswith("services[0].vip: nat cannot serve a prefix")
    assert load(prefix | {"forward": "fullnat"}).services


@pytest.mark.parametrize("port", ["any", "8000-8100"])
def test_nat_does_not_map_many_ports_to_one(port: str) -> None:
    many = nat("a", "10.0.0.10", port, backend(1, port=9000))
    (found,) = problems(many)
    assert found.startswith("services[0].backends[0].port: an answer does not show which of")
    assert load(many | {"forward": "fullnat"}).services


@pytest.mark.parametrize(
    "other",
    [
        nat("b", "10.0.0.11", 80, ONE),
        nat("b", "10.0.0.10", 8080, backend(1, port=80)),
        nat("b", "10.0.0.11", "any", ONE),
        nat("b", "10.0.0.11", "70-90", ONE),
        nat("b", "10.0.0.12", "70-90", ONE, backend(2)),
    ],
)
def test_with_nat_one_server_answers_for_one_service(other: dict[str, object]) -> None:
    (found,) = problems(nat("a", "10.0.0.10", 80, ONE), other)
    assert found.startswith(SHARED)
    assert load(nat("a", "10.0.0.10", 80, ONE), other | {"forward": "fullnat"}).services


def test_with_nat_two_services_for_many_ports_do_not_share_a_server() -> None:
    (found,) = problems(
        nat("a", "10.0.0.10", "8000-8100", ONE), nat("b", "10.0.0.11", "9000-9100", ONE)
    )
    assert found.startswith(SHARED)


@pytest.mark.parametrize(
    "other",
    [
        nat("b", "10.0.0.11", 81, ONE),
        nat("b", "10.0.0.11", 80, backend(1, port=81)),
        nat("b", "10.0.0.11", 80, backend(2)),
        nat("b", "10.0.0.11", 80, ONE) | {"protocol": "udp"},
        nat("b", "10.0.0.11", "81-90", ONE),
        # To this VIP, port 80 is never sent by the service for any port.
        nat("b", "10.0.0.10", "any", ONE),
        nat("b", "10.0.0.11", 80, ONE) | {"forward": "dsr"},
    ],
)
def test_with_nat_answers_that_differ_are_told_apart(other: dict[str, object]) -> None:
    assert len(load(nat("a", "10.0.0.10", 80, ONE), other).services) == 2


def test_to_the_vip_of_a_service_for_any_port_another_port_of_the_server_is_taken() -> None:
    (found,) = problems(
        nat("a", "10.0.0.10", 80, backend(1, port=8080)), nat("b", "10.0.0.10", "any", ONE)
    )
    assert found.startswith(SHARED)
