"""Real engines behind least-load, with affinity and without: what do their caches hold, and how
soon is the first token there?

.venv/bin/python -m tests.engines.homes [--engine NAME] [--rounds N] [--tier] (root)

A lab with four servers, an engine on each; conversations from addresses of their own, each turn by
a connection of its own. One service has affinity, the other has not; they take turns, and no
prompt comes twice. What came from a cache is what the engines say in their answers. With --tier,
all conversations come from one address, by TLS and through a tier on another host, which sends
each to the service with affinity from an address of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from agent.model import Forward
from lbctl.lab import netns, processes, topology
from tests.engines import install
from tests.engines.__main__ import ENGINE_PORT, ENGINES, Engine, text_of_pages
from tests.netns.site import Site, site, wait_until
from tests.netns.tier.rig import tier

SERVERS = ("be1", "be2", "be3", "be4")
PORTS = {"least-load": 8001, "affinity": 8002}
SOURCES = 24
_STARTS_S = 400.0
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Talk:
    """What ``talker.py`` is to do."""

    url: str
    text: str
    seed: int
    addresses: tuple[str, ...]
    count: int = SOURCES
    turns: int = 6
    first_bytes: int = 3000
    turn_bytes: int = 500
    begin_s: float = 40.0
    think_s: float = 12.0


def _services(lab: Any) -> list[dict[str, Any]]:
    backends = [
        {"name": name, "address": str(lab.node(name).ipv4), "port": ENGINE_PORT} for name in SERVERS
    ]
    plain = {
        "vip": str(lab.vips[0]), "forward": Forward.FULLNAT.value, "scheduler": "least-load",
        "health": {"type": "none"}, "backends": backends,
    }  # fmt: skip
    return [
        {"name": "least-load", "port": PORTS["least-load"], **plain},
        {"name": "affinity", "port": PORTS["affinity"], "affinity": {"by": "source"}, **plain},
    ]


@contextmanager
def _serving(engine: Engine) -> Iterator[Site]:
    with site(
        services=_services, name="st-homes", backends=len(SERVERS), forward=Forward.FULLNAT,
        clients=2,
    ) as here:  # fmt: skip
        for name in SERVERS:
            command = engine.command(ENGINE_PORT)
            processes.start(here.lab.run_dir, f"engine-{name}", here.lab.node(name).namespace,
                            command)  # fmt: skip
        url = f"http://127.0.0.1:{ENGINE_PORT}/health"
        for name in SERVERS:
            wait_until(
                f"{engine.name} serves in {name}",
                lambda name=name: (
                    here.run(name, "curl", "-sf", "--noproxy", "*", url).returncode == 0
                ),
                _STARTS_S,
            )
        yield here


def _addresses(here: Site) -> tuple[str, ...]:
    """Addresses of the client's, one for each conversation."""
    base = ip_address(str(here.lab.node("client").ipv4))
    found = tuple(str(base + 100 + number) for number in range(SOURCES))
    for address in found:
        command = ["ip", "address", "add", f"{address}/24", "dev", topology.NODE_INTERFACE]
        assert here.run("client", *command).returncode == 0
    return found


@contextmanager
def _tiers(here: Site) -> Iterator[dict[str, str]]:
    """A tier in front of each service on the second client; yields their URLs by service."""
    node = here.lab.node("client2")
    # 64 addresses of the clients' network, where no node is.
    sources = list(ip_network(f"{node.ipv4}/24", strict=False).subnets(new_prefix=26))[-2]
    added = here.run("client2", "ip", "route", "add", "local", str(sources), "dev", "lo")
    assert added.returncode == 0, added
    found: dict[str, str] = {}
    with ExitStack() as stack:
        for number, (name, port) in enumerate(PORTS.items()):
            folder = here.lab.run_dir / f"tier-{name}"
            folder.mkdir()
            end = f"{node.ipv4}:{8443 + number}"
            kept = {"affinity": {"sources": [str(sources)]}} if name == "affinity" else {}
            stack.enter_context(
                tier(folder, f"{here.lab.vips[0]}:{port}", netns.entering(node.namespace),
                     listen=[end], metrics="off", **kept)
            )  # fmt: skip
            found[name] = f"https://{end}"
        yield found


def _talk(here: Site, talk: Talk) -> list[dict[str, Any]]:
    client = [str(install.python_of("clients")), str(HERE / "talker.py")]
    command = [*netns.entering(here.lab.node("client").namespace), *client]
    done = subprocess.run(command, input=json.dumps(asdict(talk)), stdout=subprocess.PIPE,
                          text=True, check=True)  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Print the table of docs/affinity.md."""
    parser = argparse.ArgumentParser(prog="tests.engines.homes")
    chats = [name for name, one in ENGINES.items() if any(o.api == "chat" for o in one.orders)]
    parser.add_argument("--engine", choices=chats, default="vllm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tier", action="store_true")
    wanted = parser.parse_args()
    engine = ENGINES[wanted.engine]
    if lacks := engine.lacks():
        sys.exit(f"{engine.name} cannot run on this machine: {lacks}")
    install.clients()
    engine.install()
    seen: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    with _serving(engine) as here, ExitStack() as stack:
        urls = {name: f"http://{here.lab.vips[0]}:{port}" for name, port in PORTS.items()}
        addresses, text = _addresses(here), text_of_pages()
        if wanted.tier:
            urls, addresses = stack.enter_context(_tiers(here)), addresses[:1]
        for number in range(wanted.rounds * len(PORTS)):
            name = list(PORTS)[number % len(PORTS)]
            seen[name].append(_talk(here, Talk(urls[name], text, 1000 * number, addresses)))
        told = here.get("/v1/services/affinity")["affinity"]
        print(f"affinity: {json.dumps(told)}", file=sys.stderr)
    print(
        "| | first turns, mean | later turns, mean | p95 | prompt tokens from caches, each round |"
    )
    print("|-|-|-|-|-|")
    for name, rounds in seen.items():
        every = [one for those in rounds for one in those]
        good = [one for one in every if one["status"] == 200 and one["first_ms"] is not None]
        assert len(good) == len(every), [one for one in every if one not in good]
        first, later = (
            [one["first_ms"] for one in good if bool(one["turn"]) is is_later]
            for is_later in (False, True)
        )
        shares = [
            sum(one["cached"] for one in those) / sum(one["prompt"] for one in those)
            for those in rounds
        ]
        cells = (
            f"{statistics.mean(first):.0f} ms",
            f"{statistics.mean(later):.0f} ms",
            f"{statistics.quantiles(later, n=20)[-1]:.0f} ms",
            ", ".join(f"{share:.0%}" for share in shares),
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
