"""The client's connections are counted, those that fail too."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vagrant.peers import generator
from vagrant.peers.generator import Generator

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbe1\n"


@contextmanager
def server(*answers: bytes | None) -> Iterator[tuple[str, int]]:
    """One connection after the other gets the next answer; None: never one."""
    held = []

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.recv(4096)
            if answer is None:
                held.append(connection)
                continue
            connection.sendall(answer)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[:2]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in held:
        connection.close()


def test_only_a_whole_answer_with_status_200_counts() -> None:
    assert generator.judge(ANSWER) == "be1"
    assert generator.judge(ANSWER.replace(b"200", b"503")) is None
    assert generator.judge(ANSWER[:-2]) is None
    assert generator.judge(b"") is None


def test_answers_are_counted_by_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "BEHIND_S", 60.0)
    other = ANSWER.replace(b"be1", b"be2")
    with server(ANSWER, other, ANSWER, ANSWER) as target:
        found = Generator(target, timeout_s=60).run(rate_per_s=4000, seconds=0.001)
    assert found["answers"] == {"be1": 3, "be2": 1}
    assert found["failures"] == {}
    assert found["begun"] == 4


def test_an_answer_that_is_cut_off_or_never_comes_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generator, "BEHIND_S", 60.0)
    with server(ANSWER[:20], None) as target:
        found = Generator(target, timeout_s=2).run(rate_per_s=2000, seconds=0.001)
    assert found["answers"] == {}
    assert found["failures"] == {"no answer within 2 s": 1, "not a whole answer": 1}


def test_what_the_client_cannot_begin_in_time_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generator, "BEHIND_S", -1.0)
    with server() as target:
        found = Generator(target, timeout_s=60).run(rate_per_s=2000, seconds=0.002)
    assert (found["begun"], found["left_out"]) == (0, 4)


def test_a_refused_connection_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = listener.getsockname()[:2]
    found = Generator(target, timeout_s=60).run(rate_per_s=1000, seconds=0.001)
    assert found["failures"] == {"Connection refused": 1}
    assert found["begun"] == 1
