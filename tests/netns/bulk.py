"""Much traffic, as a program: a server of short connections and of uploads, and their clients.

python -m tests.netns.bulk serve be1
python -m tests.netns.bulk connect fd99::100 10000
python -m tests.netns.bulk upload 10.99.0.100 1000000000
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

SHORT_PORT = 9100
UPLOAD_PORT = 9101
TIMEOUT_S = 60.0
_AT_ONCE = 16
_BLOCK_BYTES = 999_983  # divides nothing: blocks begin anywhere in a segment


def _serve(name: str) -> None:
    """Short connections get the name; uploads the name, how many bytes came and their CRC."""

    def short(talk: socket.socket) -> None:
        # The server begins. A request right behind the handshake's end can be on another CPU,
        # and a kernel that just then turns the half-open connection into a whole one finds
        # neither in its table and resets (seen with 6.18, once in 40,000).
        talk.sendall(name.encode())
        talk.recv(64)

    def upload(talk: socket.socket) -> None:
        count, crc = 0, 0
        while data := talk.recv(1 << 20):
            count += len(data)
            crc = zlib.crc32(data, crc)
        talk.sendall(json.dumps({"backend": name, "bytes": count, "crc": crc}).encode())

    def accept(listener: socket.socket) -> None:
        answer = short if listener.getsockname()[1] == SHORT_PORT else upload
        while True:
            talk, _ = listener.accept()
            talk.settimeout(TIMEOUT_S)
            with talk, contextlib.suppress(OSError):
                answer(talk)

    threads = []
    for port in (SHORT_PORT, UPLOAD_PORT):
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
        threads += [threading.Thread(target=accept, args=(listener,)) for _ in range(3)]
    for thread in threads:
        thread.start()


def _connect(address: str, count: int) -> None:
    """So many connections, one request each: which backends answered, what went wrong."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    lock = threading.Lock()

    def one(_number: int) -> None:
        answer = b""
        try:
            with socket.socket(family) as talk:
                talk.settimeout(TIMEOUT_S)
                talk.connect((address, SHORT_PORT))
                answer = talk.recv(64)
                talk.sendall(b"thanks")
                while data := talk.recv(64):
                    answer += data
        except OSError as error:
            with lock:
                errors[type(error).__name__] += 1
        with lock:
            found[answer.decode()] += 1

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(one, range(count)):
            pass
    print(json.dumps({"backends": found, "errors": errors}))


def _upload(address: str, size: int) -> None:
    """Send so many bytes; what the server says, and whether it says the truth."""
    block = os.urandom(_BLOCK_BYTES)
    left, crc = size, 0
    with socket.create_connection((address, UPLOAD_PORT), timeout=TIMEOUT_S) as talk:
        while left:
            data = block[:left]
            talk.sendall(data)
            crc = zlib.crc32(data, crc)
            left -= len(data)
        talk.shutdown(socket.SHUT_WR)
        said = json.loads(talk.makefile().read())
    print(json.dumps(said | {"whole": (said["bytes"], said["crc"]) == (size, crc)}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", name]:
            _serve(name)
        case ["connect", address, count]:
            _connect(address, int(count))
        case ["upload", address, size]:
            _upload(address, int(size))
        case _:
            sys.exit(__doc__)
