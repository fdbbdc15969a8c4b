"""Judges a backend. With dsr, ipip and gue it must accept packets for the VIP without announcing
it.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.model import Address, Forward
from lbctl.doctor.facts import Facts, Finding, Link, Question, Verdict

# deploy/backend-setup.sh does all of this in one step.
SETUP = "deploy/backend-setup.sh"
SENDERS_TABLE = "steelyard_tunnels"  # made by deploy/backend-setup.sh --from
# Interfaces that do not use ARP.
QUIET_KINDS = ("dummy", "ipip", "ip6tnl", "sit")


def vip(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check that the VIP is on lo, and not on an interface that would announce it."""
    if _is_nat(ask):
        return  # packets come to the backend's own address
    if not ask.vips:
        yield Finding(
            "vip", Verdict.UNKNOWN, "no VIP was named", "lbctl doctor --role backend --vip ADDRESS"
        )
    for address in ask.vips:
        holders = [link for link in facts.links if address in link.addresses]
        loud = [link.name for link in holders if not _quiet(link)]
        add = f"ip address add {address}/{address.max_prefixlen} dev lo"
        add += " nodad" if address.version == 6 else ""
        if loud:
            yield Finding(
                "vip",
                Verdict.PROBLEM,
                f"{address} is on {', '.join(loud)}: this backend answers for it there, and takes"
                " it away from the balancer",
                f"ip address del {address}/{address.max_prefixlen} dev {loud[0]}; {add}",
            )
        elif not holders:
            yield Finding(
                "vip",
                Verdict.PROBLEM,
                f"{address} is not on lo: packets for it are not accepted",
                add,
            )
        else:
            yield Finding("vip", Verdict.OK, f"{address} is on {holders[0].name}")


def _quiet(link: Link) -> bool:
    return link.name == "lo" or link.kind in QUIET_KINDS


def arp(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check that ARP is silent about the VIP: the larger of "all" and the interface's own value."""
    if _is_nat(ask) or (ask.vips and all(address.version == 6 for address in ask.vips)):
        return  # neighbour discovery never answers for an address of another interface
    for key, needed, meaning in (
        ("arp_ignore", 1, "the backend answers ARP for the VIP on lo"),
        ("arp_announce", 2, "the backend names the VIP as the sender of its ARP requests"),
    ):
        value = _effective(facts, ask.interface, key)
        good = {1, 2} if key == "arp_ignore" else {2}
        if value is None:
            yield Finding(key, Verdict.UNKNOWN, f"net.ipv4.conf.all.{key} cannot be read")
        elif value in good:
            yield Finding(key, Verdict.OK, f"{value}")
        else:
            yield Finding(
                key,
                Verdict.PROBLEM,
                f"{value}: {meaning}, and takes it away from the balancer",
                f"sysctl -w net.ipv4.conf.all.{key}={needed}",
            )


def rp_filter(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check rp_filter: strict filtering drops decapsulated packets, and clients behind another
    interface.
    """
    tunnelled = ask.forward is not None and ask.forward.is_tunnel
    tunnels = _tunnels(facts, ask.vips) if tunnelled else []
    found = {
        name: value
        for name in (ask.interface, *(tunnel.name for tunnel in tunnels))
        if (value := _effective(facts, name, "rp_filter")) is not None
    }
    bare = [tunnel for tunnel in tunnels if found.get(tunnel.name) and not _has_ipv4(tunnel)]
    strict = [name for name, value in found.items() if value == 1]
    fix = "sysctl -w net.ipv4.conf.all.rp_filter=2"
    if not found:
        yield Finding("rp_filter", Verdict.UNKNOWN, "net.ipv4.conf.all.rp_filter cannot be read")
    elif not strict and (vips := [vip for vip in ask.vips if vip.version == 4 and bare]):
        # fib_validate_source: on a device without an address every filter is a strict one.
        yield Finding(
            "rp_filter",
            Verdict.PROBLEM,
            f"{found[bare[0].name]}, and {bare[0].name} has no IPv4 address: decapsulated packets"
            " are dropped",
            f"ip address add {vips[0]}/32 dev {bare[0].name}",
        )
    elif not strict:
        yield Finding("rp_filter", Verdict.OK, f"{max(found.values())}")
    elif tunnelled:
        yield Finding(
            "rp_filter",
            Verdict.PROBLEM,
            f"strict on {', '.join(strict)}: packets out of the tunnel are dropped, because"
            " their answer leaves by another interface",
            fix,
        )
    else:
        yield Finding(
            "rp_filter",
            Verdict.WARNING,
            f"strict on {', '.join(strict)}: packets of clients that are answered through"
            " another interface are dropped",
            fix,
        )


def decapsulation(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check that, with ipip and gue, something takes the outer headers off."""
    if ask.forward is None or not ask.forward.is_tunnel:
        return
    link = facts.link(ask.interface)
    if link is not None and link.program is not None and "decap" in link.program.name:
        yield Finding("decapsulation", Verdict.OK, f"the XDP program {link.program.name} does it")
        return
    mode, vips = ask.forward.value, " ".join(map(str, ask.vips)) or "VIP"
    setup = f"{SETUP} up {mode} {vips}"
    tunnels = _tunnels(facts, ask.vips)
    up = [tunnel.name for tunnel in tunnels if tunnel.up]
    if ask.forward is Forward.GUE and not facts.gue_ports:
        yield Finding(
            "decapsulation",
            Verdict.PROBLEM,
            "nothing here takes the outer UDP header off: no port is set up for gue",
            f"{setup}; where the kernel has no fou module, the decapsulation program"
            " (docs/backends.md)",
        )
    elif up:
        ports = f", on UDP port {', '.join(map(str, sorted(facts.gue_ports)))}"
        of = ports if ask.forward is Forward.GUE else ""
        yield Finding("decapsulation", Verdict.OK, f"tunnel device {', '.join(up)} does it{of}")
    elif tunnels:
        yield Finding(
            "decapsulation",
            Verdict.PROBLEM,
            f"the tunnel device {tunnels[0].name} is down",
            f"ip link set dev {tunnels[0].name} up",
        )
    else:
        yield Finding(
            "decapsulation",
            Verdict.PROBLEM,
            "nothing here takes the outer header off: there is no tunnel device",
            f"{setup}; where the kernel has no tunnel device, the decapsulation program"
            " (docs/backends.md)",
        )


def tunnel_senders(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check who may send tunnel packets: a tunnel device accepts any, in the name of any client."""
    if ask.forward is None or not ask.forward.is_tunnel or facts.nft_tables is None:
        return
    if not any(tunnel.up for tunnel in _tunnels(facts, ask.vips)):
        return  # the decapsulation program has its own `--from`
    if SENDERS_TABLE in facts.nft_tables:
        yield Finding(
            "tunnel senders", Verdict.OK, "nftables accepts tunnel packets from balancers only"
        )
        return
    mode, vips = ask.forward.value, " ".join(map(str, ask.vips)) or "VIP"
    yield Finding(
        "tunnel senders",
        Verdict.WARNING,
        "unless your network filters them, tunnel packets from any host are accepted, in the name"
        " of any client",
        f"{SETUP} up {mode} --from BALANCER {vips}",
    )


def gateway(_facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check the way back: with nat, clients refuse answers that bypass the balancer."""
    if ask.forward is Forward.NAT:
        yield Finding(
            "gateway",
            Verdict.UNKNOWN,
            "with nat the way to the clients must lead through the balancer; this host cannot tell"
            " which of its gateways that is",
            "ip route get CLIENT shows it; ip route replace default via BALANCER",
        )
    elif ask.forward is Forward.FULLNAT:
        yield Finding("gateway", Verdict.OK, "with fullnat a backend needs nothing")


def _is_nat(ask: Question) -> bool:
    return ask.forward is not None and ask.forward.is_nat


def _tunnels(facts: Facts, vips: tuple[Address, ...]) -> list[Link]:
    """Return the devices that decapsulate; the outer family is that of the backend's address."""
    kinds = {"ipip", "ip6tnl"}
    if any(address.version == 6 for address in vips):
        kinds.add("sit")
    return [link for link in facts.links if link.kind in kinds]


def _has_ipv4(link: Link) -> bool:
    return any(address.version == 4 for address in link.addresses)


def _effective(facts: Facts, interface: str, key: str) -> int | None:
    """Return the value that the kernel uses: the larger of "all" and the interface's own."""
    values = [
        facts.sysctl[name]
        for name in (f"net.ipv4.conf.all.{key}", f"net.ipv4.conf.{interface}.{key}")
        if name in facts.sysctl
    ]
    return max(values, default=None)
