"""Which certificates of a folder can be served."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.tier.certificates import read
from tests.pki import Authority, Pair, openssl

NOW_S = time.time()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "authority")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("site", "/CN=site")


def put(path: Path, *contents: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(b"".join(contents))


def test_every_usual_way_to_keep_them_is_read(tmp_path: Path, pair: Pair):
    chain, key = pair.certificate.read_bytes(), pair.key.read_bytes()
    put(tmp_path / "both.pem", chain, key)
    put(tmp_path / "crt.crt", chain)
    put(tmp_path / "crt.key", key)
    put(tmp_path / "pem.pem", chain)
    put(tmp_path / "pem.key", key)
    put(tmp_path / "example.org" / "fullchain.pem", chain)
    put(tmp_path / "example.org" / "privkey.pem", key)
    put(tmp_path / "README", b"hello")
    put(tmp_path / ".both.pem.new", b"half of ")
    found = read(tmp_path, NOW_S)
    assert found.problems == ()
    assert [each.name for each in found.certificates] == ["both", "crt", "example.org", "pem"]
    assert all(chain in each.pem and key in each.pem for each in found.certificates)
    assert all(86_400 < each.end_s - NOW_S < 3 * 86_400 for each in found.certificates)


def test_what_is_wrong_is_named_and_hides_nothing(tmp_path: Path, authority: Authority, pair: Pair):
    chain, key = pair.certificate.read_bytes(), pair.key.read_bytes()
    old = authority.issue("old", "/CN=old", expired=True)
    put(tmp_path / "fine.pem", chain, key)
    put(tmp_path / "half.pem", chain, key[:40])
    put(tmp_path / "lost.pem", chain)
    put(tmp_path / "foreign.pem", chain, old.key.read_bytes())
    put(tmp_path / "late.pem", old.certificate.read_bytes(), old.key.read_bytes())
    put(tmp_path / "open.pem", chain, key)
    (tmp_path / "open.pem").chmod(0o644)
    put(tmp_path / "a b.pem", chain, key)
    put(tmp_path / "fine.crt", chain, key)
    found = read(tmp_path, NOW_S)
    assert [each.name for each in found.certificates] == ["fine", "late"]
    problems = "\n".join(found.problems)
    for words in (
        "half.pem: the certificate cannot be used", "lost.pem: the certificate cannot be used",
        "foreign.pem: the certificate cannot be used: key values mismatch",
        "late.pem: the certificate has expired", "chmod 0600", "'a b' cannot be",
        "there is another certificate fine",
    ):  # fmt: skip
        assert words in problems
    assert len(found.problems) == 7
    assert found.wrong == {"half", "lost", "foreign", "open", "a b"}


def test_a_key_with_a_password_is_refused(tmp_path: Path, pair: Pair):
    openssl("ec", "-in", pair.key, "-aes256", "-passout", "pass:x", "-out", tmp_path / "k")
    put(tmp_path / "site.pem", pair.certificate.read_bytes(), (tmp_path / "k").read_bytes())
    (problem,) = read(tmp_path, NOW_S).problems
    assert "without a password" in problem


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="name the folder"):
        read(tmp_path / "none", NOW_S)
