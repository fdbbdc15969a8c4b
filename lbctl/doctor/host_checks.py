"""Judges the machine, the kernel and BCC: what a balancer needs of its host."""

from __future__ import annotations

from collections.abc import Iterator

from lbctl.doctor.facts import Facts, Finding, Question, Verdict

# Mappable arrays came with 5.5, bpf_jiffies64 with 5.6, CAP_BPF with 5.8.
OLDEST_KERNEL = (5, 8)
NEEDED_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON")
FEW_FILES = 4096


def privileges(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Whether we can see everything, and the agent could do its work as we are."""
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
    """The version."""
    release = facts.host.kernel_release
    if facts.host.kernel >= OLDEST_KERNEL:
        yield Finding("kernel", Verdict.OK, f"Linux {release}")
    else:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        yield Finding(
            "kernel",
            Verdict.PROBLEM,
            f"Linux {release} is too old: {oldest} is the oldest that has what the program uses",
            "install a newer kernel (Debian 13 and Ubuntu 24.04 have one)",
        )


def bpf(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """What bpf(2) takes from us."""
    for what, attempt in (
        ("a table that the agent can map", facts.host.bpf_map),
        ("an XDP program", facts.host.bpf_program),
    ):
        if attempt is None:
            yield Finding("bpf", Verdict.UNKNOWN, f"{what}: not tried on this kind of machine")
        elif not attempt.problem:
            yield Finding("bpf", Verdict.OK, f"the kernel takes {what}")
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
    """Type information, which the ABI check reads from our own program, not from the kernel."""
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
    """Compiled BPF is several times faster."""
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
    """Where the tables live while no agent runs."""
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
    """The compiler."""
    found = facts.host.bcc
    if found.usable:
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


def open_files(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Each health check in progress is an open file."""
    running = facts.agent.open_files
    limit, whose = (
        (running, "the agent") if running is not None else (facts.host.open_files, "here")
    )
    if limit >= FEW_FILES:
        yield Finding("open files", Verdict.OK, f"{limit} ({whose})")
    elif running is not None:
        yield Finding(
            "open files",
            Verdict.WARNING,
            f"the agent may open {limit} files: too few for health checks of many backends",
            "systemctl edit lb-agent: [Service] LimitNOFILE=65536",
        )
    else:
        yield Finding(
            "open files",
            Verdict.OK,
            f"{limit} in this shell; an agent started by systemd has 65536 (lb-agent.service)",
        )
