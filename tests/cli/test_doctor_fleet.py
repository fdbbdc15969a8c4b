"""The doctor on a balancer of a fleet: the store, what reaching it takes, the agent's report."""

from __future__ import annotations

import dataclasses
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lbctl.doctor import gather_fleet
from lbctl.doctor.checks import examine
from lbctl.doctor.facts import Certificate, CertificateUse, FleetFacts, Secret, StoreMember
from tests.cli.doctor_facts import BALANCER, RUNNING, STATUS, facts, verdicts

ONE, TWO = StoreMember("https://etcd1:2379"), StoreMember("https://etcd2:2379")
AWAY = "connection refused"
WELL = FleetFacts("prod", has_user=False, members=(ONE, TWO))
STANDING = {
    "name": "prod",
    "node": "lb1",
    "version": 12,
    "frozen": None,
    "problem": "",
    "store_away_s": None,
}


def fleet(standing=None, certificates=(), **changed):
    status = STATUS | {"fleet": standing}
    agent = dataclasses.replace(RUNNING, status=status, certificates=certificates)
    made = dataclasses.replace(WELL, **changed)
    return dataclasses.replace(facts(agent=agent), fleet=made, now=0.0)


def ours(name):
    return Certificate("us", 1e12, use=CertificateUse.STORE, common_name=name)


@pytest.mark.parametrize(
    ("found", "check", "verdict", "says"),
    [
        (
            fleet(STANDING | {"problem": "version 13 of the fleet is refused here"}),
            "fleet",
            "problem",
            "version 13 of the fleet is refused here; lbctl fleet status",
        ),
        (
            fleet(STANDING | {"problem": "this balancer is frozen", "frozen": "by root"}),
            "fleet",
            "warning",
            "lbctl fleet thaw",
        ),
        (
            fleet(STANDING | {"problem": "away", "frozen": "by root", "store_away_s": 9.0}),
            "fleet",
            "problem",
            "away; lbctl fleet status",
        ),
        (
            fleet(members=(ONE, dataclasses.replace(TWO, problem=AWAY))),
            "fleet store",
            "warning",
            "https://etcd2:2379: connection refused; etcdctl --endpoints https://etcd2:2379",
        ),
        (
            fleet(members=(dataclasses.replace(ONE, problem=AWAY),)),
            "fleet store",
            "problem",
            "https://etcd1:2379: connection refused",
        ),
        (
            fleet(members=(StoreMember("https://etcd1:2379", "TLS failed", is_tls=True),)),
            "fleet store",
            "problem",
            "TLS failed; fleet.etcd: ca_file, cert_file",
        ),
        (
            fleet(members=(), tls_problem="no such file or directory"),
            "fleet store",
            "problem",
            "cannot be used: no such file or directory; fleet.etcd: ca_file",
        ),
        (
            fleet(members=(), tls_problem="permission denied", tls_denied=True),
            "fleet store",
            "unknown",
            "sudo lbctl doctor",
        ),
        (
            fleet(secrets=(Secret("/p: everybody can read it", "chmod 0600 /p"),)),
            "fleet secrets",
            "problem",
            "/p: everybody can read it; chmod 0600 /p",
        ),
        (fleet(secrets=(Secret("/k", "", works=True),)), "fleet secrets", "warning", "/k"),
        (fleet(secrets=(Secret("/k", "", denied=True),)), "fleet secrets", "unknown", "sudo"),
        (
            fleet(certificates=(ours("lb1"),), has_user=True),
            "fleet certificate",
            "problem",
            "of us has the common name lb1; on the interface that the agent uses, etcd refuses it;",
        ),
        (
            fleet(certificates=(ours("lb1"),)),
            "fleet certificate",
            "warning",
            "etcd refuses it once its authentication is on",
        ),
    ],
)
def test_what_is_wrong_with_the_fleet_is_named_with_its_fix(found, check, verdict, says):
    finding = verdicts(found)[check]
    assert finding.verdict.value == verdict
    assert says in f"{finding.message}; {finding.fix}"


@pytest.mark.parametrize(
    "found",
    [
        fleet(),  # the agent is older, or was not restarted since it belongs to a fleet
        fleet(STANDING),
        fleet(STANDING, certificates=(ours(""),), has_user=True),
        # Every CA has a common name.
        fleet(certificates=(dataclasses.replace(ours("ca"), use=CertificateUse.STORE_CA),)),
    ],
)
def test_a_balancer_that_follows_its_fleet_has_no_complaint(found):
    assert not [name for name in verdicts(found) if name.startswith("fleet")]
    said = {each.check: each.message for each in examine(found, BALANCER)}
    assert said["fleet store"] == "etcd answers, 2 members of it"


def test_without_a_fleet_nothing_is_said_of_one():
    assert not [each for each in examine(facts(), BALANCER) if each.check.startswith("fleet")]
    assert gather_fleet.gather(None) is None
    assert gather_fleet.gather({"fleet": {"etcd": {"endpoints": ["http://127.0.0.1:1"]}}}) is None


# -- what is gathered


class _Member(BaseHTTPRequestHandler):
    answer = 200, b'{"health":"true","reason":""}'

    def do_GET(self) -> None:
        status, body = self.answer if self.path == "/health" else (404, b"")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def member(answer=_Member.answer, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server in the place of a member of etcd; yields its URL."""
    handler = type("_Handler", (_Member,), {"answer": answer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Files:
    """A CA, and certificates that it has signed for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca, self._ca_key = folder / "ca.pem", folder / "ca.key"
        self._openssl("-subj", "/CN=ca", "-keyout", self._ca_key, "-out", self.ca)

    def signed(self, name: str) -> tuple[Path, Path]:
        path, key = (self._folder / f"{name}.{kind}" for kind in ("pem", "key"))
        signer = ("-CA", self.ca, "-CAkey", self._ca_key)
        names = ("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE")
        self._openssl(*signer, *names, "-subj", f"/O={name}", "-keyout", key, "-out", path)
        return path, key

    def _openssl(self, *more: object) -> None:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9"
        subprocess.run([*command.split(), *map(str, more)], capture_output=True, check=True)

    def server(self, *, asks: bool = False) -> ssl.SSLContext:
        """Return the context of a member, which may ask for a client certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.signed("etcd"))
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def gathered(*urls: str, **etcd: object) -> FleetFacts:
    given = {key: str(value) for key, value in etcd.items()}
    found = gather_fleet.gather({"fleet": {"name": "prod", "etcd": {"endpoints": urls, **given}}})
    assert found is not None
    return found


def problems(found: FleetFacts) -> list[str]:
    return [each.problem for each in found.members]


def test_members_are_asked_for_their_health_in_their_order():
    unwell = 503, b'{"health":"false","reason":"RAFT NO LEADER"}'
    with member() as one, member(unwell) as two, member((200, b"welcome")) as three:
        found = gathered(one, two, three)
        assert [each.url for each in found.members] == [one, two, three]
    assert problems(found) == [
        "",
        "it answers that it is not healthy",
        "it answers with HTTP status 200, and not as etcd does",
    ]


def test_a_member_that_cannot_be_reached_says_why(monkeypatch):
    monkeypatch.setattr(gather_fleet, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        found = gathered(f"http://127.0.0.1:{port}", f"https://127.0.0.1:{port}")
        assert problems(found) == ["no answer within 0.2 s"] * 2
    found = gathered(f"http://127.0.0.1:{port}", "http://no-such-host.invalid:2379")
    assert problems(found) == ["connection refused", "its name cannot be resolved"]


def test_a_member_must_have_a_certificate_of_the_ca_file(files: Files, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    with member(context=files.server()) as url:
        assert problems(gathered(url, ca_file=files.ca)) == [""]
        (refused,) = gathered(url, ca_file=other.ca).members
        assert refused.problem.startswith("its certificate is not accepted: ")
        assert refused.is_tls
        (problem,) = problems(gathered(url.replace("127.0.0.1", "localhost"), ca_file=files.ca))
        assert "localhost" in problem


def test_our_certificate_is_shown_to_members_that_ask_for_it(files: Files):
    path, key = files.signed("lb1")
    with member(context=files.server(asks=True)) as url:
        shown = gathered(url, ca_file=files.ca, cert_file=path, key_file=key)
        assert (problems(shown), shown.secrets) == ([""], ())
        (problem,) = problems(gathered(url, ca_file=files.ca))
        assert problem.startswith("TLS failed: ") or problem == "connection reset by peer"


def test_files_for_tls_that_cannot_be_used_are_named(files: Files, tmp_path: Path):
    path, _ = files.signed("lb1")
    _, other_key = files.signed("lb2")
    found = gathered("https://127.0.0.1:1", ca_file=tmp_path / "none.pem")
    assert (found.tls_problem, found.tls_denied) == ("no such file or directory", False)
    found = gathered("https://127.0.0.1:1", cert_file=path, key_file=other_key)
    assert "certificate and key do not belong together" in found.tls_problem
    assert found.members == ()


def test_a_secret_that_others_can_read_is_named(tmp_path: Path):
    password, key = tmp_path / "password", tmp_path / "key"
    for path in (password, key):
        path.write_text("secret\n")
        path.chmod(0o640)
    assert gathered(password_file=password, key_file=key, user="lb").secrets == ()
    for path in (password, key):
        path.chmod(0o644)
    first, second = gathered(password_file=password, key_file=key).secrets
    assert first.problem.startswith(f"{password}: everybody on this host can read")
    assert (first.works, second.works) == (False, True)
    assert "chmod 0600" in second.remedy
    key.unlink()
    password.chmod(0o600)
    (missing,) = gathered(password_file=password, key_file=key).secrets
    assert (missing.works, missing.denied) == (False, False)
    assert "No such file or directory" in missing.problem


def test_whether_authentication_is_on_is_told_by_the_user(tmp_path: Path):
    assert gathered(user="lb").has_user
    assert not gathered().has_user
