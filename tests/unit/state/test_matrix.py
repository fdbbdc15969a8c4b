"""The map of servers and services."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Backend, BackendState, Service
from agent.state.matrix import matrix, natural
from agent.state.ranking import Figures
from tests.unit.state.world import all_up, web


def figures(flows: list[int], waiting: list[int]) -> Figures:
    nothing = np.zeros(len(flows), np.int64)
    return Figures(nothing, np.array(flows, np.int64), np.array(waiting, np.int64), nothing)


def of(name: str, *backends: tuple[str, str], vip: str = "203.0.113.1") -> Service:
    return web(*(Backend(n, ip_address(a)) for n, a in backends), name=name, vip=vip)


CHAT = of("chat", ("gpu-10", "10.0.0.10"), ("gpu-9", "10.0.0.9"))
EMBED = of("embed", ("gpu-9", "10.0.0.9"), ("cpu", "10.0.0.1"), vip="203.0.113.2")


def test_a_server_is_in_all_its_services_and_they_are_in_order_of_their_names():
    found = matrix(all_up(EMBED, CHAT), figures([1, 4, 3, 0], [0, 0, 0, 0]))
    assert [name for name, _ in found.servers] == ["cpu", "gpu-9", "gpu-10"]
    assert found.services == ("chat", "embed")
    assert [(cell.server, cell.service, cell.backend, cell.load) for cell in found.cells] == [
        (1, 0, "gpu-9", 0.0),
        (2, 0, "gpu-10", 1.0),
        (0, 1, "cpu", 1.0),
        (1, 1, "gpu-9", 0.25),
    ]
    assert {cell.state for cell in found.cells} == {BackendState.UP}


def test_what_waits_goes_before_flows_where_any_waits():
    found = matrix(all_up(CHAT, EMBED), figures([9, 1, 8, 2], [0, 50, 0, 0]))
    assert [cell.load for cell in found.cells] == [1.0, 0.0, 0.25, 1.0]


def test_two_addresses_of_one_name_are_one_server_if_their_families_differ():
    both = of("web6", ("gpu-9", "fd00::9"), vip="fd00::80")
    found = matrix(all_up(CHAT, both), figures([0, 0, 0], [0, 0, 0]))
    assert found.servers[0] == ("gpu-9", (ip_address("10.0.0.9"), ip_address("fd00::9")))
    other = of("embed", ("gpu-9", "10.0.0.7"), vip="203.0.113.2")
    names = [name for name, _ in matrix(all_up(CHAT, other), figures([0] * 3, [0] * 3)).servers]
    assert names == ["gpu-9", "gpu-9", "gpu-10"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=8, unique=True))
def test_each_backend_has_one_cell(members: list[tuple[int, int]]):
    named: dict[int, list[tuple[str, str]]] = {}
    for service, server in members:
        named.setdefault(service, []).append((f"gpu-{server}", f"10.0.0.{server + 1}"))
    services = [of(f"s{n}", *own, vip=f"203.0.113.{n + 1}") for n, own in named.items()]
    found = matrix(all_up(*services), figures([1] * len(members), [0] * len(members)))
    cells = {(found.services[c.service], c.backend): found.servers[c.server] for c in found.cells}
    assert len(found.cells) == len(members)
    for service, server in members:
        name, addresses = cells[f"s{service}", f"gpu-{server}"]
        assert (name, addresses) == (f"gpu-{server}", (ip_address(f"10.0.0.{server + 1}"),))


@given(st.lists(st.integers(0, 10**12), unique=True))
def test_numbers_in_names_count_as_numbers(numbers: list[int]):
    names = [f"gpu-{number}b" for number in numbers]
    assert sorted(names, key=natural) == [f"gpu-{number}b" for number in sorted(numbers)]
    assert natural("gpu-9") < natural("gpu-10") < natural("gpu-10a") < natural("gpu-x")
