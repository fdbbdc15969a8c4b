"""HAProxy in TCP mode, set up as in its starter guide: one thread, health checks, no logs."""

from __future__ import annotations

from agent.model import Forward
from bench.peers.contender import BACKENDS, LAB_NAME, Contender, Running
from bench.peers.wiring import Wired
from lbctl.lab import topology
from lbctl.lab.topology import Lab

# Splicing is off by default; for bulk the manual offers `option splice-auto`.
_CONFIGURATION = """\
global
    maxconn 4000
    nbthread 1

defaults
    mode tcp
    balance roundrobin
    timeout connect 5s
    timeout client 1m
    timeout server 1m
{options}
frontend web
    bind {vip}:{port} backlog 4096
    default_backend servers

backend servers
"""


class HAProxy(Contender):
    """A proxy: it terminates the client's connection and opens one of its own to the server."""

    __slots__ = ()
    options = ""

    def start(self, wired: Wired) -> Running:
        wired.take_vip()
        text = _CONFIGURATION.format(
            vip=wired.vip, port=topology.PORT, options=self.options
        ) + "".join(
            f"    server {node.name} {node.ipv4}:{wired.lab.server_port} check\n"
            for node in wired.backends
        )
        path = wired.file("haproxy.cfg")
        path.write_text(text)
        command = ["haproxy", "-db", "-f", str(path)]
        pid = wired.start(wired.balancer, "haproxy", command)
        wired.await_listening("haproxy")
        return Running(data=(pid,), command=" ".join(command), configuration=text)


class SplicingHAProxy(HAProxy):
    """The same, but the kernel moves the bulk."""

    __slots__ = ()
    options = "    option splice-auto\n"


def contenders() -> list[Contender]:
    """Return HAProxy with its defaults, and with splicing."""
    lab = Lab(LAB_NAME, backends=BACKENDS, forward=Forward.FULLNAT)
    return [
        HAProxy("haproxy", lab, both_ways=True),
        SplicingHAProxy("haproxy, splice-auto", lab, both_ways=True),
    ]
