"""Judges the hooks of a balancer's interface: what XDP and tc need, and other programs there."""

from __future__ import annotations

from collections.abc import Iterator

from lbctl.doctor.facts import Facts, Finding, Link, Question, Verdict

TC_PRIORITY = 10  # of the agent's own filter
# Drivers with native XDP, for kernels before 6.3, which do not report it.
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


def native_xdp(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check whether the program can run in the driver."""
    link = facts.link(ask.interface)
    if link is None or facts.hook in ("tc", "external") or link.kind == "veth":
        return  # interface_checks.veth says more about a veth
    where = "hook: auto goes to tc there, which takes somewhat longer for a packet"
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
            "set hook: auto, and see what lbctl status says",
        )


def _told_by_kernel(link: Link, where: str) -> Finding:
    features = link.xdp_features or frozenset()
    if "basic" in features:
        return Finding("native XDP", Verdict.OK, "the driver has it, according to the kernel")
    fix = "set hook: auto"
    if link.driver == "virtio_net":
        fix = (
            "on the hypervisor: vhost=on, queues = 2 x CPUs, and guest_tso4, guest_tso6, guest_ecn,"
            " guest_ufo, guest_csum off; until then hook: auto"
        )
    return Finding(
        "native XDP",
        Verdict.WARNING,
        f"driver {link.driver or 'unknown'} does not have it with its present settings; {where}",
        fix,
    )


def redirect(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check that native XDP can send out on other interfaces: their drivers must support it."""
    names = (ask.interface, *ask.others)
    if len(names) < 2 or facts.hook not in ("auto", "native"):
        return
    links = [link for name in names if (link := facts.link(name)) is not None]
    known = [link for link in links if link.xdp_features is not None]
    cannot = [link.name for link in known if "ndo-xmit" not in (link.xdp_features or ())]
    if cannot:
        yield Finding(
            "redirect",
            Verdict.WARNING,
            f"native XDP cannot send out on {', '.join(cannot)} with the driver's present settings:"
            " packets from the other interfaces would be lost there",
            "hook: tc; on veth, an XDP program or GRO at its other end is enough",
        )
    elif len(known) == len(names):
        yield Finding("redirect", Verdict.OK, f"XDP can send between {', '.join(names)}")


def other_xdp(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check whether another XDP program is attached to the interface."""
    link = facts.link(ask.interface)
    if link is None:
        return
    program = link.program
    if program is None:
        yield Finding("other XDP", Verdict.OK, "no XDP program is attached")
        return
    text = f"{program.name or 'nameless'} (id {program.id}, {program.mode})"
    if facts.is_ours(program.id):
        yield Finding("other XDP", Verdict.OK, f"{text} is Steelyard's own")
    elif facts.hook == "tc":
        yield Finding("other XDP", Verdict.OK, f"{text} comes before us, as hook: tc allows")
    elif facts.hook == "external":
        yield Finding("other XDP", Verdict.OK, f"{text} is attached, as hook: external expects")
    elif not facts.host.root:
        yield Finding(
            "other XDP",
            Verdict.UNKNOWN,
            f"only root can see where {text} comes from",
            "sudo lbctl doctor",
        )
    else:
        yield Finding(
            "other XDP",
            Verdict.PROBLEM,
            f"{text} is attached; the agent does not replace other programs",
            f"hook: external, behind a dispatcher, or hook: tc; to see where it comes from: bpftool"
            f" prog show id {program.id}; if nobody needs it: ip link set dev {link.name} xdp off;"
            f" ip link set dev {link.name} xdpgeneric off",
        )


def filters(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check tc filters: those with a lower priority see packets first, and may keep them."""
    link = facts.link(ask.interface)
    if link is None or facts.hook != "tc":
        return
    if link.filters is None:
        yield Finding("tc", Verdict.UNKNOWN, "filters cannot be read", "apt-get install iproute2")
        return
    first = [one for one in link.filters if one.priority < TC_PRIORITY]
    others = [
        one
        for one in link.filters
        if one.priority == TC_PRIORITY
        and not (one.program is not None and facts.is_ours(one.program))
    ]
    named = ", ".join(
        f"{one.name or one.kind} (priority {one.priority})" for one in first or others
    )
    if others and not first:
        yield Finding(
            "tc",
            Verdict.PROBLEM if facts.host.root else Verdict.UNKNOWN,
            f"{named} has the priority that the agent uses",
            f"give it another: tc filter del dev {link.name} ingress pref {TC_PRIORITY}, and add it"
            " again",
        )
    elif first:
        yield Finding(
            "tc",
            Verdict.WARNING,
            f"{named} sees packets before the balancer, and what it decides on does not get there",
            f"see tc filter show dev {link.name} ingress; the balancer has priority {TC_PRIORITY}",
        )
    else:
        yield Finding("tc", Verdict.OK, "no filter comes before the balancer's")


def external(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check, with hook: external, that the slot is filled and that a program calls it."""
    if facts.hook != "external":
        return
    entry = facts.entry
    if entry is None or not entry.program:
        yield Finding(
            "external",
            Verdict.PROBLEM if facts.host.root else Verdict.UNKNOWN,
            "the slot that others call is empty"
            if facts.host.root
            else "only root can see whether the slot that others call is filled",
            "systemctl restart lb-agent" if facts.host.root else "sudo lbctl doctor",
        )
    elif not entry.callers:
        folder = entry.path.rpartition("/")[0]
        yield Finding(
            "external",
            Verdict.WARNING,
            f"no program calls {entry.path}: packets bypass the balancer",
            f"xdp-loader load --pin-path {folder} INTERFACE xdp-entry.o (docs/hooks.md); one"
            " that was loaded before the last lb-agent detach must be loaded again",
        )
    else:
        callers = ", ".join(entry.callers)
        yield Finding("external", Verdict.OK, f"{callers} can call program {entry.program}")
