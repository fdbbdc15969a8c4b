"""Makes the lab's load in the client machine, and leaves when whoever started it hangs up.

For each line on standard input one is written with the machine's monotonic clock, in which the
times of all records are; the end of standard input ends the load. It runs on Python's standard
library alone, from the synchronized tree.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

from lbctl.lab.client import number, parse_target, run
from lbctl.lab.load import Generator, Plan, Tally


def clock_line(token: str, now_s: float) -> str:
    """What is written for a line that was read."""
    return json.dumps({"record": "clock", "token": token, "at_s": now_s})


async def generate(plan: Plan) -> None:
    """Make the load until standard input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tally = Tally()
    generator = Generator(plan, tally.emit)
    running = asyncio.create_task(generator.run(), name="load")
    while line := await reader.readline():
        print(clock_line(line.decode().strip(), time.monotonic()), flush=True)
    generator.leave()
    await running
    print(tally.summary(), flush=True)


def main() -> None:
    """The command line."""
    command_line = argparse.ArgumentParser(
        prog="python -m vagrant.smoke.generator", description=__doc__
    )
    add = command_line.add_argument
    add("--target", action="append", required=True, type=parse_target, help="ADDRESS:PORT")
    add("--rate", type=number(float, or_zero=True), required=True, help="new connections a second")
    add("--workers", type=number(int), required=True, help="requests that may be open at once")
    add("--keep-alive", type=number(int, or_zero=True), default=0, help="connections held open")
    add("--every", type=number(float), default=1.0, help="seconds between their requests")
    add("--timeout", type=number(float), required=True, help="seconds without an answer")
    options = command_line.parse_args()
    run(
        generate(
            Plan(
                targets=tuple(options.target),
                rate_per_s=options.rate,
                workers=options.workers,
                keep_alive=options.keep_alive,
                every_s=options.every,
                timeout_s=options.timeout,
            )
        )
    )


if __name__ == "__main__":
    main()
