"""Judges the machine, the kernel and BCC: what a balancer needs of its host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address

from agent.humanise import exact
from lbctl.doctor.facts import Facts, Finding, Question, Role, Verdict

# Mappable arrays came with Linux 5.5, bpf_jiffies64 with 5.6, CAP_BPF with 5.8.
OLDEST_KERNEL = (5, 8)
NEEDED_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON")
OLDEST_BCC = (0, 29)
NEARLY_FULL = 0.8


def privileges(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check whether we can see everything, and whether an agent with our privileges could work."""
    held = facts.host.capabilities
    everything = "CAP_SYS_ADMIN" in held
    missing = [
        name
        for name in NEEDED_CAPABILITIES
        if name not in held and not (everything and name != "CAP_NET_ADMIN")
    ]
    if not missing:
        yield Finding("privileges", Verdict.OK, "root" if facts.host.root else "capabilities held")
    elif facts.host.root:
        yield Finding(
            "privileges",
            Verdict.PROBLEM,
            f"root without {', '.join(missing)}: this is a restricted container or service",
            "grant the capabilities, e.g. docker run --privileged --network host",
        )
    else:
        yield Finding(
            "privileges",
            Verdict.WARNING,
            "not root: the agent needs root, and some checks here cannot see everything",
            "sudo lbctl doctor",
        )


def kernel(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the kernel's version."""
    release = facts.host.kernel_release
    if facts.host.kernel >= OLDEST_KERNEL:
        yield Finding("kernel", Verdict.OK, f"Linux {release}")
    else:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        yield Finding(
            "kernel",
            Verdict.PROBLEM,
            f"Linux {release} is too old: {oldest} is the oldest that has what the program needs",
            "install a newer kernel (Debian 13 and Ubuntu 24.04 have one)",
        )


def bpf(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check which bpf(2) calls the kernel accepts from us."""
    for what, attempt in (
        ("a table that the agent can map", facts.host.bpf_map),
        ("an XDP program", facts.host.bpf_program),
    ):
        if attempt is None:
            yield Finding("bpf", Verdict.UNKNOWN, f"{what}: not tried on this kind of machine")
        elif not attempt.problem:
            yield Finding("bpf", Verdict.OK, f"the kernel accepts {what}")
        elif not facts.host.root:
            yield Finding("bpf", Verdict.UNKNOWN, f"{what}: only root can try", "sudo lbctl doctor")
        else:
            yield Finding(
                "bpf",
                Verdict.PROBLEM,
                f"the kernel refuses {what}: {attempt.problem}",
                "look at lockdown (cat /sys/kernel/security/lockdown), seccomp of the container,"
                " and CONFIG_BPF_SYSCALL of the kernel",
            )


def btf(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check type information; the ABI check reads that of our own program, not the kernel's."""
    if facts.host.btf:
        yield Finding("btf", Verdict.OK, "the kernel has its type information")
    else:
        yield Finding(
            "btf",
            Verdict.WARNING,
            "the kernel has no type information (CONFIG_DEBUG_INFO_BTF): the balancer works,"
            " tracing tools do not",
            "use a distribution kernel",
        )


def jit(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the JIT: compiled BPF is several times faster."""
    value = facts.host.jit
    fix = "sysctl -w net.core.bpf_jit_enable=1"
    if value is None:
        yield Finding(
            "jit",
            Verdict.UNKNOWN,
            "net.core.bpf_jit_enable cannot be read (network namespaces do not have it)",
        )
    elif value == 0:
        yield Finding(
            "jit", Verdict.PROBLEM, "BPF is interpreted, which is several times slower", fix
        )
    elif value > 1:
        yield Finding(
            "jit", Verdict.WARNING, "the BPF compiler writes every program to the log", fix
        )
    else:
        yield Finding("jit", Verdict.OK, "BPF is compiled")


def bpffs(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the BPF file system, which holds the tables while no agent runs."""
    if facts.host.bpffs:
        yield Finding("bpffs", Verdict.OK, "mounted at /sys/fs/bpf")
    else:
        yield Finding(
            "bpffs",
            Verdict.WARNING,
            "not mounted at /sys/fs/bpf; the agent mounts it when it starts (it cannot under a"
            " hardened unit)",
            "mount -t bpf -o mode=0700 bpf /sys/fs/bpf",
        )


def bcc(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the compiler."""
    found = facts.host.bcc
    version = re.match(r"(\d+)\.(\d+)", found.version)
    if found.usable and version and (int(version[1]), int(version[2])) < OLDEST_BCC:
        yield Finding(
            "bcc",
            Verdict.WARNING,
            f"BCC {found.version} is older than the tested versions, which begin with"
            f" {'.'.join(map(str, OLDEST_BCC))}",
            "use Debian 13 or Ubuntu 24.04, whose python3-bpfcc is new enough",
        )
    elif found.usable:
        yield Finding("bcc", Verdict.OK, f"BCC {found.version}".rstrip())
    elif not found.found:
        yield Finding(
            "bcc",
            Verdict.PROBLEM,
            "this Python has no BCC",
            "apt-get install python3-bpfcc, and make the virtual environment with"
            " /usr/bin/python3 -m venv --system-site-packages",
        )
    elif not found.problem:
        yield Finding(
            "bcc",
            Verdict.PROBLEM,
            "the package called bcc here is another project",
            "pip uninstall bcc; apt-get install python3-bpfcc",
        )
    else:
        yield Finding(
            "bcc",
            Verdict.PROBLEM,
            f"BCC cannot be imported: {found.problem}",
            "apt-get install --reinstall python3-bpfcc libbpfcc",
        )


def clock(facts: Facts, ask: Question) -> Iterator[Finding]:
    """Check the clock: some data that hosts exchange is only valid if their clocks agree."""
    depends = _of_clocks(facts, ask)
    if facts.host.clock is None:
        yield Finding(
            "clock", Verdict.UNKNOWN, "the kernel does not say whether it is synchronised"
        )
    elif facts.host.clock:
        yield Finding("clock", Verdict.OK, "it is synchronised")
    elif not depends:
        yield Finding(
            "clock",
            Verdict.OK,
            "it is not synchronised; nothing in this configuration needs that",
        )
    else:
        yield Finding(
            "clock",
            Verdict.WARNING,
            f"it is not synchronised; these features need clocks that agree: {', '.join(depends)}",
            "apt-get install systemd-timesyncd, timedatectl set-ntp true; or chrony",
        )


def _of_clocks(facts: Facts, ask: Question) -> list[str]:
    """Return the features that fail with a wrong clock."""
    if ask.role is Role.BACKEND:
        return ["SYN cookies (if the balancers give them)"]
    config = facts.agent.config or {}
    failover, services = config.get("failover") or {}, config.get("services") or []
    members = ((config.get("fleet") or {}).get("etcd") or {}).get("endpoints") or ()
    found = {
        "blocks that balancers tell each other": bool((failover.get("sync") or {}).get("peers")),
        "authenticated adverts": any(
            each.get("authentication", "none") != "none" for each in failover.get("instances") or ()
        ),
        "SYN cookies": any(each.get("syn_cookies") for each in services),
        "certificates": bool((config.get("status_page") or {}).get("certificate"))
        or any((each.get("health") or {}).get("verify_tls") for each in services)
        or any(each.startswith("https:") for each in members),
    }
    return [name for name, is_used in found.items() if is_used]


def conntrack(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the kernel's own table of connections. When it is full, packets are dropped and only
    the
    kernel's log says so. On a balancer, balanced packets never reach it.
    """
    used = facts.sysctl.get("net.netfilter.nf_conntrack_count")
    size = facts.sysctl.get("net.netfilter.nf_conntrack_max")
    if used is None or not size:
        return
    text = f"{exact(used)} of {exact(size)} entries of the kernel's connection table are in use"
    if used < NEARLY_FULL * size:
        yield Finding("conntrack", Verdict.OK, text)
        return
    yield Finding(
        "conntrack",
        Verdict.PROBLEM if used >= size else Verdict.WARNING,
        f"{text}: new connections of this host are dropped when it is full",
        f"sysctl -w net.netfilter.nf_conntrack_max={4 * size}, and into /etc/sysctl.d; or exempt"
        " the ports of services: nft rules with notrack",
    )


def neighbours(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Check the neighbour table: the kernel forgets MAC addresses beyond its limit."""
    services = (facts.agent.config or {}).get("services") or []
    near = {
        ip_address(backend["address"])
        for service in services
        if service.get("forward", "dsr") in ("dsr", "nat")
        for backend in service.get("backends") or ()
    }
    for version in (4, 6):
        name = f"net.ipv{version}.neigh.default.gc_thresh2"
        limit = facts.sysctl.get(name)
        count = sum(address.version == version for address in near)
        if limit is not None and count > limit:
            yield Finding(
                "neighbours",
                Verdict.WARNING,
                f"there are {exact(count)} IPv{version} backends on the segment, and the kernel"
                f" keeps only {exact(limit)} MAC addresses",
                "install deploy/sysctl/balancer.conf as /etc/sysctl.d/90-steelyard.conf, then"
                " sysctl --system",
            )
