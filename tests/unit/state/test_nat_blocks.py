"""Which ports each source address of fullnat has towards each server."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from agent.model import Backend, Forward, Protocol, Service, ServiceKey
from agent.state.nat_blocks import assign, described, exhausted, servers
from agent.state.snapshot import NatPorts
from agent.state.tables import Blocks, ServiceSlot

VIP, A, B = (ip_address(text) for text in ("203.0.113.10", "10.0.0.21", "10.0.0.22"))
TCP, ANY = 6, 0


def fullnat(
    port: int, *addresses: object, last: int | None = None, own: int | None = None
) -> Service:
    key = ServiceKey(VIP, port, Protocol.TCP, last)
    backends = tuple(
        Backend(f"b{n}", ip_address(str(a)), port=own) for n, a in enumerate(addresses)
    )
    return Service(f"s{port}", key, backends=backends, forward=Forward.FULLNAT)


def slot(address: object, port: int) -> ServiceSlot:
    return ServiceSlot(ip_address(str(address)), port, TCP)


def row(*blocks: int) -> Blocks:
    return blocks + (0,) * (8 - len(blocks))


def test_servers_are_told_apart_by_address_and_port():
    services = (fullnat(80, A, B), fullnat(81, A, own=80), fullnat(82, A), fullnat(90, A, last=95))
    assert servers(services) == [slot(A, 80), slot(B, 80), slot(A, 82), slot(A, ANY)]


def test_each_source_has_a_block_of_its_own_towards_each_server():
    services = (fullnat(80, A, B),)
    assert assign(services, (0, 1), {}, 32) == {slot(A, 80): row(1, 2), slot(B, 80): row(3, 4)}


def test_a_server_has_blocks_for_the_sources_of_its_family():
    services = (fullnat(80, A, "fd00::21"),)
    found = assign(services, (0, 8, 9), {}, 32)
    assert found == {slot(A, 80): row(1), slot("fd00::21", 80): row(2, 3)}
    assert assign(services, (0,), {}, 32) == {slot(A, 80): row(1)}


def test_what_is_there_stays_and_what_is_left_is_given_again():
    held = {slot(A, 80): row(7), slot(B, 80): row(1)}
    assert assign((fullnat(80, A),), (0,), held, 32) == {slot(A, 80): row(7)}
    found = assign((fullnat(80, A, "10.0.0.23"),), (0, 1), held, 32)
    assert found == {slot(A, 80): row(7, 1), slot("10.0.0.23", 80): row(2, 3)}


def test_where_there_are_too_few_those_that_the_fewest_have_are_shared():
    servers = [f"10.0.0.{n}" for n in range(21, 28)]
    found = assign((fullnat(80, *servers),), (0,), {}, 3)
    assert sorted(blocks[0] for blocks in found.values()) == [1, 1, 1, 2, 2, 3, 3]
    assert assign((fullnat(80, A),), (0,), {slot(A, 80): row(9)}, 3) == {slot(A, 80): row(1)}


def test_one_port_of_a_server_that_has_several_has_none_of_its_own():
    services = (fullnat(80, A), fullnat(90, A, last=95))
    assert assign(services, (0,), {}, 32) == {slot(A, ANY): row(1)}
    held = assign(services[:1], (0,), {}, 32)
    assert assign(services, (0,), held, 32) == {slot(A, 80): row(1), slot(A, ANY): row(2)}


@pytest.mark.parametrize("first", [0, 1])
def test_what_is_found_for_a_port_stays_whichever_service_goes(first: int):
    services = (fullnat(80, A), fullnat(90, A, last=95))
    held = assign(services[first : first + 1], (0,), {}, 32)
    held = assign(services, (0,), held, 32)
    before = held.get(slot(A, 80), held[slot(A, ANY)])
    after = assign(services[:1], (0,), held, 32)
    assert after == {slot(A, 80): before}
    after = assign(services[1:], (0,), held, 32)
    assert after.get(slot(A, 80), after[slot(A, ANY)]) == before


def test_it_is_told_while_nearly_all_ports_are_in_use():
    def ports(*used: int) -> list[NatPorts]:
        return [
            NatPorts(ip_address(f"10.0.0.{n}"), slot(A, 80), u, 100) for n, u in enumerate(used)
        ]

    assert exhausted(ports(100, 80), {}) == {}
    problems = exhausted(ports(100, 95), {})
    assert problems == {
        slot(A, 80): "195 of 200 source ports towards 10.0.0.21:80/tcp are in use: "
        "new connections to it are dropped when there is none"
    }
    assert exhausted(ports(80, 81), problems).keys() == problems.keys()
    assert exhausted(ports(80, 79), problems) == {}


def test_a_server_is_described_as_people_write_it():
    slots = (slot(A, 80), slot(A, ANY), slot("fd00::21", 80), slot("fd00::21", ANY))
    assert [described(one) for one in slots] == [
        "10.0.0.21:80/tcp", "10.0.0.21/tcp", "[fd00::21]:80/tcp", "fd00::21/tcp",
    ]  # fmt: skip
