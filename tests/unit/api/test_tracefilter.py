"""The language of filters: what it lets through, and what it says when it is misspelt."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

import pytest

from agent.api.filters import names, only_service
from agent.api.tracefilter import MAX_WORDS, FilterError, parse
from agent.state.events import Event, EventKind

DROP = Event(
    at=0.0,
    kind=EventKind.DROP,
    protocol=6,
    client=ip_address("198.51.100.7"),
    client_port=40_000,
    vip=ip_address("203.0.113.10"),
    port=443,
    length=60,
    service="web",
    reason="no-backend",
)
PICK = dataclasses.replace(
    DROP, kind=EventKind.PICK, backend="b1", reason=None, service="chat", port=8005
)
DNS6 = dataclasses.replace(
    PICK, protocol=17, client=ip_address("2001:db8::7"), vip=ip_address("2001:db8:1::53"), port=53
)
PING = dataclasses.replace(DROP, protocol=1, client_port=None, port=None, reason="no-flow")
REPLY = dataclasses.replace(PICK, kind=EventKind.REPLY)
ALL = {"drop": DROP, "pick": PICK, "dns6": DNS6, "ping": PING, "reply": REPLY}


@pytest.mark.parametrize(
    ("text", "lets_through"),
    [
        ("host 198.51.100.7", "drop pick ping reply"),
        ("host 203.0.113.10", "drop pick ping reply"),
        ("198.51.100.7", "drop pick ping reply"),
        ("src host 198.51.100.7", "drop pick ping"),
        ("dst host 198.51.100.7", "reply"),
        ("src 203.0.113.10", "reply"),
        ("net 198.51.100.0/24", "drop pick ping reply"),
        ("src net 203.0.113.0/24", "reply"),
        ("net 2001:db8::/64", "dns6"),
        ("net 198.51.100.9/24", "drop pick ping reply"),
        ("port 443", "drop"),
        ("port 40000", "drop pick dns6 reply"),
        ("dst port 40000", "reply"),
        ("src port 8005", "reply"),
        ("portrange 8000-8010", "pick reply"),
        ("portrange 53-443", "drop dns6"),
        ("tcp", "drop pick reply"),
        ("udp", "dns6"),
        ("icmp", "ping"),
        ("icmp6", ""),
        ("ip", "drop pick ping reply"),
        ("ip6", "dns6"),
        ("tcp port 443", "drop"),
        ("udp port 443", ""),
        ("ip6 dst port 53", "dns6"),
        ("tcp dst host 203.0.113.10", "drop pick"),
        ("service web", "drop ping"),
        ("backend b1", "pick dns6 reply"),
        ("backend chat/b1", "pick dns6 reply"),
        ("backend web/b1", ""),
        ("reason no-backend", "drop"),
        ("reason no-backend or no-flow", "drop ping"),
        ("port 443 or 53", "drop dns6"),
        ("not tcp", "dns6 ping"),
        ("! tcp", "dns6 ping"),
        ("!tcp", "dns6 ping"),
        ("not not tcp", "drop pick reply"),
        ("tcp and service web", "drop"),
        ("tcp&&service web", "drop"),
        ("udp || service web", "drop dns6 ping"),
        ("not (udp or service chat)", "drop ping"),
        ("not tcp and ip", "ping"),
        ("udp or tcp and service chat", "pick dns6 reply"),
        ("udp or service web and port 53", "dns6"),  # (udp or web) and 53, as in tcpdump
        ("udp or (service web and port 443)", "drop dns6"),
        ("service tcp", ""),
    ],
)
def test_filter_lets_through(text, lets_through):
    wanted = parse(text)
    assert [name for name, event in ALL.items() if wanted.matches(event)] == lets_through.split()


@pytest.mark.parametrize(
    ("text", "at", "remedy"),
    [
        ("prot 80", "prot", "did you mean port?"),
        ("tcp and prot 80", "prot", "did you mean port?"),
        ("service web and prot 80", "prot", "did you mean port?"),
        ("tcp adn udp", "adn", "did you mean and?"),
        ("tcp udp", "udp", "use and, or or"),
        ("frobnicate", "frobnicate", "expected host, net, port"),
        ("host example.com", "example.com", "expected something like 192.0.2.7"),
        ("host 10.0.0.0/8", "10.0.0.0/8", "for a network, use net 10.0.0.0/8"),
        ("host fe80::1%eth0", "fe80::1%eth0", "expected something like"),
        ("net 10.0.0.0/33", "10.0.0.0/33", "expected something like 192.0.2.0/24"),
        ("port 0", "0", "from 1 to 65535"),
        ("port 65536", "65536", "from 1 to 65535"),
        ("port http", "http", "from 1 to 65535"),
        ("port 8000-8010", "8000-8010", "from 1 to 65535"),
        ("port 80 or 70000", "70000", "from 1 to 65535"),
        ("portrange 80", "80", "8000-8010"),
        ("portrange 90-80", "90-80", "8000-8010"),
        ("reason no-backed", "no-backed", "did you mean no-backend?"),
        ("reason none", "none", "one of fragment, malformed"),
        ("backend a/b/c", "a/b/c", "NAME or SERVICE/NAME"),
        ("port", "", "expected a port"),
        ("port and tcp", "and", "expected a port"),
        ("src", "", "expected host, net, port, portrange or an address"),
        ("src tcp", "tcp", "expected host, net, port, portrange or an address"),
        ("tcp and", "", "expected host, net"),
        ("or tcp", "or", "expected host, net"),
        ("not", "", "expected host, net"),
        ("(tcp", "", "expected )"),
        ("(tcp udp)", "udp", "expected )"),
        ("()", ")", "expected host, net"),
        ("tcp)", ")", "remove it, or add a ( before it"),
        ("", "", "leave it out"),
        ("tcp & udp", "&", "use and, or or"),
    ],
)
def test_what_is_wrong_is_pointed_at(text, at, remedy):
    with pytest.raises(FilterError) as caught:
        parse(text)
    error = caught.value
    assert text[error.start : error.end] == at
    assert remedy in error.remedy
    assert error.message
    first, second = error.pointed.split("\n")
    assert first == text
    assert second == " " * error.start + "^" * max(1, len(at))


def test_a_missing_end_is_pointed_at_behind_the_text():
    with pytest.raises(FilterError) as caught:
        parse("tcp and ")
    assert caught.value.pointed == "tcp and \n        ^"


def test_the_open_parenthesis_is_named_by_its_column():
    with pytest.raises(FilterError, match="in column 5"):
        parse("not (tcp")


def test_endless_expressions_are_refused():
    assert parse(" or ".join(["tcp"] * (MAX_WORDS // 2))).matches(DROP)
    assert parse("not " * (MAX_WORDS - 2) + "tcp").matches(DROP)
    half = (MAX_WORDS - 2) // 2
    assert parse("(" * half + "tcp" + ")" * half).matches(DROP)
    with pytest.raises(FilterError, match="more than 256 words"):
        parse("not " * MAX_WORDS + "tcp")


def test_names_are_found_wherever_they_stand():
    wanted = parse("service web and not (backend chat/b1 or b2 and service dns) or reason no-flow")
    assert names(wanted, "service") == {"web", "dns"}
    assert names(wanted, "backend") == {"chat/b1", "b2"}
    assert names(wanted, "reason") == {"no-flow"}


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("service web", "web"),
        ("tcp and service web and port 80", "web"),
        ("backend web/b1", "web"),
        ("backend b1", None),
        ("service web or udp", None),
        ("service web or service chat", None),
        ("service web and port 80 or backend web/b1", "web"),
        ("not service web", None),
        ("tcp", None),
    ],
)
def test_the_one_service_of_a_filter_is_known(text, service):
    assert only_service(parse(text)) == service
