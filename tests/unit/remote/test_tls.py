"""Who may connect to `lb-agent api`, by the files that it is given."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.remote.tls import Settings, context, name_of, refusal, settings_of, written
from tests.pki import Authority, Pair


@pytest.fixture
def settings(authority: Authority, server: Pair) -> Settings:
    return Settings("127.0.0.1", 9443, server.certificate, server.key, authority.certificate, None)


ANSWER = {
    "address": "192.0.2.1",
    "port": 9443,
    "certificate": "/c",
    "key_file": "/k",
    "client_ca": "/ca",
    "crl_file": None,
}


def test_settings_are_those_of_the_agent() -> None:
    paths = Path("/c"), Path("/k"), Path("/ca")
    assert settings_of(ANSWER) == Settings("192.0.2.1", 9443, *paths, None)
    with_list = settings_of(ANSWER | {"crl_file": "/crl", "more": 1})
    assert with_list == Settings("192.0.2.1", 9443, *paths, Path("/crl"))
    for key in ("address", "port", "certificate", "key_file", "client_ca"):
        assert settings_of(ANSWER | {key: None}) is None
    assert settings_of({}) is None


def test_the_context_demands_a_certificate_and_tls_1_3_and_resumes_nothing(
    settings: Settings, authority: Authority
) -> None:
    made = context(settings)
    assert made.minimum_version is ssl.TLSVersion.TLSv1_3
    assert made.verify_mode is ssl.CERT_REQUIRED
    assert made.num_tickets == 0
    assert not made.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    listed = context(replace(settings, crl_file=authority.revoked()))
    assert listed.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF


def broken(settings: Settings, tmp_path: Path, what: str) -> Settings:
    """Settings of which one file is not what it should be."""
    junk = tmp_path / "junk"
    junk.write_text("no PEM")
    junk.chmod(0o600)
    match what:
        case "open key":
            junk.write_bytes(settings.key_file.read_bytes())
            junk.chmod(0o644)
            return replace(settings, key_file=junk)
        case "other key":
            other = Authority(tmp_path / "other").issue("x", "/CN=x")
            return replace(settings, key_file=other.key)
        case "no key":
            return replace(settings, key_file=tmp_path / "none")
        case "junk certificate":
            return replace(settings, certificate=junk)
        case "no authority":
            return replace(settings, client_ca=tmp_path / "none")
        case "junk authority":
            return replace(settings, client_ca=junk)
    return replace(settings, crl_file=junk)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("open key", "everybody on this host can read or change the API's key"),
        ("other key", "the API's certificate cannot be used: key values mismatch"),
        ("no key", "the API's key cannot be read: No such file"),
        ("junk certificate", "the API's certificate cannot be used: "),
        ("no authority", "the authority of the clients' certificates cannot be used: No such file"),
        ("junk authority", "the authority of the clients' certificates cannot be used: "),
        ("junk list", "the list of revoked certificates cannot be used: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    settings: Settings, tmp_path: Path, what: str, says: str
) -> None:
    wrong = broken(settings, tmp_path, what)
    with pytest.raises(ConfigError) as caught:
        context(wrong)
    assert says in caught.value.message
    files = (wrong.certificate, wrong.key_file, wrong.client_ca, wrong.crl_file)
    assert Path(caught.value.where) in files
    assert caught.value.remedy


def test_a_file_that_is_written_anew_is_noticed(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "crl"
    with_list = replace(settings, crl_file=path)
    before = written(with_list)
    assert before[-1] is None
    path.write_text("1")
    first = written(with_list)
    path.unlink()
    path.write_text("2")
    assert len({before, first, written(with_list)}) == 3
    assert written(settings) == first[:-1]


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ((("commonName", "alice"),), "alice"),
        ((("organizationName", "o"), ("commonName", "Zoë")), "Zoë"),
        ((("organizationName", "alice"),), None),
        ((("commonName", "alice"), ("commonName", "bob")), None),
        ((("commonName", ""),), None),
        ((("commonName", "alice\nrole: admin"),), None),
        ((), None),
    ],
)
def test_a_client_is_called_by_its_common_name(
    subject: tuple[tuple[str, str], ...], name: str | None
) -> None:
    assert name_of({"subject": tuple((each,) for each in subject)}) == name
    assert name_of(None) is None


def test_why_a_handshake_failed_is_said_in_words() -> None:
    assert refusal(ConnectionResetError()) == "it has left"
    assert refusal(ssl.SSLError(1, "x")) == "TLS: the handshake failed"
