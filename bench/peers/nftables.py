"""nftables' destination NAT, as in its wiki: a hash of the client, and connection tracking."""

from __future__ import annotations

from agent.model import Forward
from bench.peers.contender import BACKENDS, LAB_NAME, Contender, Running
from bench.peers.wiring import PeersError, Wired
from lbctl.lab import topology
from lbctl.lab.topology import Lab

_RULES = """\
table ip balance {{
{flowtable}\
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr {vip} tcp dport {port} dnat to jhash ip saddr . tcp sport mod {count} \
map {{ {servers} }} : {server_port}
	}}
{offload}\
}}
"""
_FLOWTABLE = """\
	flowtable fast {{
		hook ingress priority filter; devices = {{ {interface} }};
	}}
"""
_OFFLOAD = """\
	chain forward {{
		type filter hook forward priority filter; policy accept;
		ct state established flow add @fast
	}}
"""


class Nftables(Contender):
    """The kernel's connection tracking, without a process."""

    __slots__ = ()

    def start(self, wired: Wired) -> Running:
        wired.take_vip()
        wired.forward()
        path = wired.file("balance.nft")
        command = ["nft", "-f", str(path)]
        for flowtable in (True, False):
            text = _rules(wired, flowtable)
            path.write_text(text)
            try:
                wired.run(wired.balancer.namespace, *command)
            except PeersError:
                if not flowtable:
                    raise
            else:
                break
        note = "with a flowtable" if flowtable else "this kernel has no flowtables"
        return Running(command=" ".join(command), configuration=text, note=note)


def _rules(wired: Wired, flowtable: bool) -> str:
    servers = ", ".join(f"{n} : {node.ipv4}" for n, node in enumerate(wired.backends))
    return _RULES.format(
        flowtable=_FLOWTABLE.format(interface=topology.NODE_INTERFACE) if flowtable else "",
        offload=_OFFLOAD.format() if flowtable else "",
        vip=wired.vip,
        port=topology.PORT,
        count=len(wired.backends),
        servers=servers,
        server_port=wired.lab.server_port,
    )


def contenders() -> list[Contender]:
    """Return the only one."""
    lab = Lab(LAB_NAME, backends=BACKENDS, forward=Forward.NAT)
    return [Nftables("nftables dnat", lab, both_ways=True)]
