"""Owns the contenders in the lab: starts each as its manual says, before the same servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.model import Forward, Hook, Scheduler
from bench.peers.wiring import Wired
from lbctl.lab import topology
from lbctl.lab.topology import Lab

LAB_NAME = "bench-ai"
SERVICE = "chat"
REPORT_S = 0.05  # the shortest interval there is; the engines are faster than real ones

type Start = Callable[[Wired], None]


def lab(servers: int, weights: Sequence[int], time_scale: float) -> Lab:
    """Engines of two speeds in turn behind one balancer that everything passes, both ways."""
    return Lab(
        LAB_NAME,
        backends=servers,
        forward=Forward.FULLNAT,
        hook=Hook.NATIVE,
        weights=tuple(weights),
        engines=("h100", "a100"),
        time_scale=time_scale,
    )


@dataclass(frozen=True, slots=True)
class Steelyard:
    """The real agent with one service; ``options`` are what is configured beside the usual."""

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
    """In TCP mode, one thread; every thread more would have its own view of random draws."""

    balance: str
    weighted: bool = True

    def __call__(self, wired: Wired) -> None:
        wired.take_vip()
        text = _HAPROXY.format(balance=self.balance, vip=wired.vip, port=topology.PORT)
        for index, node in enumerate(wired.backends):
            weight = f" weight {wired.lab.weight(index)}" if self.weighted else ""
            text += f"    server {node.name} {node.ipv4}:{wired.lab.server_port} check{weight}\n"
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
    """Its stream module, one worker."""

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
