"""llama.cpp's server: MODEL PORT. Run with its own environment."""

from __future__ import annotations

import sys
import time

import xllamacpp

SLOTS, CONTEXT = 4, 8192


def main(model: str, port: str) -> None:
    """Until somebody ends it."""
    wanted = xllamacpp.CommonParams()
    wanted.model.path = model
    wanted.hostnames = ["0.0.0.0"]
    wanted.port = int(port)
    wanted.n_ctx, wanted.n_parallel = CONTEXT * SLOTS, SLOTS
    wanted.cont_batching, wanted.warmup, wanted.endpoint_metrics = True, False, True
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(wanted)
    print("listens at", server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(*sys.argv[1:])
