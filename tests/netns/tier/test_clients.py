"""A tier with a real HAProxy: TLS as clients get it, attackers, and proxies in front of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.tier.haproxy import program
from tests.netns.site import wait_until
from tests.netns.tier.rig import HOST, Engine, TierUnderTest, free_port, serial, tier
from tests.pki import client_context

EDGE = Path(__file__).parents[3] / "deploy" / "edge"


# -- TLS


def test_mozillas_profiles_and_resumption(open_: TierUnderTest):
    def shake(*words: str) -> str:
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{open_.port}", "-servername", HOST,
             "-CAfile", str(open_.authority.certificate), *words],
            input="", capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.stdout + done.stderr

    session = open_.folder / "session"
    assert "Cipher is (NONE)" in shake("-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "Protocol: TLSv1.2" in shake("-tls1_2").replace("Protocol  : ", "Protocol: ")
    assert "Reused" not in shake("-tls1_2", "-sess_out", str(session))
    assert "Reused" in shake("-tls1_2", "-sess_in", str(session))
    open_.write(profile="modern")
    open_.reload()
    wait_until("TLS 1.2 is over", lambda: "Cipher is (NONE)" in shake("-tls1_2"))
    assert "TLSv1.3" in shake("-tls1_3")
    assert open_.curl("--http2") == "200"


def test_clients_need_a_certificate_that_was_not_revoked(tmp_path: Path, engine: Engine):
    made = TierUnderTest(tmp_path, engine.at)
    authority = made.authority
    alice, eve = (authority.issue(name, f"/CN={name}") for name in ("alice", "eve"))
    made.write(client_certificates={
        "ca_file": str(authority.certificate), "crl_file": str(authority.revoked(eve))
    })  # fmt: skip
    try:
        made.start()
        connection = made.connect(client_context(authority, alice))
        connection.request("GET", "/", headers={"X-Client-Name": "root"})
        assert b'"x-client-name": "alice"' in connection.getresponse().read().lower()
        for pair in (None, eve):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                asked(made.connect, client_context(authority, pair))
    finally:
        made.stop()


def asked(connect: Callable[[ssl.SSLContext], Any], context: ssl.SSLContext) -> None:
    """Ask in a connection; TLS 1.3 says only then that a certificate was refused."""
    connection = connect(context)
    connection.request("GET", "/")
    connection.getresponse()


def test_plain_http_leads_to_https_and_a_cas_challenge_to_certbot(
    tmp_path: Path, engine: Engine, other: Engine
):
    port = free_port()
    plain = {"listen": [f"127.0.0.1:{port}"], "acme": other.at}
    with tier(tmp_path, engine.at, plain=plain):

        def asked_plainly(path: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path, headers={"Host": HOST})
            return connection.getresponse()

        sent_on = asked_plainly("/v1/models")
        assert (sent_on.status, sent_on.headers["Location"]) == (308, f"https://{HOST}/v1/models")
        challenge = asked_plainly("/.well-known/acme-challenge/token")
        assert challenge.status == 200
        assert b'"engine": "other"' in challenge.read()


def test_a_slow_attacker_leaves_connections_for_others(tmp_path: Path, engine: Engine):
    """Slowloris at the port of TLS and at that of plain HTTP; it goes on until it is stopped."""
    port = free_port()
    more = {"max_connections": 200, "limits": {"head_timeout": "5m"},
            "plain": {"listen": [f"127.0.0.1:{port}"]}}  # fmt: skip
    with tier(tmp_path, engine.at, **more) as made, contextlib.ExitStack() as attacks:
        for url in (f"https://127.0.0.1:{made.port}/", f"http://127.0.0.1:{port}/"):
            slow = ("slowhttptest", "-H", "-c", "300", "-r", "300", "-i", "10", "-l", "3600", "-u")
            attack = subprocess.Popen([*slow, url], stdout=subprocess.DEVNULL)
            attacks.callback(attack.wait, 60)
            attacks.callback(attack.kill)

        def refused() -> int:
            return int(made.status()["refused_total"]["connections"])

        wait_until("it has all that one address may have", lambda: refused() > 200)
        assert made.status()["connections"] <= 50, "a quarter of all"
        for _ in range(10):
            assert through(made, made.port) == "127.0.0.9"


# -- behind a proxy


def test_only_a_trusted_proxy_says_who_the_client_is(tmp_path: Path, engine: Engine):
    with tier(
        tmp_path, engine.at, behind={"prefixes": ["127.0.0.0/8"], "protocol": "forwarded-for"}
    ) as made:
        assert source_of(made.ask("/", X_Forwarded_For="203.0.113.9, 198.51.100.7")) == (
            "198.51.100.7"
        ), "what the proxy has added is the last one"
        made.write(behind={"prefixes": ["192.0.2.0/24"], "protocol": "forwarded-for"})
        made.reload()
        wait_until("it is not trusted any more",
                   lambda: source_of(made.ask("/", X_Forwarded_For="203.0.113.9"))
                   == "127.0.0.1")  # fmt: skip


def test_the_proxies_are_those_of_a_file_that_is_read_again(tmp_path: Path, engine: Engine):
    """With a list as long as a large CDN's, and exchanged in the worker that runs."""
    ours, theirs = tmp_path / "proxies.txt", tmp_path / "fresh.txt"
    many = "".join(f"10.{n // 256}.{n % 256}.0/24\n" for n in range(3000))
    ours.write_text(f"{many}127.0.0.0/8\n")
    behind = {"files": [str(ours)], "protocol": "proxy"}
    with tier(tmp_path, engine.at, behind=behind) as made, haproxy_in_front(made) as front:
        assert through(made, front) == "127.0.0.9"
        assert through(made, made.port) == "", "the protocol is needed"
        workers = made.status()["reloads_total"]
        theirs.write_text(many)
        theirs.rename(ours)
        wait_until("it is not trusted any more", lambda: through(made, front) == "")
        assert through(made, made.port) == "127.0.0.9", "it needs no protocol"
        theirs.write_text("")
        theirs.rename(ours)
        wait_until("what is wrong is named", lambda: made.status()["problems"])
        assert "name no proxy" in made.status()["problems"][0]
        assert through(made, made.port) == "127.0.0.9", "nothing has changed"
        old = serial(made)
        made.certify()
        wait_until("the rest is exchanged all the same", lambda: serial(made) != old)
        assert "name no proxy" in made.status()["problems"][0]
        theirs.write_text("127.0.0.0/8\n")
        theirs.rename(ours)
        wait_until("it is trusted again", lambda: through(made, front) == "127.0.0.9")
        # HAProxy has the proxies before the agent has noted that all is well.
        wait_until("nothing is wrong any more", lambda: made.status()["problems"] == [])
        assert made.status()["reloads_total"] == workers


def test_an_nginx_in_front_says_who_the_client_is(tmp_path: Path, engine: Engine):
    behind = {"prefixes": ["127.0.0.0/8"], "protocol": "forwarded-for"}
    with tier(tmp_path, engine.at, behind=behind) as made, nginx_in_front(made) as front:
        assert through(made, front) == "127.0.0.9"
        assert through(made, front, X_Forwarded_For="203.0.113.9") == "127.0.0.9", "a lie"


@contextlib.contextmanager
def haproxy_in_front(made: TierUnderTest) -> Iterator[int]:
    """The example of an HAProxy that sends the PROXY protocol; its port on loopback."""
    port, text = free_port(), (EDGE / "haproxy.cfg").read_text()
    file = made.folder / "front.cfg"
    file.write_text(
        text.replace("bind :443", f"bind 127.0.0.1:{port}")
        .replace("203.0.113.10:443", f"127.0.0.1:{made.port}")
        .replace("maxconn 10000", "maxconn 100")
    )
    with serving(port, program(), "-db", "-f", str(file)):
        yield port


@contextlib.contextmanager
def nginx_in_front(made: TierUnderTest) -> Iterator[int]:
    """The example of an nginx that ends TLS and sends X-Forwarded-For; its port on loopback."""
    port, text = free_port(), (EDGE / "nginx.conf").read_text()
    pair = made.authority.issue("front", f"/CN={HOST}", f"subjectAltName=DNS:{HOST}")
    for old, new in {
        "listen 443": f"listen 127.0.0.1:{port}",
        "203.0.113.10:443": f"127.0.0.1:{made.port}",
        "/etc/nginx/tls/chat.pem": str(pair.certificate),
        "/etc/nginx/tls/chat.key": str(pair.key),
        "/etc/ssl/certs/ca-certificates.crt": str(made.authority.certificate),
    }.items():
        assert old in text
        text = text.replace(old, new)
    file = made.folder / "nginx.conf"
    file.write_text(
        f"pid {made.folder}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {made.folder}/body;\n{text} }}\n"
    )
    with serving(port, "nginx", "-e", "stderr", "-c", str(file), "-g", "daemon off;"):
        yield port


@contextlib.contextmanager
def serving(port: int, *command: str) -> Iterator[None]:
    process = subprocess.Popen(command)

    def accepts() -> bool:
        assert process.poll() is None, command
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    try:
        wait_until("it serves", accepts)
        yield
    finally:
        process.terminate()
        process.wait(60)


def through(made: TierUnderTest, port: int, **headers: str) -> str:
    """The client that an engine sees, of one at 127.0.0.9 who connects to this port; empty if
    there is no answer.
    """
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60)
    sock = socket.create_connection(("127.0.0.1", port), 60, ("127.0.0.9", 0))
    try:
        connection.sock = client_context(made.authority).wrap_socket(sock, server_hostname=HOST)
        sent = {"Host": HOST} | {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request("GET", "/", headers=sent)
        answer = connection.getresponse()
        return source_of((answer.status, {}, json.loads(answer.read())))
    except (ssl.SSLError, ConnectionError, http.client.HTTPException):
        return ""
    finally:
        sock.close()
        connection.close()


def source_of(answer: tuple[int, dict[str, str], Any]) -> str:
    return {name.lower(): value for name, value in answer[2]["headers"].items()}["x-forwarded-for"]
