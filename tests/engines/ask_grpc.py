"""Asks Triton by gRPC streams, with its own client library, and prints what it saw of each
request: a line of JSON, as ``ask.py``. Run with the clients' environment; standard
input: the order as JSON.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

sys.path.insert(0, str(Path(__file__).parent))
from ask import TIMEOUT_S, milliseconds_since, piece

_ESTABLISHED = "01"
# A channel of its own for each client: gRPC would have them share one connection.
_OF_ITS_OWN = [("grpc.use_local_subchannel_pool", 1)]


def ask(order: dict[str, Any], number: int) -> dict[str, Any]:
    """One request, on a connection of its own."""
    size = order["sizes"][number % len(order["sizes"])]
    text = piece(order["text"], size, order["seed"] + number)
    seen: dict[str, Any] = {"size": size, "port": 0, "head_ms": None, "first_ms": None}
    answers: queue.Queue[Any] = queue.Queue()
    started = time.monotonic()
    with triton.InferenceServerClient(order["url"], channel_args=_OF_ITS_OWN) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        given = triton.InferInput("text_input", [1], "BYTES")
        given.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
        client.async_stream_infer("tiny", [given], enable_empty_final_response=True)
        while True:
            result, error = answers.get(timeout=TIMEOUT_S)
            if error is not None:
                return seen | {"status": str(error)}
            if seen["first_ms"] is None:
                seen |= {"first_ms": milliseconds_since(started), "port": own_port(order["url"])}
            if result.get_response().parameters["triton_final_response"].bool_param:
                return seen | {"status": 200}


def own_port(url: str) -> int:
    """Of the one connection to ``url`` that this network namespace has: gRPC does not tell it, and
    has IPv6 sockets for IPv4, too.
    """
    address, _, port = url.rpartition(":")
    remote = bytes(reversed([int(part) for part in address.split(".")])).hex().upper()
    wanted = f"{remote}:{int(port):04X}"
    tables = (Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    rows = [line.split() for table in tables for line in table]
    (local,) = (row[1] for row in rows if row[2].endswith(wanted) and row[3] == _ESTABLISHED)
    return int(local.rpartition(":")[2], 16)


def main() -> None:
    """All of the order, one at a time: else nobody could tell the connections apart."""
    order = json.load(sys.stdin)
    for number in range(order["count"]):
        print(json.dumps(ask(order, number)), flush=True)


if __name__ == "__main__":
    main()
