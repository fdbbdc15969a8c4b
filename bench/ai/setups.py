"""Owns the contenders in the lab: starts each as its manual says, in front of the same servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from agent.model import Forward, Hook, Scheduler
from bench.peers.wiring import Wired
from lbctl.lab import netns, processes, topology
from lbctl.lab.engine.model import Hardware
from lbctl.lab.topology import Lab, Role

LAB_NAME = "bench-ai"
SERVICE = "chat"
TIER_PORT = 443
TIER_SOURCES = "10.201.0.0/22"  # of the tier, which sends each session from one of them
REPORT_S = 0.05  # the shortest interval there is; the engines are faster than real ones

type Start = Callable[[Wired], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """The servers behind a contender, and how clients reach them.

    ``engine``: arguments for each server's command; ``has_sources``: the client has an address for
    each user that it plays; ``tls``: each server has nginx with TLS 1.3 in front of its engine;
    ``tier``: clients speak TLS with a host that is between them and the VIP, the last client.
    """

    lab: Lab
    engine: tuple[str, ...] = ()
    has_sources: bool = False
    tls: bool = False
    tier: bool = False

    @property
    def front(self) -> tuple[str, int]:
        """Where clients connect to."""
        if self.tier:
            return str(self.lab.nodes(Role.CLIENT)[-1].ipv4), TIER_PORT
        return str(self.lab.vips[0]), topology.PORT


def setup(
    servers: Sequence[Hardware],
    weights: Sequence[int],
    time_scale: float,
    forward: Forward = Forward.FULLNAT,
) -> Setup:
    """Return a setup with these engines, which differ only in speed, behind one balancer.

    Except in ``dsr``, all traffic passes the balancer in both directions.
    """
    one = servers[0]
    words = ("--prefix-tokens", str(one.prefix_tokens), *(["--chunked"] if one.chunked else []))
    return Setup(
        Lab(
            LAB_NAME,
            backends=len(servers),
            forward=forward,
            hook=Hook.NATIVE,
            weights=tuple(weights),
            engines=tuple(hardware.name for hardware in servers),
            time_scale=time_scale,
        ),
        engine=words,
    )


@dataclass(frozen=True, slots=True)
class Steelyard:
    """The real agent with one service; ``options`` are added to its usual configuration."""

    scheduler: Scheduler
    weighted: bool = True
    options: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, wired: Wired) -> None:
        wired.start_agent([self._service(wired)])

    def _service(self, wired: Wired) -> dict[str, object]:
        return {
            "name": SERVICE,
            "vip": wired.vip,
            "port": topology.PORT,
            "scheduler": self.scheduler.value,
            **self.options,
            "backends": [
                {"name": node.name, "address": str(node.ipv4)}
                | ({"weight": wired.lab.weight(index)} if self.weighted else {})
                for index, node in enumerate(wired.backends)
            ],
        }


_TLS_FRONT = """\
worker_processes 1;
daemon off;
master_process off;
pid {folder}/nginx-{name}.pid;
error_log stderr warn;

events {{
    worker_connections 4096;
}}

http {{
    access_log off;
    client_body_temp_path {folder}/body-{name};
    proxy_temp_path {folder}/proxy-{name};
    fastcgi_temp_path {folder}/fastcgi-{name};
    uwsgi_temp_path {folder}/uwsgi-{name};
    scgi_temp_path {folder}/scgi-{name};
    client_body_buffer_size 256k;
    ssl_certificate {folder}/server.crt;
    ssl_certificate_key {folder}/server.key;
    ssl_protocols TLSv1.3;
    server {{
        listen {port} ssl backlog=4096;
        location / {{
            proxy_pass http://127.0.0.1:{engine};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


def start_tls_fronts(wired: Wired) -> None:
    """Start nginx with TLS on each server, with a self-signed certificate."""
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    where = ("-keyout", str(wired.file("server.key")), "-out", str(wired.file("server.crt")))
    wired.run(
        wired.client.namespace, "openssl", "req", "-x509", *made, "-subj", "/CN=bench", *where
    )
    for node in wired.backends:
        text = _TLS_FRONT.format(
            folder=wired.lab.run_dir,
            name=node.name,
            port=wired.lab.server_port,
            engine=topology.ENGINE_PORT,
        )
        path = wired.file(f"nginx-{node.name}.conf")
        path.write_text(text)
        wired.start(node, f"nginx-{node.name}", ["nginx", "-c", str(path)])


@dataclass(frozen=True, slots=True)
class Tier:
    """``lb-agent tier`` with the real HAProxy on a host of its own, in front of Steelyard's VIP."""

    behind: Steelyard
    options: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, wired: Wired) -> None:
        self.behind(wired)
        node = wired.lab.nodes(Role.CLIENT)[-1]
        netns.ip([f"route add local {TIER_SOURCES} dev lo"], node.namespace)
        netns.ip([f"route add {TIER_SOURCES} via {node.ipv4}"], wired.balancer.namespace)
        folder = wired.file("certificates")
        folder.mkdir(mode=0o700)
        made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        where = ("-keyout", str(folder / "bench.key"), "-out", str(folder / "bench.crt"))
        wired.run(node.namespace, "openssl", "req", "-x509", *made, "-subj", "/CN=bench", *where)
        document = {
            "listen": [f"{node.ipv4}:{TIER_PORT}"],
            "engines": f"{wired.vip}:{topology.PORT}",
            "certificates": str(folder),
            "folder": str(wired.file("tier")),
            "metrics": "off",
            "max_connections": 4000,
            **self.options,
        }
        path = wired.file("tier.yaml")
        path.write_text(yaml.safe_dump(document))
        program = processes.program("lb-agent", "agent.main")
        words = ("tier", "run", "--config", str(path), "--with-haproxy")
        wired.start(node, "tier", [*program, *words])
        wired.await_listening("tier", node, (str(node.ipv4), TIER_PORT))


_HAPROXY = """\
global
    maxconn 9000
    nbthread 1

defaults
    mode tcp
    balance {balance}
    timeout connect 5s
    timeout client 10m
    timeout server 10m

frontend chat
    bind {vip}:{port} backlog 4096
    default_backend servers

backend servers
"""


@dataclass(frozen=True, slots=True)
class HAProxy:
    """HAProxy in TCP mode, with one thread: each further one would have random draws of its own.

    ``maxconn``: per server; further connections wait at HAProxy.
    """

    balance: str
    weighted: bool = True
    maxconn: int = 0

    def __call__(self, wired: Wired) -> None:
        wired.take_vip()
        text = _HAPROXY.format(balance=self.balance, vip=wired.vip, port=topology.PORT)
        for index, node in enumerate(wired.backends):
            words = f" weight {wired.lab.weight(index)}" if self.weighted else ""
            words += f" maxconn {self.maxconn}" if self.maxconn else ""
            text += f"    server {node.name} {node.ipv4}:{wired.lab.server_port} check{words}\n"
        path = wired.file("haproxy.cfg")
        path.write_text(text)
        wired.start(wired.balancer, "haproxy", ["haproxy", "-db", "-f", str(path)])
        wired.await_listening("haproxy")


_NGINX = """\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
worker_processes 1;
worker_rlimit_nofile 19000;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;

events {{
    worker_connections 18000;
}}

stream {{
    upstream servers {{
        least_conn;
{servers}    }}
    server {{
        listen {vip}:{port} reuseport backlog=4096;
        proxy_timeout 10m;
        proxy_pass servers;
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    """nginx with its stream module and one worker."""

    def __call__(self, wired: Wired) -> None:
        wired.take_vip()
        servers = "".join(
            f"        server {node.ipv4}:{wired.lab.server_port} weight={wired.lab.weight(i)};\n"
            for i, node in enumerate(wired.backends)
        )
        text = _NGINX.format(
            folder=wired.lab.run_dir, servers=servers, vip=wired.vip, port=topology.PORT
        )
        path = wired.file("nginx.conf")
        path.write_text(text)
        wired.start(wired.balancer, "nginx", ["nginx", "-c", str(path)])
        wired.await_listening("nginx")


@dataclass(frozen=True, slots=True)
class Router:
    """A router that reads prompts: it terminates HTTP and knows which server has seen which text.

    It gets the arguments that vLLM's and SGLang's routers have in common.
    """

    command: Callable[[], Sequence[str]]

    def __call__(self, wired: Wired) -> None:
        wired.take_vip()
        urls = [f"http://{node.ipv4}:{wired.lab.server_port}" for node in wired.backends]
        words = ["--host", wired.vip, "--port", str(topology.PORT), "--worker-urls", *urls]
        words += ["--policy", "cache_aware", "--log-level", "error"]
        wired.start(wired.balancer, "router", ["env", "-u", "PYTHONPATH", *self.command(), *words])
        wired.await_listening("router")
