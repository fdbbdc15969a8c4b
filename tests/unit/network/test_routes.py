"""Questions about routes and their answers, as pyroute2 reads and writes them."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address
from typing import Any

import pytest
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agent.model import Address
from agent.network.messages import Route
from agent.network.routes import AT_ONCE, RouteSocket, parse, question
from agent.nlmsg import Message, message, messages

SERVER, SERVER6 = ip_address("10.0.0.21"), ip_address("fd00::21")
NEW_ROUTE = 24


def answer(address: Address, kind: int = 1, **attributes: Any) -> Message:
    """What the kernel says, written by pyroute2."""
    made = rtmsg()
    made["header"]["type"], made["header"]["sequence_number"] = NEW_ROUTE, 7
    made["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
    made["dst_len"], made["type"] = address.max_prefixlen, kind
    made["attrs"] = [(f"RTA_{name.upper()}", value) for name, value in attributes.items()]
    made.encode()
    (found,) = messages(bytes(made.data))
    return found


@pytest.mark.parametrize("address", [SERVER, SERVER6], ids=str)
def test_pyroute2_reads_the_question(address: Address) -> None:
    asked = rtmsg(question(9, address))
    asked.decode()
    assert asked["header"]["sequence_number"] == 9
    assert asked["dst_len"] == address.max_prefixlen
    assert ip_address(asked.get_attr("RTA_DST")) == address


@pytest.mark.parametrize(
    ("address", "attributes", "route"),
    [
        (SERVER, {"oif": 2, "prefsrc": "10.0.0.2"}, Route(2, None, ip_address("10.0.0.2"))),
        (
            SERVER,
            {"oif": 3, "gateway": "10.0.0.1", "metrics": {"attrs": [("RTAX_MTU", 1400)]}},
            Route(3, ip_address("10.0.0.1"), None, 1400),
        ),
        (
            SERVER,
            {"oif": 2, "via": {"family": socket.AF_INET6, "addr": "fe80::1"}},
            Route(2, ip_address("fe80::1")),
        ),
        (SERVER6, {"oif": 4, "gateway": "fd00::1"}, Route(4, ip_address("fd00::1"))),
        (SERVER, {}, Route()),
    ],
)
def test_a_route_is_read(address: Address, attributes: dict[str, Any], route: Route) -> None:
    assert parse(answer(address, **attributes), address) == route


def test_answers_that_lead_nowhere_say_why() -> None:
    own = parse(answer(SERVER, kind=2), SERVER)
    assert own.problem == "10.0.0.21 is an address of this machine"
    refused = parse(answer(SERVER, kind=6), SERVER)
    assert refused.problem == "the route to 10.0.0.21 refuses traffic"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (errno.ENETUNREACH, "no route to 10.0.0.21"),
        (errno.EHOSTUNREACH, "no route to 10.0.0.21"),
        (errno.EINVAL, "the route to 10.0.0.21 refuses traffic"),
        (errno.ENOBUFS, "the kernel has no memory for a route to 10.0.0.21"),
    ],
)
def test_errors_that_are_of_the_route_are_its_problem(code: int, problem: str) -> None:
    assert parse(error(code), SERVER) == Route(problem=problem)


def test_other_errors_are_raised() -> None:
    with pytest.raises(PermissionError):
        parse(error(errno.EPERM), SERVER)
    with pytest.raises(OSError, match="message of type 16"):
        parse(Message(16, 0, 7, b""), SERVER)


def error(code: int) -> Message:
    return Message(2, 0, 7, (-code).to_bytes(4, "little", signed=True))


def test_the_kernel_answers_as_many_as_are_asked_at_once() -> None:
    """More than a network namespace without routes is not needed for that."""
    asked = RouteSocket()
    try:
        addresses = [ip_address(f"127.0.{n}.1") for n in range(AT_ONCE)]
        for _ in range(3):
            found = asked.ask(addresses)
            assert found.keys() == set(addresses)
            assert {each.problem for each in found.values()} == {
                f"{address} is an address of this machine" for address in addresses
            }
        with pytest.raises(ValueError, match=f"{AT_ONCE + 1} addresses"):
            asked.ask([*addresses, SERVER])
    finally:
        asked.close()


def test_answers_that_do_not_come_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the socket's buffer is full: the kernel drops what does not fit."""
    asked = RouteSocket()
    try:
        monkeypatch.setattr(
            "agent.network.routes.question", lambda number, _: message(0, 0, number, b"")
        )
        with pytest.raises(OSError, match="answers about routes are missing") as raised:
            asked.ask([SERVER])
        assert raised.value.errno == errno.ENOBUFS, os.strerror(raised.value.errno or 0)
    finally:
        asked.close()
