"""To whom the status page may be shown."""

from __future__ import annotations

import pytest

from agent.config.render import document
from agent.model import StatusPage
from tests.unit.config.documents import load, problems, service

TLS = {"certificate": "/etc/p.pem", "key_file": "/etc/p.key"}
TOKEN = {"token_file": "/etc/p.token"}


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"listen": "off"},
        {"listen": "127.0.0.1:9180"},
        {"listen": "[::1]:9180", **TOKEN},
        {"listen": "127.0.0.2:9117", **TLS},
        {"listen": "0.0.0.0:9180", **TOKEN, **TLS},
        {"listen": "[2001:db8::1]:443", **TOKEN, **TLS},
    ],
)
def test_a_page_for_this_host_or_with_a_token_and_tls_is_taken(page: dict[str, str]) -> None:
    config = load(service(), status_page=page)
    assert (config.status_page == StatusPage()) == (page.get("listen", "off") == "off")
    assert load(**document(config)) == config


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (
            {"listen": "0.0.0.0:9180"},
            "0.0.0.0 can be reached from other hosts, and the page has no token",
        ),
        ({"listen": "10.0.0.1:9180", **TLS}, "has no token"),
        ({"listen": "[fd00::1]:9180", **TOKEN}, "has no TLS"),
        ({"listen": "127.0.0.1:9180", "certificate": "/etc/p.pem"}, "TLS needs a key_file"),
        ({"listen": "127.0.0.1:9180", "key_file": "/etc/p.key"}, "TLS needs a certificate"),
        ({"listen": "127.0.0.1:9117"}, "this is where `metrics` are served"),
        (TOKEN, "the status page is off"),
        ({"listen": "edge:9180"}, "'edge' is not an IP address"),
        ({"listen": "127.0.0.1:9180", "port": 1}, "port"),
    ],
)
def test_another_is_refused(page: dict[str, object], words: str) -> None:
    found = problems(service(), status_page=page)
    assert len(found) == 1
    assert words in found[0]
