"""Judges an interface of a balancer: state, packet sizes, queues, offloads, VLAN tags."""

from __future__ import annotations

from collections.abc import Iterator

from lbctl.doctor.facts import Facts, Finding, Link, Question, Verdict
from lbctl.suggest import did_you_mean

# The size of one buffer: a page, less the headroom and the kernel's own data at its end.
MAX_NATIVE_MTU = 3498
# Offloads that take tags off, and their names in `ethtool -K`.
STRIPPING = {"rx-vlan-offload": "rxvlan", "rx-vlan-stag-hw-parse": "rx-vlan-stag-hw-parse"}
OVERHEAD = {"ipip": {"IPv4": 20, "IPv6": 40}, "gue": {"IPv4": 28, "IPv6": 48}}


def exists(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check that the interface exists, and is up."""
    link = facts.link(ask.interface)
    if link is None:
        names = [other.name for other in facts.links]
        yield Finding(
            "interface",
            Verdict.PROBLEM,
            f"there is no interface {ask.interface!r} here"
            if ask.interface
            else "no interface was named, and neither an agent nor a default route shows which",
            did_you_mean(ask.interface, names) if ask.interface else "--interface NAME",
        )
    elif not link.up:
        yield Finding(
            "interface",
            Verdict.PROBLEM,
            f"{link.name} is down",
            f"ip link set dev {link.name} up",
        )
    elif not link.carrier:
        yield Finding(
            "interface",
            Verdict.PROBLEM,
            f"{link.name} is up but has no carrier: nothing is at the other end of its cable",
            f"the cable, or the port of the switch; ethtool {link.name} says what the card sees",
        )
    else:
        kind = link.kind or "network card"
        driver = f", driver {link.driver}" if link.driver else ""
        yield Finding("interface", Verdict.OK, f"{link.name} is up ({kind}{driver})")


def mtu(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check the MTU: packets must fit a page for native XDP; tc accepts any, super-frames too."""
    link = facts.link(ask.interface)
    if link is None:
        return
    if link.mtu > MAX_NATIVE_MTU and facts.hook in ("auto", "native"):
        yield Finding(
            "mtu",
            Verdict.WARNING,
            f"{link.mtu} is more than native XDP accepts (about {MAX_NATIVE_MTU})",
            f"hook: tc, which hook: auto falls back to; or ip link set dev {link.name} mtu 1500",
        )
    else:
        yield Finding("mtu", Verdict.OK, f"{link.mtu}")


def tunnel_mtu(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check that the outer headers of ipip and gue have room."""
    link = facts.link(ask.interface)
    services = (facts.agent.config or {}).get("services", [])
    used = {ask.forward.value} if ask.forward else {one.get("forward") for one in services}
    tunnels = [mode for mode in OVERHEAD if mode in used]
    if link is None or not tunnels:
        return
    mode = tunnels[-1]  # the mode with the larger headers
    overhead = OVERHEAD[mode]
    sizes = ((link.mtu - size, name) for name, size in overhead.items())
    room = ", ".join(f"{size} bytes to {name} backends" for size, name in sizes)
    wanted = 1500 + max(overhead.values())
    if link.mtu >= wanted:
        yield Finding("tunnel mtu", Verdict.OK, f"{mode}: packets up to {room} fit")
        return
    takes = " or ".join(f"{size} bytes ({name})" for name, size in overhead.items())
    yield Finding(
        "tunnel mtu",
        Verdict.WARNING,
        f"the outer headers of {mode} take {takes}: only packets up to {room} fit; senders of"
        " larger ones get an ICMP message, which some networks drop",
        f"ip link set dev {link.name} mtu {wanted} (and on the way to the backends), or have"
        f" backends announce a smaller MSS: deploy/backend-setup.sh up {mode} --advmss 1400 VIP",
    )


def queues(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check the receive queues: each is served by one CPU."""
    link, cpus = facts.link(ask.interface), facts.host.cpus
    if link is None or link.kind:
        return  # virtual devices have no queues of this kind
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
    elif _is_native_virtio(link) and current > cpus:
        # The driver counts the queues used to send from XDP as used once the program is attached.
        yield Finding("queues", Verdict.OK, f"{current} queues, of them {cpus} to send from XDP")
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
            "offloads", Verdict.UNKNOWN, "ethtool is not installed", "apt-get install ethtool"
        )
        return
    if _is_native_virtio(link):
        # Whatever its features say: the driver makes the hypervisor stop merging while XDP is
        # attached.
        yield Finding("offloads", Verdict.OK, "packets arrive unmerged with native XDP on virtio")
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


def _is_native_virtio(link: Link) -> bool:
    native = link.program is not None and link.program.mode == "native"
    return native and link.driver == "virtio_net"


def vlan(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check VLAN tags: XDP does not see a tag that the card takes off; the agent turns that off."""
    link = facts.link(ask.interface)
    if link is None or link.features is None:
        return
    tagged = ", ".join(
        other.name for other in facts.links if other.parent == link.name and other.kind == "vlan"
    )
    hiding = {
        offload: feature
        for offload in STRIPPING
        if (feature := link.features.get(offload)) is not None and feature.on
    }
    if not tagged or not facts.is_xdp or not hiding:
        yield Finding("vlan", Verdict.OK, _why_tags_are_seen(facts, tagged, bool(hiding)))
        return
    fixed = any(feature.fixed for feature in hiding.values())
    yield Finding(
        "vlan",
        Verdict.WARNING,
        f"the card takes VLAN tags off before XDP sees them, and there are VLANs on it: {tagged}"
        + ("; the driver does not let that be changed" if fixed else "; the agent turns it off"),
        "hook: tc, which sees them"
        if fixed
        else "; ".join(f"ethtool -K {link.name} {STRIPPING[offload]} off" for offload in hiding),
    )


def _why_tags_are_seen(facts: Facts, tagged: str, hiding: bool) -> str:
    if not tagged:
        return "no VLANs here"
    if not facts.is_xdp and hiding:
        return f"{tagged}: tc sees the tags although the card takes them off"
    return f"{tagged}: the tags stay in the packets"


def veth(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check for problems of veth pairs that are only visible at the other end."""
    link = facts.link(ask.interface)
    if link is None or link.kind != "veth" or not facts.is_xdp:
        return
    if facts.hook == "native":
        yield Finding(
            "veth",
            Verdict.PROBLEM,
            "native XDP on a veth loses every packet that it sends, unless the other end has an"
            " XDP program, too, and senders have checksum offload off; neither can be seen from"
            " here, and tc costs less on a veth",
            "hook: auto, which takes tc here; or at the other end: lb-agent pass --interface PEER;"
            " ethtool -K PEER tx off (lbctl lab up --hook native does both)",
        )
    elif facts.hook == "auto":
        yield Finding("veth", Verdict.OK, "hook: auto takes tc on a veth")
    if any(other.parent == link.name and other.kind == "vlan" for other in facts.links):
        yield Finding(
            "veth vlan",
            Verdict.UNKNOWN,
            "the other end of a veth keeps the tags of packets that it sends beside them, where XDP"
            " does not see them, unless that is off; this cannot be seen from here",
            "at the other end: ethtool -K PEER txvlan off tx-vlan-stag-hw-insert off; or hook: tc",
        )
