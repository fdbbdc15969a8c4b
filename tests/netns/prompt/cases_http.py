"""Cases of HTTP/1.1 without TLS, and of connections that end in other ways than they should."""

from __future__ import annotations

import random
import socket
import threading

from tests.netns.prompt import clients
from tests.netns.prompt.cases import PROMPT, Cases, Server, Talk
from tests.netns.prompt.clients import Door

CASES = Cases()
# The server notes down an answer when its time has come, also if nobody waits for it any more. All
# of a show may take minutes on a busy host.
NEVER_MS = 3_600_000


@CASES.enter(everywhere=True)
def curl_gets(door: Door) -> list[Talk]:
    clients.curl(door, "--http1.1", requests=[door.url("http", 0, delay_ms=300)])
    return [Talk((0,))]


@CASES.enter(ipv6=True, everywhere=True)
def curl_gets_over_ipv6(door: Door) -> list[Talk]:
    return curl_gets(door)


@CASES.enter(everywhere=True)
def large_body(door: Door) -> list[Talk]:
    with door.connect() as connection:
        connection.sendall(clients.request(door, 0, bytes(1_000_000), delay_ms=400))
        clients.read_answer(connection)
    return [Talk((0,))]


@CASES.enter()
def slow_upload(door: Door) -> list[Talk]:
    whole = clients.request(door, 0, bytes(6000), delay_ms=300)
    with door.connect() as connection:
        for start in range(0, len(whole), 1000):
            connection.sendall(whole[start : start + 1000])
            clients.pause(0.1)
        clients.read_answer(connection)
    return [Talk((0,))]


@CASES.enter(everywhere=True)
def keep_alive(door: Door) -> list[Talk]:
    with door.connect() as connection:
        for number, delay_ms in enumerate((300, 600, 300)):
            body = bytes(1000 * (number + 1))
            connection.sendall(clients.request(door, number, body, delay_ms=delay_ms))
            clients.read_answer(connection)
    return [Talk((0, 1, 2))]


@CASES.enter()
def person_who_thinks(door: Door) -> list[Talk]:
    with door.connect() as connection:
        clients.pause(0.4)
        for number in range(2):
            connection.sendall(clients.request(door, number, PROMPT, delay_ms=300))
            clients.read_answer(connection)
            clients.pause(0.4)
    return [Talk((0, 1))]


@CASES.enter(answers=2)
def pipelined(door: Door) -> list[Talk]:
    # The first byte that comes back ends the waiting of all that was asked before.
    with door.connect() as connection:
        asked = [clients.request(door, n, PROMPT[:700], delay_ms=300) for n in range(3)]
        connection.sendall(b"".join(asked))
        for _ in asked:
            clients.read_answer(connection)
        connection.sendall(clients.request(door, 3, PROMPT, delay_ms=300))
        clients.read_answer(connection)
    return [Talk((0, 3))]


def _expecting(door: Door, **order: int) -> list[Talk]:
    """A body of several segments, sent when the server has asked for it."""
    with clients.body_file(door, 20_000) as body:
        clients.curl(
            door,
            # By itself it waits for a second only, and then sends what it was not asked for yet.
            *("--http1.1", "-H", "Expect: 100-continue", "--expect100-timeout", "60"),
            *("--data-binary", body),
            requests=[door.url("http", 0, **order)],
        )
    return [Talk((0,))]


@CASES.enter(everywhere=True)
def continue_at_once(door: Door) -> list[Talk]:
    return _expecting(door, delay_ms=400)


@CASES.enter(everywhere=True)
def continue_late(door: Door) -> list[Talk]:
    # The body comes with the acknowledgement of the 100 Continue, all of it within a jiffy.
    return _expecting(door, interim_ms=600, delay_ms=300)


@CASES.enter()
def continue_after_thought(door: Door) -> list[Talk]:
    whole = clients.request(door, 0, PROMPT, interim_ms=300, delay_ms=300)
    head, _, body = whole.partition(b"\r\n\r\n")
    with door.connect() as connection:
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        connection.recv(100)
        clients.pause(0.3)
        connection.sendall(body)
        clients.read_answer(connection)
    return [Talk((0,))]


@CASES.enter(server=Server.NGINX)
def continue_of_nginx(door: Door) -> list[Talk]:
    return continue_at_once(door)


@CASES.enter(everywhere=True)
def streamed_answer(door: Door) -> list[Talk]:
    with door.connect() as connection:
        order = {"delay_ms": 300, "chunks": 12, "gap_ms": 60}
        connection.sendall(clients.request(door, 0, PROMPT, **order))
        clients.read_answer(connection)
        connection.sendall(clients.request(door, 1, PROMPT, **order))
        clients.read_answer(connection)
    return [Talk((0, 1))]


@CASES.enter(everywhere=True)
def head_before_answer(door: Door) -> list[Talk]:
    # What engines on uvicorn do: the head when the request is read, the first token later.
    with door.connect() as connection:
        for number in range(2):
            order = {"delay_ms": 400, "head_first": 1, "chunks": 8, "gap_ms": 60}
            connection.sendall(clients.request(door, number, PROMPT, **order))
            clients.read_answer(connection)
    return [Talk((0, 1))]


@CASES.enter(everywhere=True)
def half_closed(door: Door) -> list[Talk]:
    with door.connect() as connection:
        connection.sendall(clients.request(door, 0, PROMPT, delay_ms=400))
        connection.shutdown(socket.SHUT_WR)
        clients.read_to_end(connection)
    return [Talk((0,))]


@CASES.enter(everywhere=True)
def reset_while_computing(door: Door) -> list[Talk]:
    connection = door.connect()
    connection.sendall(clients.request(door, 0, PROMPT, delay_ms=NEVER_MS))
    clients.pause(0.4)
    port = clients.port_of(connection)
    broke_ns = clients.now_ns()
    clients.reset(connection)
    gone_ns = clients.now_ns()  # a busy host may have stood still in between
    clients.pause(0.4)
    return [Talk((0,), port, (broke_ns, gone_ns))]


@CASES.enter(answers=0)
def reset_in_mid_request(door: Door) -> list[Talk]:
    connection = door.connect()
    connection.sendall(clients.request(door, 0, bytes(1_000_000))[:64_000])
    clients.pause(0.3)
    clients.reset(connection)
    return []


@CASES.enter(answers=0)
def server_that_hangs_up(door: Door) -> list[Talk]:
    with door.connect() as connection:
        connection.sendall(clients.request(door, 0, PROMPT, delay_ms=300, end_with_fin=1))
        clients.read_to_end(connection)
    return []


@CASES.enter(answers=0, service={"timeouts": {"established": "4s"}})
def server_that_resets(door: Door) -> list[Talk]:
    # In dsr and the tunnels nobody tells the balancer: the timeout has to.
    with door.connect() as connection:
        connection.sendall(clients.request(door, 0, PROMPT, delay_ms=300, end_with_rst=1))
        clients.read_to_end(connection)
    return []


@CASES.enter(answers=0, service={"timeouts": {"established": "4s"}})
def client_that_vanishes(door: Door) -> list[Talk]:
    # Nobody tells the balancer in any mode: the timeout has to.
    connection = door.connect()
    connection.sendall(clients.request(door, 0, PROMPT, delay_ms=NEVER_MS))
    clients.pause(0.1)
    clients.vanish(connection)
    return []


@CASES.enter(everywhere=True)
def many_at_a_time(door: Door) -> list[Talk]:
    draw = random.Random(7)
    talks: list[Talk] = []

    def ask(number: int) -> None:
        with door.connect() as connection:
            body = bytes(draw.randrange(100, 20_000))
            delay_ms = draw.randrange(300, 900)
            connection.sendall(clients.request(door, number, body, delay_ms=delay_ms))
            port = clients.port_of(connection)
            clients.read_answer(connection)
            talks.append(Talk((number,), port))

    # Fewer than the answers of one size after which the agent has some of them looked at: those may
    # be taken for heads, and then are not counted if the client hangs up.
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return talks


@CASES.enter(relayed=True)
def lost_and_reordered(door: Door) -> list[Talk]:
    with door.connect() as connection:
        for number in range(3):
            body = bytes(60_000)
            connection.sendall(clients.request(door, number, body, delay_ms=400))
            clients.read_answer(connection)
    return [Talk((0, 1, 2))]


@CASES.enter(service={"count_waiting": False}, answers=0)
def switched_off(door: Door) -> list[Talk]:
    with door.connect() as connection:
        connection.sendall(clients.request(door, 0, PROMPT, delay_ms=300))
        clients.read_answer(connection)
    return []
