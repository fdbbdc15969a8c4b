"""A gRPC client: one channel, some calls, one after the other or on top of each other.

Arguments: target, then JSON: ``method``, ``calls`` (a list of messages, ``pause_ms`` each: how long
after the previous call has ended it starts, or with ``overlap`` after that has started),
``linger_ms`` (how long the channel stays open after the last answer), ``ca`` (PEM: TLS).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc


def _channel(target: str, ca: str | None) -> Any:
    options = [("grpc.enable_http_proxy", 0), ("grpc.ssl_target_name_override", "prompt.test")]
    if ca is None:
        return grpc.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())
    return grpc.secure_channel(target, credentials, options)


def main() -> None:
    """Make the calls; prints how many answers came."""
    target, plan = sys.argv[1], json.loads(sys.argv[2])
    answers = []

    with _channel(target, plan.get("ca")) as channel:

        def call(message: dict[str, Any]) -> None:
            data = json.dumps(message).encode()
            if plan["method"] == "Unary":
                answers.append(channel.unary_unary("/prompt/Unary")(data, timeout=120))
            else:
                answers.extend(channel.unary_stream("/prompt/Stream")(data, timeout=120))

        threads = [threading.Thread(target=call, args=(message,)) for message in plan["calls"]]
        for thread, message in zip(threads, plan["calls"], strict=True):
            time.sleep(message.get("pause_ms", 0) / 1000)
            thread.start()
            if not plan.get("overlap"):
                thread.join()
        for thread in threads:
            thread.join()
        time.sleep(plan.get("linger_ms", 0) / 1000)
    print(len(answers))


if __name__ == "__main__":
    main()
