"""What ``discover`` and ``overrides`` may hold, and how sources are merged."""

from __future__ import annotations

import pytest

from agent.config.discover_schema import DiscoverSection
from agent.config.document import write_yaml
from agent.config.edit import Edit, EditOp, apply_edit
from agent.config.load import parse, parse_section
from agent.config.render import document
from agent.errors import ConfigError
from agent.model import Config

TEXT = """\
interface: eth0
defaults: {{discover: {{dns: gpu.example.org, interval: 1m, min: 2}}}}
services:
  - {{name: chat, vip: 10.0.0.10, port: 80, {settings}}}
"""


def load(settings: str = "") -> Config:
    return parse(TEXT.format(settings=settings), "agent.yaml")


def test_a_service_inherits_the_source_and_the_limits():
    discover = load().services[0].discover
    assert (discover.source, discover.interval_s, discover.min) == ("dns gpu.example.org", 60.0, 2)


def test_another_source_replaces_the_inherited_one_and_keeps_the_limits():
    discover = load("discover: {file: /etc/gpu.yaml}").services[0].discover
    assert (discover.source, discover.dns, discover.min) == ("file /etc/gpu.yaml", None, 2)


def test_a_source_is_replaced_and_taken_away_at_run_time():
    config = load("discover: {file: /etc/gpu.yaml, max: 9}")
    http = "https://inventory.example.org/gpu"
    edit = Edit(EditOp.SERVICE_SET, "chat", values={"discover": {"http": http}})
    after = apply_edit(config, edit).services[0].discover
    assert (after.http, after.file, after.max) == (http, None, 9)
    none = {"discover": {"file": None, "http": None, "dns": None}}
    assert (
        not apply_edit(config, Edit(EditOp.SERVICE_SET, "chat", values=none))
        .services[0]
        .discover.is_on
    )


def test_everything_is_written_as_it_is_read():
    config = load(
        "discover: {http: 'https://[2001:db8::1]:8443/gpu', interval: 5s, timeout: 500ms, "
        "server: '[::1]:53', ca_file: /etc/ca.pem, token_file: /etc/token, "
        "match: {model: llama, zone: a}, min: 0, max: 5, most_removed: 20%, drain: 0s}, "
        "overrides: [{address: 10.0.0.3, port: 80, weight: 5}, {address: 10.0.0.4, state: drain}]"
    )
    assert parse(write_yaml(document(config)), "again").services == config.services
    assert config.services[0].discover.match == (("model", "llama"), ("zone", "a"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"file": "gpu.yaml"}, "file: 'gpu.yaml' is not an absolute path"),
        ({"http": "ftp://x/y"}, "http: 'ftp://x/y' is not an http or https URL"),
        ({"http": "https://:80/"}, "http: 'https://:80/' is not an http or https URL"),
        ({"http": "https://a:99999/"}, "http: 'https://a:99999/' is not a URL"),
        ({"http": "https://me:secret@a/"}, "http: the URL holds a password"),
        ({"http": "https://a/b c"}, "http: 'https://a/b c' has characters"),
        ({"http": 7}, "http: 7 is not a URL"),
        ({"dns": "gpu..example"}, "dns: 'gpu..example' is not a name of DNS"),
        ({"dns": "x" * 64 + ".org"}, "dns: 'x"),
        ({"file": "/a", "dns": "b"}, "file and dns are both given"),
        ({"dns": "b", "server": "dns.example.org:53"}, "server: 'dns.example.org' is not an IP"),
        ({"dns": "b", "server": "10.0.0.1"}, "server: '10.0.0.1' is not an address and a port"),
        ({"dns": "b", "port": 0}, "port: 0 is out of range"),
        ({"dns": "b", "interval": "0.5s"}, "interval: '0.5s' is out of range"),
        ({"dns": "b", "most_removed": 2}, "most_removed: 2 is not a share"),
        ({"dns": "b", "min": 5, "max": 4}, "min 5 is more than max 4"),
        ({"file": "/a", "match": ["x"]}, "match: a list is not a mapping"),
        ({"file": "/a", "match": {"x": 5}}, "match: 'x': 5 is not a text"),
        ({"dsn": "b"}, "dsn: unknown key"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, object], message: str):
    with pytest.raises(ConfigError) as refused:
        parse_section(DiscoverSection, given, "the settings")
    assert message in str(refused.value)
    assert refused.value.remedy


def test_two_overrides_of_one_server_are_refused():
    with pytest.raises(ConfigError, match="another override is for") as refused:
        load("overrides: [{address: 10.0.0.3, port: 80, weight: 1}, {address: 10.0.0.3, port: 80}]")
    assert refused.value.where == "agent.yaml:4"
