"""A gRPC server with a health service, for /usr/bin/python3, which has grpcio: prints its port.

The messages have one field each, so nobody needs a compiler for them.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

STATUSES = {b"": 1, b"chat.Chat": 1, b"old.Chat": 2}


def check(request: bytes, context: grpc.ServicerContext) -> bytes:
    name = request[2:]
    if name not in STATUSES:
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return bytes([0x08, STATUSES[name]])


def _port(server: grpc.Server) -> int:
    """Over TLS if a certificate is named, whose key lies beside it."""
    certificate = Path(sys.argv[-1])
    if certificate.suffix != ".pem":
        return server.add_insecure_port("127.0.0.1:0")
    pair = certificate.with_suffix(".key").read_bytes(), certificate.read_bytes()
    return server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    if "no-health" not in sys.argv:
        handler = grpc.unary_unary_rpc_method_handler(check)
        health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})
        server.add_generic_rpc_handlers((health,))
    print(_port(server), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
