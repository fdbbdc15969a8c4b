"""Cases of TLS, HTTP/2 and gRPC: what peers say to each other beside requests and answers."""

from __future__ import annotations

from typing import Any

from tests.netns.prompt import clients
from tests.netns.prompt.cases import CONTROL, PROMPT, Cases, Server, Talk
from tests.netns.prompt.clients import Door
from tests.netns.prompt.nginx import Front

TLS12, TLS13 = "TLSv1.2", "TLSv1.3"
ONLY_TLS13, HTTP2_TLS13 = Front(0, TLS13), Front(0, TLS13, http2=True)
CASES = Cases()


# -- TLS


def _posts(
    door: Door, *words: str, scheme: str = "https", chunks: int = 1, head_first: int = 0
) -> list[Talk]:
    order = {"delay_ms": 400, "chunks": chunks, "gap_ms": 80, "head_first": head_first}
    with clients.body_file(door, len(PROMPT)) as body:
        urls = [door.url(scheme, number, **order) for number in range(2)]
        clients.curl(door, *words, "--data-binary", body, requests=urls)
    return [Talk((0, 1))]


@CASES.enter(server=Server.NGINX, front=Front(0, TLS12), control=CONTROL)
def tls12(door: Door) -> list[Talk]:
    return _posts(door, "--http1.1")


@CASES.enter(server=Server.NGINX, front=ONLY_TLS13, control=CONTROL, everywhere=True)
def tls13(door: Door) -> list[Talk]:
    return _posts(door, "--http1.1")


@CASES.enter(server=Server.NGINX, front=Front(0, TLS12, http2=True), control=CONTROL)
def tls12_http2(door: Door) -> list[Talk]:
    return _posts(door, "--http2")


@CASES.enter(server=Server.NGINX, front=HTTP2_TLS13, control=CONTROL, everywhere=True)
def tls13_http2(door: Door) -> list[Talk]:
    return _posts(door, "--http2")


@CASES.enter(server=Server.NGINX, front=ONLY_TLS13, control=CONTROL, everywhere=True)
def tls13_head_before_answer(door: Door) -> list[Talk]:
    return _posts(door, "--http1.1", chunks=8, head_first=1)


@CASES.enter(server=Server.NGINX, front=HTTP2_TLS13, control=CONTROL)
def tls13_http2_head_before_answer(door: Door) -> list[Talk]:
    return _posts(door, "--http2", chunks=8, head_first=1)


@CASES.enter(server=Server.NGINX, front=HTTP2_TLS13, control=CONTROL)
def tls13_http2_stream(door: Door) -> list[Talk]:
    return _posts(door, "--http2", chunks=8)


@CASES.enter(server=Server.NGINX, front=ONLY_TLS13, control=CONTROL)
def tls13_opened_early(door: Door) -> list[Talk]:
    # Handshake, then silence: neither it nor the session tickets are a request or an answer.
    with clients.over_tls(door, clients.tls_context(door)) as connection:
        clients.pause(0.5)
        for number in range(2):
            connection.sendall(clients.request(door, number, PROMPT, delay_ms=300))
            clients.read_answer(connection)
            clients.pause(0.3)
    return [Talk((0, 1))]


@CASES.enter(server=Server.NGINX, front=ONLY_TLS13, control=CONTROL)
def tls13_resumed(door: Door) -> list[Talk]:
    context = clients.tls_context(door)
    talks, session = [], None
    for number in range(2):
        with clients.over_tls(door, context, session) as connection:
            connection.sendall(clients.request(door, number, PROMPT, delay_ms=300))
            clients.read_answer(connection)
            session = connection.session
            talks.append(Talk((number,), clients.port_of(connection)))
            assert connection.session_reused == bool(number)
            clients.farewell(connection)
    return talks


@CASES.enter(server=Server.NGINX, front=ONLY_TLS13, control=CONTROL, relayed=True, spared=True)
def tls13_lost_and_reordered(door: Door) -> list[Talk]:
    # The first segment of a request need not be the first that comes. Tickets that are lost and
    # come late are an answer where only acknowledgements are seen, so what the server sends passes.
    talks = []
    for number in range(3):
        with clients.over_tls(door, clients.tls_context(door)) as connection:
            connection.sendall(clients.request(door, number, bytes(60_000), delay_ms=400))
            clients.read_answer(connection)
            talks.append(Talk((number,), clients.port_of(connection)))
    return talks


@CASES.enter(server=Server.NGINX, front=ONLY_TLS13, control=CONTROL, answers=0)
def tls13_without_request(door: Door) -> list[Talk]:
    with clients.over_tls(door, clients.tls_context(door)) as connection:
        clients.pause(0.3)
        clients.farewell(connection)
    return []


# -- HTTP/2 and gRPC, not encrypted


@CASES.enter(server=Server.NGINX, front=Front(0, http2=True), control=CONTROL)
def http2(door: Door) -> list[Talk]:
    return _posts(door, "--http2-prior-knowledge", scheme="http")


@CASES.enter(server=Server.NGINX, front=Front(0, http2=True), control=CONTROL)
def http2_head_before_answer(door: Door) -> list[Talk]:
    return _posts(door, "--http2-prior-knowledge", scheme="http", chunks=8, head_first=1)


@CASES.enter(server=Server.NGINX, front=Front(0, http2=True), control=CONTROL)
def http2_large_body(door: Door) -> list[Talk]:
    with clients.body_file(door, 300_000) as body:
        words = ("--http2-prior-knowledge", "--data-binary", body)
        clients.curl(door, *words, requests=[door.url("http", 0, delay_ms=500)])
    return [Talk((0,))]


def _calls(door: Door, *pauses_ms: int, **order: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"{door.name}-{number}", "pause_ms": pause_ms, "pad": "p" * 4000, **order}
        for number, pause_ms in enumerate(pauses_ms)
    ]


@CASES.enter(server=Server.RPC, control=CONTROL, everywhere=True)
def grpc_unary(door: Door) -> list[Talk]:
    calls = _calls(door, 0, 500, delay_ms=400)
    assert clients.rpc(door, "Unary", calls, linger_ms=600) == 2
    return [Talk((0, 1))]


@CASES.enter(server=Server.RPC, control=CONTROL)
def grpc_stream(door: Door) -> list[Talk]:
    calls = _calls(door, 0, delay_ms=400, messages=8, gap_ms=100)
    assert clients.rpc(door, "Stream", calls, linger_ms=600) == 8
    return [Talk((0,))]


@CASES.enter(server=Server.RPC_TLS, control=CONTROL)
def grpc_over_tls(door: Door) -> list[Talk]:
    calls = _calls(door, 0, 500, delay_ms=400)
    ca = str(door.folder / "prompt.pem")
    assert clients.rpc(door, "Unary", calls, linger_ms=600, ca=ca) == 2
    return [Talk((0, 1))]


@CASES.enter(server=Server.RPC, control=CONTROL, loose=True)
def grpc_multiplexed(door: Door) -> list[Talk]:
    # Calls that overlap on one connection: the first answer ends the waiting of all of them.
    calls = _calls(door, 0, 200, 200, delay_ms=700)
    assert clients.rpc(door, "Unary", calls, overlap=True, linger_ms=600) == 3
    return [Talk((0, 1, 2))]
