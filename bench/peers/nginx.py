"""nginx with its stream module and one worker."""

from __future__ import annotations

import time

import psutil

from agent.model import Forward
from bench.peers.contender import BACKENDS, LAB_NAME, Contender, Running
from bench.peers.wiring import PeersError, Wired
from lbctl.lab import topology
from lbctl.lab.topology import Lab

_PATIENCE_S = 5.0
_CONFIGURATION = """\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
worker_processes 1;
worker_rlimit_nofile 16384;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;

events {{
    worker_connections 8192;
}}

stream {{
    upstream servers {{
{servers}    }}
    server {{
        listen {vip}:{port} reuseport backlog=4096;
        proxy_pass servers;
    }}
}}
"""


class Nginx(Contender):
    """A proxy: it terminates the client's connection and opens one of its own to the server."""

    __slots__ = ()

    def start(self, wired: Wired) -> Running:
        wired.take_vip()
        servers = "".join(
            f"        server {node.ipv4}:{wired.lab.server_port};\n" for node in wired.backends
        )
        folder = wired.lab.run_dir
        text = _CONFIGURATION.format(
            folder=folder, servers=servers, vip=wired.vip, port=topology.PORT
        )
        path = wired.file("nginx.conf")
        path.write_text(text)
        command = ["nginx", "-c", str(path)]
        pid = wired.start(wired.balancer, "nginx", command)
        wired.await_listening("nginx")
        # The master opens the socket first, so the worker may start a moment later.
        deadline = time.monotonic() + _PATIENCE_S
        while not (workers := tuple(child.pid for child in psutil.Process(pid).children())):
            if time.monotonic() > deadline:
                raise PeersError("nginx started no worker", where=str(path))
            time.sleep(0.05)
        return Running(data=workers, control=(pid,), command=" ".join(command), configuration=text)


def contenders() -> list[Contender]:
    """Return the only one."""
    lab = Lab(LAB_NAME, backends=BACKENDS, forward=Forward.FULLNAT)
    return [Nginx("nginx stream", lab, both_ways=True)]
