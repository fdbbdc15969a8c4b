"""HAProxy's configuration: whatever the file says, HAProxy itself takes what is made of it."""

from __future__ import annotations

import subprocess
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.config.load import parse_document
from agent.tier.haproxy import Files, program
from agent.tier.keys import Key, Limits
from agent.tier.render import Refusal, map_text, maps, refused_by, rendered
from agent.tier.settings import Tier
from tests.pki import Authority

# Each setting with the values that render differently.
SETTINGS: dict[str, list[Any]] = {
    "listen": [["127.0.0.1:1443"], ["0.0.0.0:1443", "[::1]:1443"]],
    "engines": ["10.0.0.1:80", "[fd00::1]:80"],
    "plain": [
        None,
        {"listen": ["127.0.0.1:1080", "[::1]:1080"]},
        {"listen": ["0.0.0.0:1080"], "acme": "[::1]:8402"},
    ],
    "profile": ["intermediate", "modern"],
    "keys": [None, "/keys"],
    "forward_key": [False, True],
    "limits": [
        {},
        {"requests_per_minute": 5, "tokens_per_minute": 7, "concurrent": 1, "body": 1},
        {"tokens_per_minute": "none", "concurrent": 1_000_000, "tokens_assumed": 1_000_000},
    ],
    "queue": [{}, {"concurrent": 1, "waiting": 0, "timeout": "1s"}],
    "affinity": [
        None,
        {"by": "header", "header": "X-Chat", "sources": ["10.255.0.0/30", "fd00:1::/126"]},
        {"sources": ["10.255.0.0/22", "fd00:1::/118"]},
    ],
    "routes": [
        [],
        [{"path": "/v1/%20~", "engines": "10.0.0.1:80"}],
        [{"model": "a:b/c@d-*", "engines": "[fd00::2]:81"}, {"model": "x", "path": "/",
                                                              "engines": "10.0.0.9:80"}],
    ],
    "behind": [
        None,
        {"prefixes": ["10.0.0.0/8", "2001:db8::/32"]},
        {"files": ["/cdn.txt"], "protocol": "forwarded-for"},
    ],
    "source_connections": [None, 1],
    "client_certificates": [None, "required", "optional"],
    "default_certificate": [None, "site"],
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A folder with everything that a configuration names, in a path with a quote."""
    made = Files(tmp_path_factory.mktemp("tier") / "run")
    made.make()
    authority = Authority(made.folder / "authority")
    pair = authority.issue("site", "/CN=site")
    made.of_certificate("site").write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    quoted = made.folder / "the authority's"
    quoted.mkdir()
    (quoted / "revoked.pem").write_bytes(authority.revoked(pair).read_bytes())
    (quoted / "ca.pem").write_bytes(authority.certificate.read_bytes())
    many = list(ip_network("10.0.0.0/8").subnets(new_prefix=18))
    made_maps = maps([Key("alice", "a" * 64, Limits(1, 0, None))], many)
    for name, entries in made_maps.items():
        made.of_map(name).write_text(map_text(entries))
    return made


def tier_of(files: Files, **chosen: Any) -> Tier:
    given = {"certificates": "/certificates", **chosen}
    asked = given.pop("client_certificates", None)
    if asked is not None:
        folder = files.folder / "the authority's"
        given["client_certificates"] = {
            "ca_file": str(folder / "ca.pem"),
            "crl_file": str(folder / "revoked.pem"),
            "required": asked == "required",
        }
    return parse_document(Tier, yaml.safe_dump(given), "tier.yaml", lambda _: ())


@given(st.fixed_dictionaries({name: st.sampled_from(of) for name, of in SETTINGS.items()}))
@example({name: of[0] for name, of in SETTINGS.items()})
@example({name: of[-1] for name, of in SETTINGS.items()})
@settings(max_examples=25)
def test_haproxy_takes_whatever_is_set_without_a_warning(files: Files, chosen: dict[str, Any]):
    files.config.write_text(rendered(tier_of(files, **chosen), files.folder))
    done = subprocess.run(
        [program(), "-c", "-q", "-f", str(files.config)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_every_reason_to_refuse_has_a_backend(files: Files):
    text = rendered(tier_of(files, listen=["127.0.0.1:443"], engines="10.0.0.1:80"), files.folder)
    for refusal in Refusal:
        assert f"\nbackend {refused_by(refusal)}\n" in text


def test_who_is_refused_is_answered_before_the_body_is_read(files: Files):
    text = rendered(
        tier_of(files, listen=["127.0.0.1:443"], engines="10.0.0.1:80", keys="/keys"),
        files.folder,
    )
    lines = text.splitlines()
    (wait,) = [number for number, line in enumerate(lines) if "wait-for-body" in line]
    (known,) = [number for number, line in enumerate(lines) if "keys.map" in line]
    assert known < wait
    assert lines[wait].endswith("if !{ var(txn.refused) -m found }")
    assert "option http-buffer-request" not in text


def test_the_first_token_does_not_wait_for_the_next_ones(files: Files):
    """HAProxy gives what it reads of a streamed answer to the kernel with MSG_MORE, which waits for
    more up to 200 ms: seen with an engine that pauses, where the first token came 220 ms later
    (`bench.affinity --real`, the tier). No test may tell that by the clock.
    """
    text = rendered(tier_of(files, listen=["127.0.0.1:443"], engines="10.0.0.1:80"), files.folder)
    assert (
        "\n  option http-no-delay\n" in text[text.index("\ndefaults\n") : text.index("\nfrontend ")]
    )


def test_a_key_of_its_own_limits_is_in_their_maps():
    found = maps([Key("a", "1" * 64, Limits(5, None, 0)), Key("b", "2" * 64)], None)
    assert found == {
        "keys": {"1" * 64: "a", "2" * 64: "b"},
        "requests_per_minute": {"a": "5"},
        "tokens_per_minute": {},
        "concurrent": {"a": "0"},
    }


def test_files_are_roots_alone(tmp_path: Path):
    made = Files(tmp_path / "run")
    made.make()
    assert made.folder.stat().st_mode & 0o777 == 0o700
    assert made.certificates.stat().st_mode & 0o777 == 0o700
