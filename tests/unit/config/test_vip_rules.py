"""VIPs and ports beside each other: what the packet path can tell apart, and what it cannot."""

from __future__ import annotations

import pytest

from tests.unit.config.documents import backend, load, problems, service


def ports(*wanted: object, **values: object) -> list[dict[str, object]]:
    return [
        service(name=f"s{n}", port=port, health={"type": "none"}, **values)
        for n, port in enumerate(wanted)
    ]


def vips(*wanted: str) -> list[dict[str, object]]:
    return [service(name=f"s{n}", vip=vip) for n, vip in enumerate(wanted)]


def test_a_port_in_a_range_and_any_port_stand_beside_it() -> None:
    assert len(load(*ports("8000-8100", 8050, 8100, 7999, "any", "8101-8200")).services) == 6


def test_ranges_of_other_vips_and_protocols_may_overlap() -> None:
    services = [
        *ports("8000-8100"),
        service(name="u", port="8050-8150", protocol="udp"),
        service(name="v", port="8050-8150", vip="10.0.0.11"),
    ]
    assert len(load(*services).services) == 3


@pytest.mark.parametrize(
    ("wanted", "messages"),
    [
        (["8000-8100", "8100-8200"], ["services[1].port: 8100-8200 overlaps 8000-8100 (f:"]),
        (["8100-8200", "8000-8100"], ["services[1].port: 8000-8100 overlaps 8100-8200 (f:"]),
        (["8000-8100", "8000-8050"], ["services[1].port: 8000-8050 overlaps 8000-8100 (f:"]),
        (
            ["1-100", "2-3", "50-60"],
            [
                "services[1].port: 2-3 overlaps 1-100 (f:",
                "services[2].port: 50-60 overlaps 1-100 (f:",
            ],
        ),
        (
            ["8000-8100", 8000],
            ["services[1].port: 8000 begins with the same port as 8000-8100 (f:"],
        ),
        (
            [8000, "8000-8100"],
            ["services[1].port: 8000-8100 begins with the same port as 8000 (f:"],
        ),
        (
            ["8000-8100", "8000-8100"],
            ["services[1].vip: tcp://10.0.0.10:8000-8100 already belongs to another service (f:"],
        ),
    ],
)
def test_ports_that_cannot_be_told_apart_are_refused(
    wanted: list[object], messages: list[str]
) -> None:
    found = problems(*ports(*wanted))
    assert len(found) == len(messages)
    assert all(one.startswith(start) for one, start in zip(found, messages, strict=True))


def test_prefixes_may_lie_within_each_other_and_hold_addresses() -> None:
    wanted = vips("10.0.0.0/16", "10.0.1.0/24", "10.0.1.7", "fd00::/64", "fd00::1")
    assert len(load(*wanted).services) == 5


def test_a_prefix_may_have_several_services() -> None:
    assert len(load(*ports(80, 81, vip="192.0.2.0/24")).services) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [("10.0.0.0/24", "10.0.0.0/25"), ("10.0.0.0", "10.0.0.0/24"), ("fd00::/64", "fd00::")],
)
def test_two_vips_do_not_begin_with_the_same_address(one: str, other: str) -> None:
    first, second = vips(one, other)
    (found,) = problems(first, second | {"port": 81})
    assert found.startswith(f"services[1].vip: {other} and {one} begin with the same address (f:")


def test_the_same_prefix_and_port_twice_is_refused() -> None:
    (found,) = problems(*vips("10.0.0.0/24", "10.0.0.0/24"))
    assert found.startswith(
        "services[1].vip: tcp://10.0.0.0/24:80 already belongs to another service"
    )


@pytest.mark.parametrize(
    ("vip", "message"),
    [("10.0.1.1", "10.0.1.1 is a VIP (f:"), ("10.0.0.0/15", "10.0.1.1 is in the VIP 10.0.0.0/15")],
)
def test_a_backend_is_no_vip(vip: str, message: str) -> None:
    (found,) = problems(service(vip="10.4.0.1", backends=[backend(1)]), service(name="b", vip=vip))
    assert found.startswith(f"services[0].backends[0].address: {message}")


@pytest.mark.parametrize(
    ("nat", "message"),
    [
        ({"sources_ipv4": ["10.0.0.10"]}, "10.0.0.10 of nat.sources_ipv4 is a VIP"),
        ({"sources_ipv6": ["fd00::9"]}, "fd00::9 of nat.sources_ipv6 is in the VIP fd00::/64"),
    ],
)
def test_a_source_of_nat_is_no_vip(nat: dict[str, object], message: str) -> None:
    services = [service(), service(name="b", vip="fd00::/64")]
    (found,) = problems(*services, nat=nat)
    assert found.endswith(f".vip: {message}")
