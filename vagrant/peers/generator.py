"""Opens connections at an even pace, one request each, and counts what came of them.

It runs in the client by Python's standard library alone, from standard input, and prints JSON.
Light, because an emulated client is: no tasks, and no more parsing than to know a whole answer.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import time
from collections import Counter
from dataclasses import dataclass

REQUEST = b"GET / HTTP/1.1\r\nHost: balanced.example\r\nConnection: close\r\n\r\n"
STATUS = b"HTTP/1.1 200 "
END_OF_HEAD = b"\r\n\r\n"
TICK_S = 0.1  # between two looks for connections that are over their time
BEHIND_S = 0.25  # a pace that falls behind further leaves connections out: it is a bound, no debt


@dataclass(slots=True)
class Talk:
    """One connection."""

    sock: socket.socket
    until_s: float
    asked: bool = False
    got: bytes = b""


def judge(answer: bytes) -> str | None:
    """Who has answered; None if it is not a whole answer with status 200."""
    head, end, body = answer.partition(END_OF_HEAD)
    if not head.startswith(STATUS) or not end or not body.endswith(b"\n"):
        return None
    return body.decode(errors="replace").strip()


class Generator:
    """Asks one target until its time is over, then waits for what is open."""

    def __init__(self, target: tuple[str, int], timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._selector = selectors.DefaultSelector()
        self._talks: dict[int, Talk] = {}
        self._answers: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def run(self, rate_per_s: float, seconds: float) -> dict[str, object]:
        """Ask, and say what came of it."""
        begin_s = time.monotonic()
        planned = round(rate_per_s * seconds)
        begun = left_out = 0
        while (number := begun + left_out) < planned or self._talks:
            now_s = time.monotonic()
            due_s = begin_s + number / rate_per_s
            if number < planned and due_s <= now_s:
                if now_s - due_s > BEHIND_S:
                    left_out += 1
                else:
                    begun += 1
                    self._begin(now_s)
                continue
            wait_s = due_s - now_s if number < planned else TICK_S
            for key, _ in self._selector.select(min(wait_s, TICK_S)):
                self._go_on(self._talks[key.fd])
            self._give_up(time.monotonic())
        return {
            "begun": begun,
            "left_out": left_out,
            "seconds": round(time.monotonic() - begin_s, 3),
            "answers": dict(sorted(self._answers.items())),
            "failures": dict(sorted(self._failures.items())),
        }

    def _begin(self, now_s: float) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        talk = Talk(sock, now_s + self._timeout_s)
        self._talks[sock.fileno()] = talk
        self._selector.register(sock, selectors.EVENT_WRITE)
        try:
            sock.connect(self._target)
        except BlockingIOError:
            pass
        except OSError as error:
            self._failed(talk, error)

    def _go_on(self, talk: Talk) -> None:
        try:
            if not talk.asked:
                if number := talk.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(number, os.strerror(number))
                talk.sock.send(REQUEST)
                talk.asked = True
                self._selector.modify(talk.sock, selectors.EVENT_READ)
            elif piece := talk.sock.recv(4096):
                talk.got += piece
            else:
                self._ended(talk)
        except OSError as error:
            self._failed(talk, error)

    def _ended(self, talk: Talk) -> None:
        backend = judge(talk.got)
        if backend is None:
            self._failures["not a whole answer"] += 1
        else:
            self._answers[backend] += 1
        self._close(talk)

    def _failed(self, talk: Talk, error: OSError) -> None:
        self._failures[error.strerror or type(error).__name__] += 1
        self._close(talk)

    def _give_up(self, now_s: float) -> None:
        # The first one is the oldest: they have the same time each.
        while self._talks and (talk := next(iter(self._talks.values()))).until_s < now_s:
            self._failures[f"no answer within {self._timeout_s:g} s"] += 1
            self._close(talk)

    def _close(self, talk: Talk) -> None:
        self._selector.unregister(talk.sock)
        del self._talks[talk.sock.fileno()]
        talk.sock.close()


def main() -> None:
    """The command line."""
    command_line = argparse.ArgumentParser(description=__doc__)
    add = command_line.add_argument
    add("--target", required=True, help="ADDRESS:PORT")
    add("--rate", type=float, required=True, help="connections begun in a second")
    add("--seconds", type=float, required=True, help="how long")
    add("--timeout", type=float, required=True, help="seconds without a whole answer")
    options = command_line.parse_args()
    address, _, port = options.target.rpartition(":")
    generator = Generator((address, int(port)), options.timeout)
    print(json.dumps(generator.run(options.rate, options.seconds)))


if __name__ == "__main__":
    main()
