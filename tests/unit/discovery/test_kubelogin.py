"""What proves to an API server who we are: tokens, certificates, and commands that print them."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from agent.discovery import kubelogin
from agent.discovery.kubeconfig import Access, Command
from agent.discovery.kubelogin import Identity, Login
from agent.errors import DiscoveryError
from tests.unit.discovery.apiserver import ApiServer

WHERE = "kubernetes default/vllm"
SECRET = "s3cret-t0ken"  # noqa: S105
VERSION = "client.authentication.k8s.io/v1"
HTTP = Access(URL("https://127.0.0.1:6443"))


def identities(access: Access, count: int = 1) -> list[Identity]:
    async def run() -> list[Identity]:
        login = Login(access, WHERE)
        return [await login.identity() for _ in range(count)]

    return asyncio.run(run())


def header(access: Access) -> str | None:
    return identities(access)[0].headers.get("Authorization")


def problem(access: Access) -> str:
    with pytest.raises(DiscoveryError) as caught:
        identities(access)
    assert caught.value.where == WHERE
    assert caught.value.remedy
    assert SECRET not in str(caught.value)
    return caught.value.message


# -- tokens


def test_without_credentials_no_header_is_sent():
    assert header(HTTP) is None


def test_a_token_in_a_file_wins_and_is_read_each_time(tmp_path: Path):
    path = tmp_path / "token"
    access = replace(HTTP, token=SECRET, token_file=path)
    assert header(replace(HTTP, token=SECRET)) == f"Bearer {SECRET}"
    path.write_text("one\n")
    assert header(access) == "Bearer one"
    path.write_text("two")
    assert header(access) == "Bearer two"
    path.write_text(f"{SECRET} {SECRET}")
    assert problem(access) == f"the token file {path} does not hold a token"
    path.unlink()
    assert problem(access) == f"the token file {path} cannot be read: No such file or directory"


# -- TLS


async def _name_of_client(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    peer = request.transport.get_extra_info("peercert")
    return web.Response(text=str(peer["subject"][0][0][1]))


def ask(access: Access, tls: ssl.SSLContext) -> str:
    """The client's name, as a server that demands a certificate sees it."""

    async def run() -> str:
        async with ApiServer(_name_of_client, tls=tls) as server:
            identity = await Login(access, WHERE).identity()
            async with (
                aiohttp.ClientSession() as session,
                session.get(
                    f"https://127.0.0.1:{server.port}/",
                    ssl=identity.tls,
                    server_hostname=access.server_name,
                ) as response,
            ):
                return await response.text()

    return asyncio.run(run())


@pytest.fixture
def demanding(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def test_a_client_certificate_is_presented(certificate: Path, demanding: ssl.SSLContext):
    key = certificate.with_suffix(".key")
    by_path = replace(
        HTTP, ca=certificate, server_name="localhost", certificate=certificate, key=key
    )
    by_data = replace(by_path, certificate=certificate.read_bytes(), key=key.read_bytes())
    assert ask(by_path, demanding) == "localhost"
    assert ask(by_data, demanding) == "localhost"


def test_the_name_in_the_certificate_is_checked_unless_the_file_says_insecure(
    certificate: Path, demanding: ssl.SSLContext
):
    proof = {"certificate": certificate, "key": certificate.with_suffix(".key")}
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        ask(replace(HTTP, ca=certificate, server_name="other", **proof), demanding)
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        ask(replace(HTTP, server_name="localhost", **proof), demanding)
    assert ask(replace(HTTP, is_verified=False, **proof), demanding) == "localhost"


def test_ca_certificates_as_clusters_have_them_are_verified_but_not_held_to_every_rule():
    """Since Python 3.13 a CA without a key identifier, as many clusters have, would be refused."""
    tls = identities(HTTP)[0].tls
    assert not tls.verify_flags & ssl.VERIFY_X509_STRICT
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize("ca", [b"", b"\xff", SECRET.encode(), b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_ca_certificate_is_refused(ca: bytes, tmp_path: Path):
    words = "the CA certificate for https://127.0.0.1:6443 cannot be used"
    assert problem(replace(HTTP, ca=ca)).startswith(words)
    path = tmp_path / "ca.crt"
    assert problem(replace(HTTP, ca=path)).startswith(f"the certificate-authority {path} cannot")


def test_a_client_certificate_that_cannot_be_used_is_refused(certificate: Path, tmp_path: Path):
    key = certificate.with_suffix(".key")
    encrypted = tmp_path / "encrypted.pem"
    command = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:a"]
    subprocess.run([*command, "-out", str(encrypted)], check=True, capture_output=True)
    for bad in (SECRET.encode(), b"", encrypted.read_bytes()):
        words = problem(replace(HTTP, certificate=certificate, key=bad))
        assert words.startswith("the client certificate cannot be used: ")
    assert "cannot be read" in problem(replace(HTTP, certificate=certificate, key=tmp_path / "no"))


# -- commands


def prints(text: str, *, before: str = "") -> Command:
    """A command that prints a text."""
    script = f"import sys, os\n{before}\nsys.stdout.write({text!r})"
    return Command(VERSION, (sys.executable, "-c", script))


def credential(**status: object) -> str:
    return json.dumps({"apiVersion": VERSION, "kind": "ExecCredential", "status": status})


def test_a_command_prints_the_token():
    assert header(replace(HTTP, command=prints(credential(token=SECRET)))) == f"Bearer {SECRET}"


def test_a_command_prints_a_certificate(certificate: Path, demanding: ssl.SSLContext):
    proof = {
        "clientCertificateData": certificate.read_text(),
        "clientKeyData": certificate.with_suffix(".key").read_text(),
    }
    access = replace(
        HTTP, ca=certificate, server_name="localhost", command=prints(credential(**proof))
    )
    assert ask(access, demanding) == "localhost"


def runs(tmp_path: Path, expires: str | None) -> int:
    """How often a command runs for three requests."""
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    text = credential(token=SECRET, expirationTimestamp=expires)
    before = f"open({str(log)!r}, 'a').write('x')"
    identities(replace(HTTP, command=prints(text, before=before)), 3)
    return len(log.read_text())


def test_a_command_runs_again_when_its_credentials_have_expired(tmp_path: Path):
    assert runs(tmp_path, None) == 1
    assert runs(tmp_path, "2999-01-01T00:00:00Z") == 1
    assert runs(tmp_path, "2000-01-01T00:00:00+01:00") == 3


def test_a_command_is_told_what_it_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = tmp_path / "info"
    script = (
        f"import os; open({str(path)!r}, 'w').write(os.environ['KUBERNETES_EXEC_INFO'] + "
        "os.environ['GIVEN'] + os.environ['INHERITED'] + repr(os.read(0, 9)))\n"
        f"print({credential(token=SECRET)!r})"
    )
    monkeypatch.setenv("INHERITED", "-inherited-")
    command = Command(
        VERSION, (sys.executable, "-c", script), (("GIVEN", "-given"),), {"server": "s"}
    )
    with _input(b"typed"):
        assert header(replace(HTTP, command=command)) == f"Bearer {SECRET}"
    spec = {"interactive": False, "cluster": {"server": "s"}}
    info = json.dumps({"apiVersion": VERSION, "kind": "ExecCredential", "spec": spec})
    assert path.read_text() == f"{info}-given-inherited-b''"


@contextmanager
def _input(data: bytes) -> Iterator[None]:
    """Have data in our standard input, which no command should read."""
    reading, writing = os.pipe()
    os.write(writing, data)
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        for descriptor in (reading, writing, kept):
            os.close(descriptor)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SECRET, "prints something that is not JSON"),
        ("[" * 5000, "prints something that is not JSON"),
        ("[]", "prints no ExecCredential with a status"),
        (json.dumps({"kind": "ExecCredential"}), "prints no ExecCredential with a status"),
        (json.dumps({"kind": "Pod", "status": {}}), "prints no ExecCredential with a status"),
        (
            credential(token=SECRET).replace("/v1", "/v2"),
            f"prints an ExecCredential that is not of {VERSION}",
        ),
        (credential(), "prints neither a token nor a certificate with its key"),
        (
            credential(token=SECRET, clientKeyData=SECRET),
            "prints neither a token nor a certificate with its key",
        ),
        (credential(token=[SECRET]), "prints credentials that are not strings"),
        (credential(token=f"{SECRET}\n"), "prints a token with characters that no token has"),
        (
            credential(token=SECRET, expirationTimestamp="2026-01-01T00:00:00"),
            "prints an expirationTimestamp that is not a time of RFC 3339",
        ),
        (
            credential(token=SECRET, expirationTimestamp=SECRET),
            "prints an expirationTimestamp that is not a time of RFC 3339",
        ),
    ],
)
def test_what_is_no_credential_is_refused(text: str, words: str):
    message = problem(replace(HTTP, command=prints(text)))
    assert message == f"the command {sys.executable} of the kubeconfig {words}"


def test_a_command_that_fails_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def words(*command: str, **others: Any) -> str:
        return problem(replace(HTTP, command=Command(VERSION, command, **others)))

    assert words("false") == "the command false of the kubeconfig ended with exit status 1"
    assert words(str(tmp_path)).endswith("cannot be run: Permission denied")
    assert words(str(tmp_path / "no")).endswith("cannot be run: No such file or directory")
    monkeypatch.setattr(kubelogin, "_MOST_BYTES", 1000)
    assert "prints more than" in words("yes")


def test_a_command_that_prints_faster_than_it_is_read_ends_too(monkeypatch: pytest.MonkeyPatch):
    """asyncio had stopped reading, and waited for ever for the end of what it did not read."""
    read = asyncio.StreamReader.read

    async def late(self: asyncio.StreamReader, most: int = -1) -> bytes:
        for _ in range(200):
            if self._paused or self._eof:  # type: ignore[attr-defined]
                break
            await asyncio.sleep(0.01)
        return await read(self, most)

    monkeypatch.setattr(kubelogin, "_MOST_BYTES", 1000)
    monkeypatch.setattr(asyncio.StreamReader, "read", late)
    assert "prints more than" in problem(replace(HTTP, command=Command(VERSION, ("yes",))))


def test_a_process_that_keeps_the_output_open_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kubelogin, "COMMAND_S", 0.5)
    monkeypatch.setattr(kubelogin, "_END_S", 0.1)
    command = Command(VERSION, ("sh", "-c", "setsid sleep 5 & sleep 1000"))
    assert problem(replace(HTTP, command=command)).endswith("has not ended within 0.5 s")


def test_a_command_that_does_not_end_is_killed_with_all_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The processes hold a pipe of ours; when all of them are gone, it ends."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    monkeypatch.setattr(kubelogin, "COMMAND_S", 0.5)
    opened = f"/proc/{os.getpid()}/fd/{writing}"
    command = Command(VERSION, ("sh", "-c", f"sleep 1000 3>{opened} & exec sleep 1000 3>{opened}"))
    message = problem(replace(HTTP, command=command))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""
    assert message.endswith("has not ended within 0.5 s")
