"""Judges the interface of a balancer: what XDP needs of it, and what others have put on it."""

from __future__ import annotations

from collections.abc import Iterator

from lbctl.doctor.facts import Facts, Finding, Link, Question, Verdict
from lbctl.suggest import did_you_mean

# A page less the headroom and the kernel's own data at its end: what one buffer can hold.
MAX_NATIVE_MTU = 3498
IPIP_OVERHEAD = {"IPv4": 20, "IPv6": 40}
# Drivers with native XDP, for kernels before 6.3, which do not tell.
NATIVE_DRIVERS = frozenset(
    {
        "atlantic",
        "bnxt_en",
        "bonding",
        "dpaa2-eth",
        "ena",
        "enetc",
        "fec",
        "fsl_dpa2",
        "gve",
        "hv_netvsc",
        "i40e",
        "ice",
        "igb",
        "igc",
        "ixgbe",
        "ixgbevf",
        "mana",
        "mlx4_en",
        "mlx5_core",
        "mvneta",
        "mvpp2",
        "netsec",
        "nfp",
        "nicvf",
        "qede",
        "sfc",
        "stmmac",
        "tsnep",
        "tun",
        "veth",
        "virtio_net",
        "vmxnet3",
    }
)


def exists(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Whether there is such an interface, and it is up."""
    link = facts.link(ask.interface)
    if link is None:
        names = [other.name for other in facts.links]
        yield Finding(
            "interface",
            Verdict.PROBLEM,
            f"there is no interface {ask.interface!r} here"
            if ask.interface
            else "no interface was named, and neither an agent nor a default route tells which",
            did_you_mean(ask.interface, names) if ask.interface else "--interface NAME",
        )
    elif not link.up:
        yield Finding(
            "interface",
            Verdict.PROBLEM,
            f"{link.name} is down",
            f"ip link set dev {link.name} up",
        )
    else:
        kind = link.kind or "network card"
        driver = f", driver {link.driver}" if link.driver else ""
        yield Finding("interface", Verdict.OK, f"{link.name} is up ({kind}{driver})")


def native_xdp(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Whether the program can run in the driver."""
    link = facts.link(ask.interface)
    if link is None:
        return
    where = "generic XDP works on it, at a fraction of the speed"
    if link.kind in {"vlan", "macvlan", "bridge"}:
        fix = f"use {link.parent}, or another card" if link.parent else "use a network card"
        yield Finding("native XDP", Verdict.WARNING, f"a {link.kind} device has none; {where}", fix)
    elif link.xdp_features is not None:
        yield _told_by_kernel(link, where)
    elif link.driver is None:
        yield Finding(
            "native XDP", Verdict.UNKNOWN, "the driver is not known", "apt-get install ethtool"
        )
    elif link.driver in NATIVE_DRIVERS:
        yield Finding("native XDP", Verdict.OK, f"driver {link.driver} is known to have it")
    else:
        yield Finding(
            "native XDP",
            Verdict.WARNING,
            f"driver {link.driver} is not known to have it; {where}",
            "set xdp_mode: auto, and see what lbctl status says",
        )


def _told_by_kernel(link: Link, where: str) -> Finding:
    features = link.xdp_features or frozenset()
    if "basic" in features:
        return Finding("native XDP", Verdict.OK, "the driver has it, the kernel says")
    fix = "set xdp_mode: auto, which falls back to generic"
    if link.driver == "virtio_net":
        fix = (
            "on the hypervisor: vhost=on, queues = 2 x CPUs, and guest_tso4, guest_tso6, guest_ecn,"
            " guest_ufo, guest_csum off; until then generic is used"
        )
    return Finding(
        "native XDP",
        Verdict.WARNING,
        f"driver {link.driver or 'unknown'} does not have it with its present settings; {where}",
        fix,
    )


def stranger(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Whether another XDP program sits on the interface."""
    link = facts.link(ask.interface)
    if link is None:
        return
    program = link.program
    if program is None:
        yield Finding("other XDP", Verdict.OK, "no XDP program is attached")
        return
    running = (facts.agent.status or {}).get("dataplane", {}).get("program_id")
    text = f"{program.name or 'nameless'} (id {program.id}, {program.mode})"
    if program.id == running or program.id in facts.pinned:
        yield Finding("other XDP", Verdict.OK, f"{text} is Steelyard's own")
    elif not facts.host.root:
        yield Finding(
            "other XDP", Verdict.UNKNOWN, f"only root can see whose {text} is", "sudo lbctl doctor"
        )
    else:
        yield Finding(
            "other XDP",
            Verdict.PROBLEM,
            f"{text} is attached; the agent does not replace a stranger's program",
            f"see whose it is: bpftool prog show id {program.id}; if nobody needs it:"
            f" ip link set dev {link.name} xdp off; ip link set dev {link.name} xdpgeneric off",
        )


def mtu(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Packets must fit a page for native XDP, and the path to the backends with ipip."""
    link = facts.link(ask.interface)
    if link is None:
        return
    if link.mtu > MAX_NATIVE_MTU and "rx-sg" not in (link.xdp_features or ()):
        yield Finding(
            "mtu",
            Verdict.WARNING,
            f"{link.mtu} is more than most drivers take with native XDP (about {MAX_NATIVE_MTU})",
            f"ip link set dev {link.name} mtu 1500, or xdp_mode: generic",
        )
    else:
        yield Finding("mtu", Verdict.OK, f"{link.mtu}")


def ipip_mtu(facts: Facts, ask: Question) -> Iterator[Finding]:
    """The outer header needs room."""
    link = facts.link(ask.interface)
    services = (facts.agent.config or {}).get("services", [])
    wanted = ask.forward.value if ask.forward else None
    if link is None or not (
        wanted == "ipip"
        or (wanted is None and any(service.get("forward") == "ipip" for service in services))
    ):
        return
    room = ", ".join(
        f"{link.mtu - overhead} bytes to {family} backends"
        for family, overhead in IPIP_OVERHEAD.items()
    )
    if link.mtu >= 1500 + max(IPIP_OVERHEAD.values()):
        yield Finding("ipip mtu", Verdict.OK, f"packets up to {room} fit")
        return
    yield Finding(
        "ipip mtu",
        Verdict.WARNING,
        f"the outer header takes 20 bytes (IPv4) or 40 (IPv6): only packets up to {room} fit,"
        " larger ones are dropped",
        f"ip link set dev {link.name} mtu 1540 (and on the way to the backends), or have backends"
        " announce a smaller MSS: deploy/backend-setup.sh up ipip --advmss 1400 VIP",
    )


def queues(facts: Facts, ask: Question) -> Iterator[Finding]:
    """One receive queue is served by one CPU."""
    link, cpus = facts.link(ask.interface), facts.host.cpus
    if link is None or link.kind:
        return  # virtual devices have no queues of that kind
    if link.queues is None:
        yield Finding("queues", Verdict.UNKNOWN, "the card's queues cannot be read")
        return
    current, maximum = link.queues.current, link.queues.maximum
    if link.driver == "ena" and current > maximum // 2:
        yield Finding(
            "queues",
            Verdict.WARNING,
            f"ena needs half of its {maximum} queues free to send from XDP, {current} are in use",
            f"ethtool -L {link.name} combined {max(1, maximum // 2)}",
        )
    elif link.driver == "virtio_net" and current + cpus > maximum:
        yield Finding(
            "queues",
            Verdict.WARNING,
            f"virtio wants a spare queue for each of the {cpus} CPUs to send from XDP; it has"
            f" {maximum} in all and {current} in use, so CPUs share them under a lock",
            "on the hypervisor: queues = 2 x CPUs",
        )
    elif current < min(cpus, maximum):
        yield Finding(
            "queues",
            Verdict.WARNING,
            f"{current} of {maximum} queues are used, by as many of the {cpus} CPUs",
            f"ethtool -L {link.name} combined {min(cpus, maximum)}",
        )
    else:
        yield Finding("queues", Verdict.OK, f"{current} queues for {cpus} CPUs")


def offloads(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Cards must hand over packets as they came."""
    link = facts.link(ask.interface)
    if link is None:
        return
    if link.features is None:
        yield Finding(
            "offloads", Verdict.UNKNOWN, "ethtool is not there to ask", "apt-get install ethtool"
        )
        return
    bad = False
    for feature, option, why in (
        ("large-receive-offload", "lro", "LRO merges packets before the program sees them"),
        ("rx-gro-hw", "rx-gro-hw", "hardware GRO merges packets before the program sees them"),
    ):
        state = link.features.get(feature)
        if state is not None and state.on:
            bad = True
            yield Finding(
                "offloads",
                Verdict.WARNING,
                f"{why}; many drivers refuse native XDP with it"
                + (" (and this one does not let it be turned off)" if state.fixed else ""),
                "on the hypervisor: guest_tso4, guest_tso6 off"
                if state.fixed
                else f"ethtool -K {link.name} {option} off",
            )
    if not bad:
        yield Finding("offloads", Verdict.OK, "packets arrive unmerged")


def vlan(facts: Facts, ask: Question) -> Iterator[Finding]:
    """A tag that the card has taken off is not seen by the program."""
    link = facts.link(ask.interface)
    if link is None or link.features is None:
        return
    offload = link.features.get("rx-vlan-offload")
    tagged = [other.name for other in facts.links if other.parent == link.name]
    if offload is None or not offload.on:
        return
    if tagged:
        yield Finding(
            "vlan",
            Verdict.WARNING,
            f"the card takes VLAN tags off before the program sees them, and there are VLANs on it:"
            f" {', '.join(tagged)}",
            f"ethtool -K {link.name} rxvlan off",
        )
    else:
        yield Finding("vlan", Verdict.OK, "no VLANs here (the card would hide their tags)")


def veth(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Two traps of veth pairs, which are seen only from the other end."""
    link = facts.link(ask.interface)
    if link is None or link.kind != "veth":
        return
    yield Finding(
        "veth",
        Verdict.UNKNOWN,
        "native XDP on veth delivers only if the other end has an XDP program, too, and senders"
        " have checksum offload off; both are not seen from here",
        "at the other end: lb-agent pass --interface PEER; ethtool -K PEER tx off"
        " (lbctl lab up does both); or xdp_mode: generic",
    )
