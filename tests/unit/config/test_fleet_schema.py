"""What a balancer's file says of its fleet."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.render import document
from agent.model import Etcd, Fleet
from tests.unit.config.documents import load, problems, service

ONE = ["https://e1:2379"]
FULL = {
    "name": "prod",
    "node": "lb1",
    "etcd": {
        "endpoints": ["https://e1.example.org:2379/", "https://[2001:db8::1]:2379"],
        "ca_file": "/etc/ca.pem",
        "cert_file": "/etc/c.pem",
        "key_file": "/etc/c.key",
        "user": "steelyard",
        "password_file": "/etc/p",
        "prefix": "/lb/fleets",
    },
    "history": 100,
    "lease": "10s",
    "report": "500ms",
}


def test_without_it_there_is_no_fleet() -> None:
    config = load(service())
    assert config.fleet == Fleet()
    assert not config.fleet.is_on
    assert "fleet" not in document(config)


def test_every_key_is_taken_and_written_again() -> None:
    config = load(service(), fleet=FULL)
    assert config.fleet == Fleet(
        "prod",
        "lb1",
        Etcd(
            ("https://e1.example.org:2379", "https://[2001:db8::1]:2379"),
            Path("/etc/ca.pem"),
            Path("/etc/c.pem"),
            Path("/etc/c.key"),
            "steelyard",
            Path("/etc/p"),
            "/lb/fleets",
        ),
        100,
        10.0,
        0.5,
    )
    assert load(**document(config)) == config


def test_a_name_and_an_endpoint_are_enough() -> None:
    config = load(service(), fleet={"name": "prod", "etcd": {"endpoints": ["http://127.0.0.1:1"]}})
    assert config.fleet.is_on
    assert load(**document(config)) == config


@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        ({"node": "lb1"}, "the fleet has no name"),
        ({"name": "prod"}, "where etcd can be reached is not said"),
        ({"name": "Prod", "etcd": {"endpoints": ONE}}, "'Prod'"),
        ({"name": "prod", "node": "lb/1", "etcd": {"endpoints": ONE}}, "'lb/1'"),
        ({"name": "prod", "etcd": {"endpoints": "https://e1"}}, "is not a list"),
        ({"name": "prod", "etcd": {"endpoints": ["e1:2379"]}}, "is not the URL"),
        ({"name": "prod", "etcd": {"endpoints": ["https://a@e1"]}}, "is not the URL"),
        ({"name": "prod", "etcd": {"endpoints": ["https://e1/v3"]}}, "is not the URL"),
        ({"name": "prod", "etcd": {"endpoints": ["https://e1:x"]}}, "is not a URL"),
        ({"name": "prod", "etcd": {"endpoints": ONE * 2}}, "is given twice"),
        ({"name": "prod", "etcd": {"endpoints": [*ONE, "http://e2"]}}, "some endpoints use TLS"),
        (
            {"name": "prod", "etcd": {"endpoints": ["http://e1"], "ca_file": "/c"}},
            "no endpoint uses TLS",
        ),
        (
            {"name": "prod", "etcd": {"endpoints": ONE, "cert_file": "/c"}},
            "cert_file without key_file",
        ),
        ({"name": "prod", "etcd": {"endpoints": ONE, "user": "u"}}, "user without password_file"),
        (
            {
                "name": "prod",
                "etcd": {"endpoints": ["http://e1"], "user": "u", "password_file": "/p"},
            },
            "in plain text, to http://e1",
        ),
        ({"name": "prod", "etcd": {"endpoints": ONE, "prefix": "x/"}}, "'x/'"),
        ({"name": "prod", "etcd": {"endpoints": ONE}, "history": 5}, "fleet.history: 5 is out"),
        ({"name": "prod", "etcd": {"endpoints": ONE}, "lease": "1s"}, "fleet.lease: '1s' is out"),
    ],
)
def test_what_cannot_work_is_refused(fleet: dict[str, object], words: str) -> None:
    found = problems(service(), fleet=fleet)
    assert len(found) == 1, found
    assert words in found[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_password_may_go_to_this_host_in_plain_text(host: str) -> None:
    etcd = {"endpoints": [f"http://{host}:2379"], "user": "u", "password_file": "/p"}
    assert load(service(), fleet={"name": "prod", "etcd": etcd}).fleet.etcd.user == "u"
