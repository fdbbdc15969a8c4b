"""Makes faults by hand in labs, and says of each what the screen said, after how long, and what
clients met: ``make faults`` (root, twelve minutes).

With --churn MINUTES: nothing is broken, much is changed, and every problem on the screen is a false
alarm.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agent.model import Forward
from lbctl.lab import netns, processes
from lbctl.lab.topology import Role
from tests.faults.catalogue import FAULTS, LABS, Fault
from tests.netns.site import Site, site, wait_until

SOON_S = 10.0  # what we want to keep
PATIENCE_S = 60.0
CALM_S = 4.0  # before a fault, with nothing on the screen
_PROBLEM = "PROBLEM"
# A client: a connection each time, as curl makes it; a line each, with when it began.
_CLIENT = r"""
import http.client, sys, time
while True:
    began = time.time()
    connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=2)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        said = "ok" if answer.status < 500 else str(answer.status)
    except Exception as error:
        said = type(error).__name__
    sys.stdout.write(f"{began} {said}\n")  # at once: others write there, too
    sys.stdout.flush()
    connection.close()
    time.sleep(max(0, 0.1 - (time.time() - began)))
"""


@dataclass
class Clients:
    """What eight clients met since a moment."""

    file: str
    since: float = field(default_factory=time.time)

    def met(self) -> str:
        text = Path(self.file).read_text()
        lines = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
        lines = [line for line in lines if len(line) == 2]
        told = [said for began, said in lines if float(began) >= self.since]
        failed = [said for said in told if said != "ok"]
        if not failed:
            return f"0 of {len(told)}"
        worst = max(set(failed), key=failed.count)
        return f"{len(failed)} of {len(told)} ({worst})"


@contextlib.contextmanager
def clients(here: Site) -> Iterator[str]:
    """The path of the file that they write to."""
    enter = netns.entering(here.lab.node("client").namespace)
    with tempfile.NamedTemporaryFile("w") as out:
        made = [
            subprocess.Popen(
                [*enter, "python3", "-c", _CLIENT, str(here.lab.vips[0])],
                stdout=out,
                env=processes.environment(here.lab.run_dir),
            )
            for _ in range(8)
        ]
        try:
            yield out.name
        finally:
            for each in made:
                each.kill()
                each.wait()


def screen(here: Site, *words: str) -> str:
    """What a person who types a command of ``lbctl`` reads."""
    program = processes.program("lbctl", "lbctl.main")
    socket = str(here.lab.socket(here.balancer))
    done = here.run(here.balancer.name, *program, "--socket", socket, *words)
    return str(done.stdout + done.stderr)


def one_line_each(text: str) -> list[str]:
    """The lines of a screen, where a long one goes on below."""
    found: list[str] = []
    for line in text.splitlines():
        if found and line.startswith("    "):
            found[-1] += " " + line.strip()
        else:
            found.append(line.strip())
    return found


def problems(here: Site) -> list[str]:
    return [line for line in one_line_each(screen(here, "status")) if line.startswith(_PROBLEM)]


@contextlib.contextmanager
def built(name: str) -> Iterator[Site]:
    """A lab whose checks are made as by default, not as often as a lab's."""
    options = dict(LABS[name])
    options["forward"] = Forward(options.get("forward", "dsr"))
    with site(name="st-faults", backends=3, **options) as here:
        for balancer in [node.name for node in here.lab.nodes(Role.BALANCER)]:
            at = here.on(balancer)
            document = at.config()
            document["defaults"]["health"] = {"type": "http", "path": "/health"}
            if name == "fullnat":
                document.setdefault("nat", {})["ports"] = "20000-22047"
            at.write_config(document)
            at.stop_agent(signal.SIGTERM)
            at.start_agent()
        wait_until("all is well", lambda: not problems(here) and is_up(here))
        yield here


def is_up(here: Site) -> bool:
    services = here.get("/v1/services")["services"]
    return all(s["backends_up"] == s["backends_total"] for s in services)


def tried(here: Site, fault: Fault, told: str) -> tuple[bool, str]:
    """Whether the screen named a fault in time, and a row of the table."""
    pattern = re.compile(fault.says)
    before = set(one_line_each(screen(here, *fault.command)))
    if fault.command == ("status",) and [line for line in before if line.startswith(_PROBLEM)]:
        return False, f"{fault.name} | it was not calm before: {problems(here)}"
    seen, after_s, met = "", 0.0, Clients(told)
    with fault.breaks(here):
        begun = time.monotonic()
        while not seen and time.monotonic() - begun < PATIENCE_S:
            lines = one_line_each(screen(here, *fault.command))
            after_s = time.monotonic() - begun
            seen = next((line for line in lines if line not in before and pattern.search(line)), "")
            time.sleep(0.2)
        harm = met.met()
        shown = " / ".join(problems(here)) if not seen else ""
    mended = time.monotonic()
    back = ""
    if fault.clears:
        while problems(here) and time.monotonic() - mended < 2 * PATIENCE_S:
            time.sleep(0.3)
        back = f"{time.monotonic() - mended:.1f}"
        if left := problems(here):
            back = f"never: {left[0]}"
    wait_until("all is as before", lambda: is_up(here), 120.0)
    time.sleep(CALM_S)
    is_in_time = bool(seen) and after_s <= SOON_S
    what = re.sub(r"\s+", " ", seen.removeprefix(_PROBLEM)).strip() or f"nothing ({shown[:400]})"
    row = f"{fault.name} | {fault.lab} | {after_s:.1f} | {harm} | {what[:400]} | {back}"
    return is_in_time and not back.startswith("never"), row


def churn(minutes: float) -> int:
    """Changes without a fault, for so long; how many false alarms there were."""
    alarms: set[str] = set()
    draw, changes = random.Random(7), 0
    with built("dsr") as here, clients(here) as told:
        met, end = Clients(told), time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            name = draw.choice(["be1", "be2", "be3"])
            kind = draw.randrange(4)
            if kind == 0:
                here.edit("backend.set", service="web", backend=name,
                          values={"weight": draw.randrange(1, 300)})  # fmt: skip
            elif kind == 1:
                here.edit("backend.set", service="web", backend=name, values={"state": "drain"})
                time.sleep(draw.random() * 3)
                here.edit("backend.set", service="web", backend=name, values={"state": "active"})
            elif kind == 2:
                here.reload(here.config())
            else:
                here.stop_agent(draw.choice([signal.SIGTERM, signal.SIGKILL]))
                here.start_agent()
            changes += 1
            alarms |= set(problems(here))
            time.sleep(draw.random())
        print(f"{changes} changes in {minutes:g} minutes; clients that failed: {met.met()}")
    for alarm in sorted(alarms):
        print(f"  false alarm: {alarm}")
    return len(alarms)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.PatternError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error
    return text


def main() -> None:
    """Print the table; the exit status says whether all were named in time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", metavar="REGEX", type=_pattern, default="", help="only faults with this name"
    )
    parser.add_argument("--churn", type=float, metavar="MINUTES")
    asked = parser.parse_args()
    if asked.churn:
        sys.exit(bool(churn(asked.churn)))
    chosen = [fault for fault in FAULTS if re.search(asked.only, fault.name)]
    if not chosen:
        names = "\n  ".join(fault.name for fault in FAULTS)
        parser.error(f"no fault has such a name; there are\n  {names}")
    named = 0
    print("fault | lab | named after (s) | requests that failed until then | the screen | gone (s)")
    for name in LABS:
        those = [fault for fault in chosen if fault.lab == name]
        if not those:
            continue
        with built(name) as here, clients(here) as told:
            time.sleep(CALM_S)
            for fault in those:
                in_time, row = tried(here, fault, told)
                named += in_time
                print(f"{'ok  ' if in_time else 'LATE'} {row}", flush=True)
    print(f"{named} of {len(chosen)} named on one screen within {SOON_S:.0f} s")
    sys.exit(named < len(chosen))


if __name__ == "__main__":
    main()
