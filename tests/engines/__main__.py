"""Real engines through the balancer: is the kernel's time to the first token the client's?

make test-engines, or (root)
.venv/bin/python -m tests.engines [--engine NAME] [--forward MODE] [--hook tc]

For each mode of forwarding and each engine: a lab, the engine and nginx with TLS 1.3 in its server,
and orders of requests. Each answer as ``lbctl trace`` shows it is held against what its client saw.
The table is that of docs/prompt.md. It takes half an hour, and 8 GB of ``build/engines`` once.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from agent.model import Forward, Hook
from lbctl.lab import netns, processes, topology
from tests.engines import install
from tests.netns.prompt import nginx
from tests.netns.prompt.tap import Segment, tapped
from tests.netns.site import Site, site, wait_until

ENGINE_PORT, GRPC_PORT, TLS_PORT = 8000, 8001, 8443
FRONTS = {"plain": ENGINE_PORT, "tls": TLS_PORT, "h2": TLS_PORT}  # and gRPC, without nginx
SERVICES = {"engine": ENGINE_PORT, "engine-grpc": GRPC_PORT, "engine-tls": TLS_PORT}
KILO = 1000
TOLERANCE_MS, TOLERANCE = 60.0, 0.15
_STARTS_S = 300.0
LEAST_RIGHT = 0.85  # of all requests: docs/prompt.md says what cannot be told
_RECORDED_SEGMENTS = 28
_RECORDED_BYTES = {"plain": 400, "tls": 16, "h2": 16, "grpc": 400}  # of each: what can be read
FIRST = {  # what of a stream a first token is in, or comes with
    "chat": "data: {",
    "completions": "data: {",
    "responses": "response.output_item.added",
    "messages": "event: message_start",
    "generate": "data: {",
    "grpc": "",  # its client gives whole messages
}
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Order:
    """What ``ask.py`` is to ask. ``front``: plain, or nginx with TLS 1.3 by HTTP/1.1 or h2; or
    grpc, which ``ask_grpc.py`` asks.
    """

    api: str
    front: str
    sizes: tuple[int, ...]
    count: int
    at_a_time: int = 2
    stream: bool = True
    first: bool = False  # by which heads are learned: not judged


@dataclass(frozen=True, slots=True)
class Engine:
    """What is installed and run."""

    name: str
    install: Callable[[], None]
    command: Callable[[int], list[str]]
    orders: tuple[Order, ...]
    health: str = "/health"
    lacks: Callable[[], str] = lambda: ""  # what keeps it from running on this machine


def _llama(port: int) -> list[str]:
    script, model = HERE / "serve_llama.py", install.BUILD / "llama.gguf"
    return ["env", "-u", "PYTHONPATH", str(install.python_of("llama")), str(script), str(model),
            str(port)]  # fmt: skip


def _vllm(port: int) -> list[str]:
    settings = {
        "HOME": str(install.BUILD), "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }  # fmt: skip
    program = install.BUILD / "vllm" / "bin" / "vllm"
    return [
        *("env", "-u", "PYTHONPATH", *(f"{name}={value}" for name, value in settings.items())),
        *(str(program), "serve", str(install.BUILD / "vllm-model"), "--served-model-name", "tiny"),
        *("--host", "0.0.0.0", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "40960", "--max-num-seqs", "8", "--no-enable-log-requests"),
    ]


def _triton(port: int) -> list[str]:
    """Triton itself; the model is ours, in Python: a time to compute, and some words."""
    folder = install.tritonserver()
    settings = (f"{name}={value}" for name, value in install.tritons_environment().items())
    return [
        *("env", *settings, str(folder / "bin/tritonserver")),
        f"--model-repository={HERE / 'triton_models'}",
        f"--backend-directory={folder / 'backends'}",
        *("--http-port", str(port), "--grpc-port", str(port + GRPC_PORT - ENGINE_PORT)),
    ]


def _triton_lacks() -> str:
    return "" if install.triton_python() else "its Python backend needs Python 3.9 to 3.12"


def _vllm_lacks() -> str:
    has = "avx512f" in Path("/proc/cpuinfo").read_text()
    return "" if has else "its build for processors needs AVX-512"


def _orders(apis: Iterable[str], sizes: tuple[int, ...], long: int) -> tuple[Order, ...]:
    """Of each API some by each front; before, by which heads are learned."""
    learned = tuple(Order("chat", front, (500, 1000), 60, first=True) for front in FRONTS)
    usual = tuple(Order(api, front, sizes, 12) for front in FRONTS for api in apis)
    at_once = tuple(Order("chat", front, sizes, 8, stream=False) for front in FRONTS)
    longest = tuple(Order("chat", front, (long,), 2, at_a_time=1) for front in FRONTS)
    return (*learned, *usual, *at_once, *longest)


def _triton_orders() -> tuple[Order, ...]:
    """A model that streams answers to nothing else: all are streams."""
    sizes, long = (1 * KILO, 10 * KILO), 100 * KILO
    ways = [*(("generate", front) for front in FRONTS), ("grpc", "grpc")]
    learned = tuple(Order(*way, (500, 1000), 60, first=True) for way in ways)
    usual = tuple(Order(*way, sizes, 12) for way in ways)
    longest = tuple(Order(*way, (long,), 4, at_a_time=1) for way in ways)
    return (*learned, *usual, *longest)


ENGINES = {
    "llama.cpp": Engine("llama.cpp", install.llama, _llama,
                        _orders(("chat", "completions"), (1 * KILO, 3 * KILO), 5 * KILO)),
    "vllm": Engine("vllm", install.vllm, _vllm,
                   _orders(("chat", "completions", "responses", "messages"),
                           (1 * KILO, 10 * KILO), 60 * KILO), lacks=_vllm_lacks),
    "triton": Engine("triton", install.triton, _triton, _triton_orders(),
                     "/v2/health/ready", _triton_lacks),
}  # fmt: skip


# -- what was seen


@dataclass
class Cell:
    """Requests of one kind, in milliseconds what the kernel's time was beyond the client's."""

    asked: int = 0
    right: int = 0
    beyond_ms: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.asked:
            return "–"  # noqa: RUF001 (as in the page)
        middle = f", {statistics.median(self.beyond_ms):+.0f}" if self.beyond_ms else ""
        return f"{self.right} of {self.asked}{middle}"


def judge(cell: Cell, seen: Iterable[dict[str, Any]], answers: dict[int, list[float]]) -> None:
    """Hold what a client saw against the kernel's answers, by the client's port."""
    for one in seen:
        cell.asked += 1
        kernel, client = answers.get(one["port"], []), one["first_ms"]
        if one["status"] != 200 or client is None:
            cell.wrong.append(f"the engine said {one}")
        elif len(kernel) != 1:
            cell.wrong.append(f"{one}: the kernel counted {len(kernel)} answers: {kernel}")
        elif abs(kernel[0] - client) > max(TOLERANCE_MS, TOLERANCE * client):
            cell.wrong.append(f"{one}: the kernel says {kernel[0]:.0f} ms")
        else:
            cell.right += 1
            cell.beyond_ms.append(kernel[0] - client)


class Answers:
    """What ``lbctl trace`` shows, by the client's port, as it comes."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self._at = 0

    def taken(self) -> dict[int, list[float]]:
        """Those since the last time: milliseconds."""
        lines = Path(self._output.name).read_bytes()[self._at :]
        whole = lines[: lines.rfind(b"\n") + 1]
        self._at += len(whole)
        found: dict[int, list[float]] = defaultdict(list)
        for line in whole.splitlines():
            event = json.loads(line)
            if event.get("event") == "answer":
                found[event["client_port"]].append(event["waited_us"] / 1000)
        return found


# -- the lab


def _services(forward: Forward) -> Callable[[Any], list[dict[str, Any]]]:
    def services(lab: Any) -> list[dict[str, Any]]:
        backend = {"name": "be1", "address": str(lab.node("be1").ipv4)}
        plain = {
            "vip": str(lab.vips[0]), "forward": forward.value, "scheduler": "least-load",
            "health": {"type": "none"}, "backends": [backend],
        }  # fmt: skip
        return [{"name": name, "port": port, **plain} for name, port in SERVICES.items()]

    return services


@contextmanager
def _serving(forward: Forward, hook: Hook, engine: Engine) -> Iterator[Site]:
    """A lab with one server, on which the engine and nginx run."""
    services = _services(forward)
    lab = {"name": "st-engines", "backends": 1, "forward": forward, "hook": hook}
    with site(services=services, **lab) as here:
        folder, server = here.lab.run_dir, here.lab.node("be1")
        processes.start(folder, "engine", server.namespace, engine.command(ENGINE_PORT))
        certificate, key = nginx.make_certificate(folder)
        front = nginx.Front(TLS_PORT, "TLSv1.3", http2=True)
        config = nginx.write_config(folder / "nginx", [front], ENGINE_PORT, certificate, key)
        command = ["nginx", "-p", str(config.parent), "-c", str(config)]
        processes.start(folder, "nginx", server.namespace, command)
        url = f"http://127.0.0.1:{ENGINE_PORT}{engine.health}"

        def is_up() -> bool:
            return here.run("be1", "curl", "-sf", "--noproxy", "*", url).returncode == 0

        wait_until(f"{engine.name} serves ({folder}/engine.log)", is_up, _STARTS_S)
        yield here


def _asked(here: Site, order: Order, text: str, seed: int) -> list[dict[str, Any]]:
    """What the client saw of an order."""
    script, url = "ask_grpc.py", f"{here.lab.vips[0]}:{GRPC_PORT}"
    if order.front in FRONTS:
        scheme = "http" if order.front == "plain" else "https"
        script, url = "ask.py", f"{scheme}://{here.lab.vips[0]}:{FRONTS[order.front]}"
    more = {"url": url, "text": text, "seed": seed, "token": FIRST[order.api]}
    words = asdict(order) | more
    client = [str(install.python_of("clients")), str(HERE / script)]
    command = [*netns.entering(here.lab.node("client").namespace), *client]
    done = subprocess.run(command, input=json.dumps(words), stdout=subprocess.PIPE, text=True,
                          check=True)  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def text_of_pages() -> str:
    """What is asked: our own pages."""
    pages = (install.ROOT / "docs").glob("*.md")
    return "".join(page.read_text(encoding="utf-8") for page in sorted(pages))


def _recorded(
    engine: Engine, order: Order, seen: dict[str, Any], segments: Iterable[Segment]
) -> dict[str, Any]:
    """The segments of a request's connection, with payload, and what its client saw."""
    ours = [one for one in segments if seen["port"] in (one.source[1], one.target[1])]
    ours = [one for one in ours if one.payload]
    start = min(one.at_ns for one in ours)
    return {
        "engine": engine.name,
        "api": order.api,
        "front": order.front,
        "token": FIRST[order.api],
        "head_ms": seen["head_ms"],
        "first_ms": seen["first_ms"],
        "segments": [
            {
                "client": one.source[1] == seen["port"],
                "at_ms": round((one.at_ns - start) / 1e6, 1),
                "bytes": len(one.payload),
                "begins": _neutral(one.payload[: _RECORDED_BYTES[order.front]]),
            }
            for one in ours[:_RECORDED_SEGMENTS]
        ],
    }


def _neutral(payload: bytes) -> str:
    """Without a path of this host: llama.cpp names its model's file."""
    return payload.decode("latin-1").replace(str(install.ROOT), "/srv")


def measure(
    forward: Forward, hook: Hook, engine: Engine, recorded: list[dict[str, Any]]
) -> dict[str, Cell]:
    """All orders of an engine in one mode: what came of them, by row of the table. ``recorded``
    gets the segments of one of each kind that is streamed.
    """
    cells: dict[str, Cell] = defaultdict(Cell)
    text = text_of_pages()
    with (
        _serving(forward, hook, engine) as here,
        (here.lab.run_dir / "answers").open("wb") as output,
    ):
        program = processes.program("lbctl", "lbctl.main")
        trace = subprocess.Popen(
            [*netns.entering(here.balancer.namespace), *program, "--socket",
             str(here.lab.socket(here.balancer)), "trace", "--answers", "-o", "json"],
            stdout=output, env=processes.environment(here.lab.run_dir),
        )  # fmt: skip
        answers = Answers(output)
        try:
            for number, order in enumerate(engine.orders):
                near = here.lab.node("client").namespace
                with tapped(near, topology.NODE_INTERFACE) as tap:
                    seen = _asked(here, order, text, 1000 * number)
                    segments = tap.segments()
                wait_until("the agent has read all", lambda: _is_quiet(here))
                found = answers.taken()
                if not order.first:
                    if order.stream and len(order.sizes) > 1:
                        recorded.append(_recorded(engine, order, seen[-1], segments))
                    judge(cells[_row(engine, order)], seen, found)
            for name in SERVICES:
                told = here.get(f"/v1/services/{name}")["first_byte_is"]
                print(f"{forward.value} {engine.name} {name}: first byte is {told}",
                      file=sys.stderr)  # fmt: skip
        finally:
            trace.terminate()
            trace.wait()
    return cells


def _is_quiet(here: Site) -> bool:
    """Nothing waits, and what was told has come."""
    services = (here.get(f"/v1/services/{name}") for name in SERVICES)
    return not any(service["waiting_bytes"] for service in services)


def _row(engine: Engine, order: Order) -> str:
    how = {"plain": "HTTP/1.1", "tls": "TLS 1.3", "h2": "TLS 1.3, HTTP/2", "grpc": "HTTP/2"}
    what = order.api if order.stream else f"{order.api}, not streamed"
    if len(order.sizes) == 1:
        what = f"{order.api}, {order.sizes[0] // KILO} kB"
    return f"{engine.name} | {what} | {how[order.front]}"


def main() -> None:
    """Print the table; the exit code says whether enough was right."""
    parser = argparse.ArgumentParser(prog="tests.engines")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    modes = [forward.value for forward in Forward]
    parser.add_argument("--forward", choices=modes, action="append")
    parser.add_argument("--hook", choices=["native", "tc"], default="native")
    parser.add_argument("--record", type=Path, help="a file for the segments of one of each kind")
    wanted = parser.parse_args()
    recorded: list[dict[str, Any]] = []
    engines = []
    for engine in (ENGINES[name] for name in wanted.engine or ENGINES):
        if not (lacks := engine.lacks()):
            engines.append(engine)
        elif wanted.engine:
            sys.exit(f"{engine.name} cannot run on this machine: {lacks}")
        else:
            print(f"{engine.name} is left out, it cannot run on this machine: {lacks}",
                  file=sys.stderr)  # fmt: skip
    install.clients()
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for engine in engines:
        engine.install()
        for mode in wanted.forward or modes:
            for row, cell in measure(Forward(mode), Hook(wanted.hook), engine, recorded).items():
                rows[row][mode] = cell
                for wrong in cell.wrong:
                    print(f"{mode} {re.sub(' [|] ', ' ', row)}: {wrong}", file=sys.stderr)
    shown = wanted.forward or modes
    print("| engine | request | connection |", " | ".join(f"`{mode}`" for mode in shown), "|")
    print("|-" * (3 + len(shown)) + "|")
    for row, cells in rows.items():
        print(f"| {row} |", " | ".join(str(cells.get(mode, Cell())) for mode in shown), "|")
    if wanted.record:
        wanted.record.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    every = [cell for cells in rows.values() for cell in cells.values()]
    right, asked = sum(cell.right for cell in every), sum(cell.asked for cell in every)
    print(f"\n{right} of {asked} requests: the kernel's time is the client's")
    sys.exit(right < LEAST_RIGHT * asked)


if __name__ == "__main__":
    main()
