"""Questions to real sources: files, HTTP servers (nginx and aiohttp), a name server (dnsmasq).

A question that must succeed has a minute, and one that must time out is never answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web

from agent.discovery import groups, sources
from agent.discovery.answer import Answer
from agent.discovery.sources import ask, stamp
from agent.errors import DiscoveryError
from agent.model import Discover, Target

GROUPS = [{"targets": ["192.0.2.1:8000"], "labels": {"weight": "50"}}]
FOUND = Answer((Target(ip_address("192.0.2.1"), 8000, weight=50),))
LONG_S, SHORT_S = 60.0, 0.3
TOKEN = "e1tF.0-secret"  # noqa: S105

type Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
type Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def fails(discover: Discover, family: int = 4) -> str:
    with pytest.raises(DiscoveryError) as caught:
        asyncio.run(ask(discover, family))
    assert caught.value.where == discover.source
    assert caught.value.remedy
    return caught.value.message


# -- files


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "targets.yaml"
    path.write_text("- targets: ['192.0.2.1:8000']\n  labels: {weight: 50}\n")
    assert asyncio.run(ask(Discover(file=path), 4)) == FOUND
    assert asyncio.run(ask(Discover(file=path, match=(("weight", "5"),)), 4)) == Answer(())


def test_a_file_that_cannot_be_read_is_no_answer(tmp_path: Path):
    path, pipe = tmp_path / "targets.json", tmp_path / "pipe"
    assert (
        fails(Discover(file=path)) == f"the file {path} cannot be read: No such file or directory"
    )
    assert fails(Discover(file=tmp_path)).endswith("cannot be read: Is a directory")
    os.mkfifo(pipe)
    assert fails(Discover(file=pipe)).endswith("is not a regular file")
    assert "cannot be read" in fails(Discover(file=Path("/a\0b")))


def test_a_file_without_a_list_of_groups_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "targets.json"
    path.write_bytes(b"")
    assert fails(Discover(file=path)) == "the answer is empty"
    path.write_bytes(b"# \xff\n[]")
    assert fails(Discover(file=path)) == "the answer is not UTF-8 (byte 3)"
    monkeypatch.setattr(sources, "MOST_BYTES", 1000)
    path.write_text("[]".ljust(1001))
    assert fails(Discover(file=path)).startswith("the answer is longer than ")


def test_the_stamp_of_a_file_changes_when_it_does(tmp_path: Path):
    path, fresh = tmp_path / "targets.json", tmp_path / "fresh"
    assert stamp(path) is None
    path.write_text("[]")
    first = stamp(path)
    assert first is not None
    assert stamp(path) == first
    fresh.write_text("[]")
    fresh.replace(path)
    assert stamp(path) != first
    before = stamp(path)
    path.write_text("[] ")
    assert stamp(path) != before
    path.unlink()
    assert stamp(path) is None
    assert stamp(Path("/a\0b")) is None


def test_the_stamp_changes_when_a_config_map_is_swapped(tmp_path: Path):
    """Kubernetes replaces the link ``..data``, which the file's own link leads through."""
    for number in (1, 2):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "targets.json").write_text("[]")
    data, path = tmp_path / "..data", tmp_path / "targets.json"
    data.symlink_to("..1")
    path.symlink_to("..data/targets.json")
    first = stamp(path)
    fresh = tmp_path / "..fresh"
    fresh.symlink_to("..2")
    fresh.replace(data)
    assert None not in (first, stamp(path))
    assert stamp(path) != first


def test_without_a_source_nothing_is_asked():
    with pytest.raises(DiscoveryError, match="no source is configured"):
        asyncio.run(ask(Discover(), 4))


# -- HTTP


class Site:
    """An HTTP server on loopback that keeps what it was asked."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self._handler, self._tls = handler, tls
        self.asked: list[web.BaseRequest] = []
        self.port = 0

    async def __aenter__(self) -> Site:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        return await self._handler(request)

    @property
    def tokens(self) -> list[str | None]:
        return [request.headers.get("Authorization") for request in self.asked]

    def url(self, path: str = "/", scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


def says(text: str, **others: object) -> Handler:
    async def handler(_request: web.BaseRequest) -> web.Response:
        return web.Response(text=text, **others)  # type: ignore[arg-type]

    return handler


LIST = says(json.dumps(GROUPS), content_type="application/json")


def http(url: str, **others: object) -> Discover:
    return replace(Discover(http=url, timeout_s=LONG_S), **others)  # type: ignore[arg-type]


async def asked(discover: Discover) -> Answer | str:
    """The answer, or what was wrong."""
    try:
        return await ask(discover, 4)
    except DiscoveryError as error:
        return error.message if error.where == discover.source and error.remedy else str(error)


def ask_site(handler: Handler, **others: object) -> Answer | str:
    async def run() -> Answer | str:
        async with Site(handler) as site:
            return await asked(http(site.url(), **others))

    return asyncio.run(run())


def ask_raw(client: Client, **others: object) -> Answer | str:
    async def run() -> Answer | str:
        server = await asyncio.start_server(client, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await asked(http(f"http://127.0.0.1:{port}/", **others))

    return asyncio.run(run())


def redirect(location: str, status: int = 302) -> Handler:
    return says("", status=status, headers={"Location": location})


def test_a_page_is_asked_for_json_without_cookies_or_compression(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def run() -> list[web.BaseRequest]:
        async with Site(LIST) as site:
            assert await ask(http(site.url("/targets?a=b")), 4) == FOUND
            return site.asked

    (request,) = asyncio.run(run())
    assert (request.method, request.path_qs) == ("GET", "/targets?a=b")
    assert request.headers["Accept"] == "application/json"
    assert request.headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization"} & set(request.headers)


def test_an_empty_list_is_an_answer():
    assert ask_site(says("[]")) == Answer(())


def test_only_targets_that_match_are_answered():
    assert ask_site(LIST, match=(("weight", "51"),)) == Answer(())


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (says("<html>502</html>"), "the answer is HTML"),
        (says('[{"targets": ["10.'), "the answer is not valid JSON: "),
        (says(""), "the answer is empty"),
        (says("[]", status=503), "HTTP status 503 instead of 200"),
        (says("[]", status=401), "HTTP status 401 instead of 200"),
        (says("[]", status=304), "HTTP status 304 instead of 200"),
        (says("", status=302), "HTTP 302 without a Location"),
        (says("[]", headers={"Content-Encoding": "gzip"}), "the answer is compressed (gzip)"),
        (redirect("file:///etc/passwd"), "it redirects from http to file"),
        (redirect("http://[::1"), "this is not an HTTP URL|it cannot be asked"),
        (redirect("/"), "more than 3 redirects"),
    ],
)
def test_other_answers_are_none(handler: Handler, words: str):
    message = ask_site(handler)
    assert isinstance(message, str)
    assert message.startswith(tuple(words.split("|")))


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "connection closed before an answer"),
        (b"SSH-2.0-OpenSSH_10.0\r\n\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]", "connection closed before the end"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * 100_000, "the answer is not HTTP"),
    ],
)
def test_what_is_no_http_is_no_answer(sent: bytes, words: str):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        writer.close()

    message = ask_raw(client)
    assert isinstance(message, str)
    assert message.startswith(words)


def test_a_body_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "MOST_BYTES", 1 << 18)
    sent = 0

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" " * 65_536)
                await writer.drain()
                sent += 65_536
        writer.close()

    assert ask_raw(client) == f"the answer is longer than {groups.MOST_BYTES >> 20} MiB"
    assert sent >= 1 << 18


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n[", None])
def test_an_answer_that_takes_too_long_is_given_up(sent: bytes | None):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if sent is None else sent)
        with contextlib.suppress(ConnectionError):
            while sent is None:  # slow, but always something
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
            await reader.read()
        writer.close()

    assert ask_raw(client, timeout_s=SHORT_S) == "no complete answer within 300 ms"


def test_where_nothing_listens_is_no_answer():
    assert fails(http(f"http://127.0.0.1:{free_port()}/")) == "connection refused"
    message = fails(http("http://no-such-host.invalid/"))
    assert message.startswith("the name no-such-host.invalid cannot be resolved: ")
    assert fails(http("ftp://127.0.0.1/")) == "this is not an HTTP URL"
    assert fails(http("http:///targets"))


def test_a_pending_question_can_be_cancelled():
    async def run() -> None:
        arrived = asyncio.Event()

        async def handler(_request: web.BaseRequest) -> web.Response:
            arrived.set()
            await asyncio.Event().wait()
            return web.Response()

        async with Site(handler) as site:
            waiting = asyncio.create_task(ask(http(site.url()), 4))
            await arrived.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(run())


# -- HTTP: the token


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def test_the_token_is_read_anew_for_each_question(token: Path):
    async def run() -> list[str | None]:
        async with Site(LIST) as site:
            await ask(http(site.url(), token_file=token), 4)
            await asyncio.to_thread(token.write_text, "rotated")
            await ask(http(site.url(), token_file=token), 4)
            return site.tokens

    assert asyncio.run(run()) == [f"Bearer {TOKEN}", "Bearer rotated"]


@pytest.mark.parametrize("content", ["", "two words", "a\r\nX: y", "é", "x" * 20_000])
def test_what_is_no_token_is_not_sent(token: Path, content: str):
    token.write_text(content)
    discover = http("http://127.0.0.1:1/", token_file=token)
    assert fails(discover) == f"the token file {token} does not hold a token"


def test_a_token_that_is_missing_is_an_error(token: Path):
    token.unlink()
    discover = http("http://127.0.0.1:1/", token_file=token)
    assert fails(discover).startswith(f"the token file {token} cannot be read: ")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_but_the_token_does_not_go_to_another_host(token: Path, status: int):
    async def run() -> tuple[Answer | str, list[str | None], list[str | None]]:
        async with Site(LIST) as other:
            for elsewhere in (other.url("/targets"), other.url("/targets", host="localhost")):
                async with Site(redirect(elsewhere, status)) as site:
                    answer = await asked(http(site.url(), token_file=token))
                    assert answer == FOUND
            return answer, site.tokens, other.tokens

    answer, sent, leaked = asyncio.run(run())
    assert (answer, sent) == (FOUND, [f"Bearer {TOKEN}"])
    assert leaked == [None, None]


def test_the_token_goes_along_on_the_same_host(token: Path):
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        steps = {"/": "/a", "/a": "b", "/b": "/targets"}
        if request.path not in steps:
            return await LIST(request)
        return web.Response(status=302, headers={"Location": steps[request.path]})

    async def run() -> list[str | None]:
        async with Site(handler) as site:
            assert await ask(http(site.url(), token_file=token), 4) == FOUND
            return site.tokens

    assert asyncio.run(run()) == [f"Bearer {TOKEN}"] * 4


# -- HTTPS


def ask_tls(tls: ssl.SSLContext, host: str = "localhost", **others: object) -> Answer | str:
    async def run() -> Answer | str:
        async with Site(LIST, tls) as site:
            return await asked(http(site.url("/", "https", host), **others))

    return asyncio.run(run())


def test_https_trusts_the_ca_file_only_for_the_names_in_the_certificate(
    tls: ssl.SSLContext, certificate: Path
):
    assert ask_tls(tls, ca_file=certificate) == FOUND
    message = ask_tls(tls, "127.0.0.1", ca_file=certificate)
    assert str(message).startswith("TLS certificate not accepted: IP address mismatch")


def test_https_refuses_a_certificate_that_nobody_vouches_for(tls: ssl.SSLContext):
    message = ask_tls(tls)
    assert str(message).startswith("TLS certificate not accepted: self-signed certificate")


def test_https_to_a_server_without_tls_is_no_answer():
    async def run() -> Answer | str:
        async with Site(LIST) as site:
            return await asked(http(site.url("/", "https")))

    assert str(asyncio.run(run())).startswith("TLS handshake failed")


def test_a_ca_file_without_a_certificate_is_an_error(tmp_path: Path):
    path = tmp_path / "ca.pem"
    discover = http("https://127.0.0.1:1/", ca_file=path)
    assert fails(discover) == f"the CA file {path} cannot be used: No such file or directory"
    path.write_text("nothing")
    assert fails(discover) == f"the CA file {path} cannot be used: it holds no valid certificate"


def test_a_redirect_from_https_to_http_is_not_followed(tls: ssl.SSLContext, certificate: Path):
    async def run() -> tuple[Answer | str, int]:
        async with Site(LIST) as plain, Site(redirect(plain.url()), tls) as site:
            answer = await asked(http(site.url("/", "https", "localhost"), ca_file=certificate))
            return answer, len(plain.asked)

    assert asyncio.run(run()) == ("it redirects from https to http", 0)


def test_a_redirect_from_http_to_https_is_followed(tls: ssl.SSLContext, certificate: Path):
    async def run() -> Answer | str:
        async def to_safe(_request: web.BaseRequest) -> web.Response:
            location = safe.url("/", "https", "localhost")
            return web.Response(status=302, headers={"Location": location})

        async with Site(LIST, tls) as safe, Site(to_safe) as site:
            return await asked(http(site.url(), ca_file=certificate))

    assert asyncio.run(run()) == FOUND


# -- HTTP and DNS by servers of the distribution


def free_port() -> int:
    """Return a port that is free for both TCP and UDP."""
    while True:
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            stream.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                datagrams.bind(stream.getsockname())
                return int(stream.getsockname()[1])


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
  access_log off; gzip on; gzip_types *; gzip_min_length 1;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; root {folder}; location /old {{ return 301 /targets.json; }} }}
}}
"""


def test_nginx_serves_a_file_and_a_redirect(tmp_path: Path):
    port, configured = free_port(), tmp_path / "nginx.conf"
    (tmp_path / "targets.json").write_text(json.dumps(GROUPS))
    tmp_path.chmod(0o755)
    configured.write_text(NGINX.format(folder=tmp_path, port=port))
    url = f"http://127.0.0.1:{port}"
    with running("nginx", "-p", str(tmp_path), "-c", str(configured), "-e", "stderr"):
        deadline = time.monotonic() + 60
        while asyncio.run(asked(http(f"{url}/old"))) == "connection refused":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert asyncio.run(ask(http(f"{url}/old"), 4)) == FOUND
        assert asyncio.run(ask(http(f"{url}/targets.json"), 4)) == FOUND
        assert fails(http(f"{url}/none.json")) == "HTTP status 404 instead of 200"


MANY = 60
ZONE = (
    *("--local=/test/", "--local-ttl=300"),
    "--host-record=pool.test,192.0.2.2,2001:db8::2,300",
    "--host-record=pool.test,192.0.2.1,300",
    "--host-record=young.test,192.0.2.3,7",
    "--host-record=own.test,127.0.0.1",
    *("--cname=alias.test,second.test,20", "--cname=second.test,pool.test"),
    "--host-record=gpu-1.test,192.0.2.1,2001:db8::1",
    "--host-record=gpu-2.test,192.0.2.2,40",
    "--srv-host=_api._tcp.test,gpu-1.test,8001,10,60",
    "--srv-host=_api._tcp.test,gpu-2.test,8002,20,0",
    "--srv-host=_none._tcp.test",
    "--srv-host=_alias._tcp.test,alias.test,8001,10,60",
    # Names that stand for all below them do not come along with SRV records.
    *("--address=/far.test/192.0.2.9", "--address=/far.test/2001:db8::9"),
    "--srv-host=_far._tcp.test,GPU.far.test,8001,10,60",
    "--srv-host=_far._tcp.test,nowhere.test,8001,10,60",
    "--srv-host=_lost._tcp.test,gpu-1.test,8001,10,60",
    "--srv-host=_lost._tcp.test,gpu.elsewhere.example,8001,10,60",
    *(f"--host-record=m{number}.test,192.0.2.{number}" for number in range(1, MANY + 1)),
    *(f"--srv-host=_many._tcp.test,m{number}.test,8000,10,60" for number in range(1, MANY + 1)),
    *(f"--host-record=many.test,192.0.2.{number}" for number in range(1, MANY + 1)),
)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    command = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
               "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root", "--group=root",
               "--pid-file=", "--edns-packet-max=4096", *ZONE]  # fmt: skip
    deadline = time.monotonic() + 60
    # It needs the port for UDP as well, and somebody else may take either before it does.
    while time.monotonic() < deadline:
        port = free_port()
        with running(*command, f"--port={port}") as process:
            while process.poll() is None and time.monotonic() < deadline:
                if answers(("127.0.0.1", port)):
                    yield "127.0.0.1", port
                    return
                time.sleep(0.05)
    pytest.fail("dnsmasq does not answer")


def dns(name: str, server: tuple[str, int], **others: object) -> Discover:
    whole = Discover(dns=name, server=server, timeout_s=LONG_S)
    return replace(whole, **others)  # type: ignore[arg-type]


def look_up(name: str, server: tuple[str, int], family: int = 4, port: int | None = 8000) -> Answer:
    return asyncio.run(ask(dns(name, server, port=port), family))


def answers(server: tuple[str, int]) -> bool:
    with contextlib.suppress(DiscoveryError):
        look_up("pool.test", server)
        return True
    return False


def target(address: str, port: int | None = 8000, **others: object) -> Target:
    return Target(ip_address(address), port, **others)  # type: ignore[arg-type]


def test_a_name_has_addresses_of_either_family(server: tuple[str, int]):
    four = look_up("pool.test", server)
    assert four == Answer((target("192.0.2.1"), target("192.0.2.2")), (), 300)
    assert look_up("pool.test.", server, 6, None).targets == (target("2001:db8::2", None),)


def test_an_answer_is_valid_as_long_as_its_shortest_record(server: tuple[str, int]):
    assert look_up("young.test", server).valid_s == 7
    assert look_up("alias.test", server) == Answer(
        (target("192.0.2.1"), target("192.0.2.2")), (), 20
    )


def test_addresses_that_cannot_be_backends_are_refused(server: tuple[str, int]):
    answer = look_up("own.test", server)
    assert answer.targets == ()
    assert [refused.what for refused in answer.refused] == ["127.0.0.1"]


def test_srv_records_have_ports_priorities_and_weights(server: tuple[str, int]):
    assert look_up("_api._tcp.test", server) == Answer(
        (target("192.0.2.1", 8001, weight=60), target("192.0.2.2", 8002, priority=1)), (), 40
    )
    six = look_up("_api._tcp.test", server, 6)
    assert six.targets == (target("2001:db8::1", 8001, weight=60),)
    assert [(entry.what, entry.why) for entry in six.refused] == [
        ("gpu-2.test", "the name has no AAAA records")
    ]


def test_addresses_that_do_not_come_with_srv_records_are_asked_for(server: tuple[str, int]):
    answer = look_up("_far._tcp.test", server)
    assert answer.targets == (target("192.0.2.9", 8001, weight=60),)
    assert [entry.what for entry in answer.refused] == ["nowhere.test"]
    assert look_up("_far._tcp.test", server, 6).targets == (target("2001:db8::9", 8001, weight=60),)


def test_the_target_of_an_srv_record_may_be_an_alias(server: tuple[str, int]):
    expected = (target("192.0.2.1", 8001, weight=60), target("192.0.2.2", 8001, weight=60))
    assert look_up("_alias._tcp.test", server) == Answer(expected, (), 20)


def test_a_target_that_cannot_be_looked_up_is_not_taken_for_absent(server: tuple[str, int]):
    message = fails(dns("_lost._tcp.test", server))
    assert message == "the name server cannot answer: REFUSED"


def test_a_service_that_is_decidedly_not_available_has_no_targets(server: tuple[str, int]):
    answer = look_up("_none._tcp.test", server)
    assert (answer.targets, answer.refused) == ((), ())


@pytest.mark.parametrize("name", ["_many._tcp.test", "many.test"])
def test_an_answer_that_is_too_long_for_udp_comes_by_tcp(server: tuple[str, int], name: str):
    assert is_truncated(name, server)
    answer = look_up(name, server)
    assert [str(found.address) for found in answer.targets] == [
        f"192.0.2.{number}" for number in range(1, MANY + 1)
    ]


def is_truncated(name: str, server: tuple[str, int]) -> bool:
    """Whether a datagram does not hold the answer: the flag TC."""
    import dns.flags
    import dns.message
    import dns.query

    question = dns.message.make_query(name, "SRV" if name.startswith("_") else "A")
    return bool(dns.query.udp(question, server[0], LONG_S, server[1]).flags & dns.flags.TC)


@pytest.mark.parametrize(
    ("name", "family", "words"),
    [
        ("nope.test", 4, "the name nope.test does not exist"),
        ("_nope._tcp.test", 4, "the name _nope._tcp.test does not exist"),
        ("gpu-2.test", 6, "the name gpu-2.test has no AAAA records"),
        ("elsewhere.example", 4, "the name server cannot answer: REFUSED"),
        ("a..test", 4, "A DNS label is empty."),
        ("a" * 64 + ".test", 4, "A DNS label is > 63 octets long."),
    ],
)
def test_what_a_name_server_does_not_know_is_no_answer(
    server: tuple[str, int], name: str, family: int, words: str
):
    assert fails(dns(name, server), family) == words


@pytest.mark.parametrize("name", ["pool.test", "_api._tcp.test"])
def test_a_name_server_that_is_silent_is_given_up(name: str):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        message = fails(dns(name, end.getsockname(), timeout_s=SHORT_S))
    assert message == "no answer from a name server within 300 ms"


def test_where_no_name_server_is_there_is_no_answer():
    port = free_port()
    message = fails(dns("pool.test", ("127.0.0.1", port), timeout_s=SHORT_S))
    assert message == "no answer from a name server within 300 ms"
    assert fails(dns("pool.test", ("not-an-address", port), timeout_s=SHORT_S))


def test_a_name_server_that_fails_is_no_answer():
    """SERVFAIL says that the server does not know, not that there are no records."""
    import dns.message
    import dns.rcode

    class Failing(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: object) -> None:
            answer = dns.message.make_response(dns.message.from_wire(data))
            answer.set_rcode(dns.rcode.SERVFAIL)
            self.transport.sendto(answer.to_wire(), addr)  # type: ignore[attr-defined]

    async def run() -> Answer | str:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Failing, ("127.0.0.1", 0))
        where = transport.get_extra_info("sockname")
        answer = await asked(Discover(dns="pool.test", server=where, timeout_s=LONG_S))
        transport.close()
        return answer

    assert asyncio.run(run()) == "the name server cannot answer: SERVFAIL"


def test_the_name_servers_of_the_host_are_asked_by_default(
    server: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    import dns.asyncresolver

    configured = tmp_path / "resolv.conf"
    configured.write_text("nameserver 127.0.0.1\n")
    read = dns.asyncresolver.Resolver.read_resolv_conf

    def instead(resolver: dns.asyncresolver.Resolver, path: str) -> None:
        assert path == "/etc/resolv.conf"
        resolver.port = server[1]
        read(resolver, str(configured))

    monkeypatch.setattr(dns.asyncresolver.Resolver, "read_resolv_conf", instead)
    answer = asyncio.run(ask(Discover(dns="young.test", port=8000, timeout_s=LONG_S), 4))
    assert answer.targets == (target("192.0.2.3"),)
