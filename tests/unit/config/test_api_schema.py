"""What a balancer's file says of the API over TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.render import document
from agent.model import RemoteApi, RoleNames
from tests.unit.config.documents import load, problems, service

FULL = {
    "listen": "192.0.2.11:9443",
    "certificate": "/etc/api/server.pem",
    "key_file": "/etc/api/server.key",
    "client_ca": "/etc/api/clients.pem",
    "crl_file": "/etc/api/revoked.pem",
    "user": "lb-api",
    "roles": {"viewer": ["grafana", "Zoë"], "operator": "alice", "admin": ["carol"]},
}


def test_without_it_the_api_is_for_this_host() -> None:
    config = load(service())
    assert config.api == RemoteApi()
    assert "api" not in document(config)


def test_every_key_is_taken_and_written_again() -> None:
    config = load(service(), api=FULL)
    files = [Path(f"/etc/api/{name}") for name in ("server.pem", "server.key", "clients.pem")]
    roles = RoleNames(("grafana", "Zoë"), ("alice",), ("carol",))
    assert config.api == RemoteApi(
        ("192.0.2.11", 9443), *files, Path("/etc/api/revoked.pem"), "lb-api", roles
    )
    assert document(config)["api"] == FULL | {"roles": FULL["roles"] | {"operator": ["alice"]}}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"listen": "off"}, "it is not served anywhere, so this has no effect"),
        ({"certificate": None}, "it is served over TLS, and has no certificate"),
        ({"key_file": None}, "has no key_file"),
        ({"client_ca": None}, "has no client_ca"),
        ({"listen": "127.0.0.1:9117"}, "this is where `metrics` is served"),
        ({"roles": {}}, "no certificate has a role, so every request would be refused"),
        ({"roles": {"viewer": ["a", "b"], "admin": ["b"]}}, "b has the role viewer, too"),
        ({"roles": {"viewer": ["x" * 65]}}, "is not a common name of a certificate"),
        ({"roles": {"viewer": [" a"]}}, "is not a common name of a certificate"),
        ({"roles": {"viewer": ["a\nb"]}}, "is not a common name of a certificate"),
        ({"roles": {"viewer": [7]}}, "7 is not text"),
        ({"roles": {"viewer": ["a"] * 257}}, "257 names are too many"),
        ({"roles": {"vewer": ["a"]}}, "unknown key"),
        ({"user": "a b"}, "'a b' is not a user name"),
        ({"crl": "/x"}, "unknown key"),
    ],
)
def test_what_makes_no_sense_is_named(changed: dict[str, object], says: str) -> None:
    given = {key: value for key, value in (FULL | changed).items() if value is not None}
    found = problems(service(), api=given)
    assert any(says in each for each in found), found
