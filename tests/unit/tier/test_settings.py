"""The file of a tier, and what is said of a wrong one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from agent.config.lists import read
from agent.config.load import load_file
from agent.errors import ConfigError
from agent.tier.settings import Behind, Profile, ProxyProtocol, Tier, load, proxies_of

DEPLOY = Path(__file__).parents[3] / "deploy"
LEAST = """\
listen: [203.0.113.10:443]
engines: 10.0.0.100:80
certificates: /etc/steelyard/tls
"""


def loaded(folder: Path, text: str) -> Tier:
    path = folder / "tier.yaml"
    path.write_text(text)
    return load(path)


def test_three_lines_are_enough(tmp_path: Path):
    tier = loaded(tmp_path, LEAST)
    assert tier.listen == (("203.0.113.10", 443),)
    assert tier.engines == ("10.0.0.100", 80)
    assert (tier.profile, tier.keys, tier.routes) == (Profile.INTERMEDIATE, None, ())
    assert tier.limits.requests_per_minute is None
    assert tier.metrics == ("127.0.0.1", 9121)


def test_the_example_is_valid():
    assert load(DEPLOY / "tier.example.yaml").keys is not None


def test_the_examples_for_a_tier_behind_proxies_fit_together():
    tier, agent = load(DEPLOY / "edge" / "tier.yaml"), load_file(DEPLOY / "edge" / "agent.yaml")
    (listen,), (front, engines) = tier.listen, agent.services
    assert (str(front.key.vip), front.key.port) == listen
    assert (str(engines.key.vip), engines.key.port) == tier.engines
    nodes = {ip_network(each.address) for each in front.backends}
    known = {each.name: each for each in agent.lists}
    assert nodes == set(known["tier"].prefixes), "engines are for the tier only"
    assert tier.behind is not None
    assert known["proxies"].files == tier.behind.files
    here = replace(known["proxies"], files=(DEPLOY / "edge" / "proxies.txt",))
    assert len(read(here)) == 2


def test_all_of_it_is_read(tmp_path: Path):
    tier = loaded(
        tmp_path,
        LEAST
        + 'behind: {prefixes: [10.0.0.0/8, "2001:db8::/32"], protocol: forwarded-for}\n'
        + 'routes: [{path: /v1/embeddings, engines: "[fd00::1]:80"}]\n'
        + "limits: {requests_per_minute: 60, body: 8MiB, head_timeout: 5s}\n"
        + "client_certificates: {ca_file: /ca.pem, required: false}\n",
    )
    assert tier.behind is not None
    assert tier.behind.protocol is ProxyProtocol.FORWARDED_FOR
    assert tier.routes[0].engines == ("fd00::1", 80)
    assert (tier.limits.body, tier.limits.head_timeout) == (8 << 20, 5.0)
    assert tier.client_certificates is not None
    assert not tier.client_certificates.required


@pytest.mark.parametrize(
    ("more", "line", "words"),
    [
        ("limit: 3\n", 4, "did you mean 'limits'?"),
        ("limits:\n  requests: 3\n", 5, "requests_per_minute"),
        ("limits: {requests_per_minute: 0}\n", 4, "1 to 1000000000"),
        ("limits: {body: none}\n", 4, "a body needs a limit"),
        ("limits: {body: 1XiB}\n", 4, "not a number of bytes"),
        ("profile: old\n", 4, "modern, intermediate"),
        ("routes: [{path: v1, engines: 10.0.0.1:80}]\n", 4, "/v1/embeddings"),
        ('routes: [{path: "/v1\'", engines: 10.0.0.1:80}]\n', 4, "/v1/embeddings"),
        ("routes: [{model: 'a b', engines: 10.0.0.1:80}]\n", 4, "llama-*"),
        ("routes: [{engines: 10.0.0.1:80}]\n", 4, "it applies to every request"),
        ("routes: [{path: /x, engines: 203.0.113.10:443}]\n", 4, "listens on"),
        ("plain: {listen: [203.0.113.10:443]}\n", 4, "is an address of `listen`, too"),
        ("behind: {prefixes: [10.0.0.1/8]}\n", 4, "10.0.0.0/8"),
        ("behind: {protocol: proxy}\n", 4, "it names no proxy"),
        ("behind: {files: [cdn.txt]}\n", 4, "begin it with /"),
        ("queue: {concurrent: 0}\n", 4, "1"),
        ("affinity: {by: prompt}\n", 4, "sources: is missing"),
        ("affinity: {sources: [10.255.0.0/16]}\n", 4, "more than 1024"),
        ("affinity: {sources: [10.255.0.1]}\n", 4, "is one address"),
        ("affinity: {sources: ['fd00::/120']}\n", 4, "a prefix of IPv4, too"),
        ("affinity: {sources: [10.0.0.0/24, 10.0.1.0/24]}\n", 4, "one prefix of each family"),
        ("affinity: {by: header, header: 'a b', sources: [10.0.0.0/24]}\n", 4, "X-Session-ID"),
        ("affinity: {by: key, sources: [10.0.0.0/24]}\n", 4, "has no keys"),
        ("user: 'a b'\n", 4, "give a user"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, more: str, line: int, words: str):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, LEAST + more)
    assert caught.value.where == f"{tmp_path}/tier.yaml:{line}"
    assert words in str(caught.value)


def test_a_file_that_others_can_change_is_refused(tmp_path: Path):
    path = tmp_path / "tier.yaml"
    path.write_text(LEAST)
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="other users can change"):
        load(path)


def test_proxies_are_those_of_the_file_and_of_others(tmp_path: Path):
    behind = Behind.model_validate({"prefixes": ["10.0.0.0/8"], "files": [str(tmp_path / "cdn")]})
    (tmp_path / "cdn").write_text("# edges\n192.0.2.0/24 ; Berlin\n2001:db8::/32\n")
    assert [*map(str, proxies_of(behind))] == ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (None, 0o644, "No such file"),
        ("", 0o644, "name no proxy"),
        ("# soon\n", 0o644, "name no proxy"),
        ("192.0.2.0/2", 0o644, "may have been cut off"),
        ("192.0.2.0/24\nx\n", 0o644, "cdn:2"),
        ("192.0.2.0/24\n", 0o666, "other users can change"),
    ],
)
def test_a_file_of_proxies_that_is_wrong_is_refused(
    tmp_path: Path, text: str | None, mode: int, words: str
):
    path = tmp_path / "cdn"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=words):
        proxies_of(Behind.model_validate({"files": [str(path)]}))


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "listen: [203.0.113.10:443]\n")
    said = "\n".join(map(str, caught.value.problems))
    assert "engines: is missing" in said
    assert "certificates: is missing" in said
