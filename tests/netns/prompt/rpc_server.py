"""A gRPC server that computes as long as it is told; logs like ``upstream``.

No protocol buffers: a request's message is JSON with ``id``, ``delay_ms``, and for
``/prompt/Stream`` ``messages`` and ``gap_ms``, padded by ``pad``.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from tests.netns.prompt.upstream import Log

ANSWER = b"y" * 64


class Prompt(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Methods ``/prompt/Unary`` and ``/prompt/Stream``."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def service(self, handler_call_details: Any) -> Any:
        """What handles a method."""
        if handler_call_details.method == "/prompt/Unary":
            return grpc.unary_unary_rpc_method_handler(self._unary)
        if handler_call_details.method == "/prompt/Stream":
            return grpc.unary_stream_rpc_method_handler(self._stream)
        return None

    def _compute(self, message: bytes) -> dict[str, Any]:
        order: dict[str, Any] = json.loads(message)
        self._log.write(order["id"], "received")
        time.sleep(order.get("delay_ms", 0) / 1000)
        self._log.write(order["id"], "first")
        return order

    def _unary(self, message: bytes, _context: Any) -> bytes:
        self._compute(message)
        return ANSWER

    def _stream(self, message: bytes, _context: Any) -> Iterator[bytes]:
        order = self._compute(message)
        for turn in range(order.get("messages", 1)):
            if turn:
                time.sleep(order.get("gap_ms", 0) / 1000)
            yield ANSWER
        self._log.write(order["id"], "done")


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", required=True)
    parser.add_argument("--certificate", type=Path, help="PEM, for --tls-port")
    parser.add_argument("--key", type=Path)
    parser.add_argument("--tls-port", type=int, action="append", default=[])
    parser.add_argument("ports", type=int, nargs="*")
    options = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Prompt(Log(options.log)),))
    for port in options.ports:
        server.add_insecure_port(f"[::]:{port}")
    if options.tls_port:
        pair = (options.key.read_bytes(), options.certificate.read_bytes())
        credentials = grpc.ssl_server_credentials([pair])
        for port in options.tls_port:
            server.add_secure_port(f"[::]:{port}", credentials)
    server.start()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    server.stop(None)


if __name__ == "__main__":
    main()
