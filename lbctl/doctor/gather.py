"""Gathers the facts about this host; reads only, and runs ``ip`` and ``ethtool`` to read."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lbctl.doctor import bpf, gather_agent, gather_failover, gather_fleet, gather_tier, netdev
from lbctl.doctor.facts import (
    AgentFacts,
    Bcc,
    Entry,
    Facts,
    Feature,
    Filter,
    Host,
    Link,
    Program,
    Queues,
)
from lbctl.doctor.gather_agent import read
from lbctl.environment import Environment

_COMMAND_TIMEOUT_S = 10
_PINS = Path("/sys/fs/bpf/steelyard")
_TIMEX_BYTES = 256  # struct timex is shorter
_TIME_ERROR = 5  # what adjtimex(2) returns for a clock that is not synchronised
_BCC_PROBE = (
    "import json, bcc;"
    "print(json.dumps([hasattr(bcc, 'BPF'), str(getattr(bcc, '__version__', ''))]))"
)
_SINGLE_SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv4.neigh.default.gc_thresh2",
    "net.ipv6.neigh.default.gc_thresh2",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
)
_PER_INTERFACE = ("rp_filter", "arp_ignore", "arp_announce", "forwarding")


def gather(
    env: Environment, interface: str | None, file: Path | None = None
) -> tuple[Facts, tuple[str, ...]]:
    """Return the facts, and the interfaces they are about: the given one, the agent's, or the
    default.

    The agent's are all those on which it balances, the first one first. If no agent answers,
    ``file`` is read for what the agent is going to do.
    """
    agent = gather_agent.gather(env)
    if agent.status is None and file is not None and file.exists():
        agent = gather_agent.with_file(agent, file)
    links = _links()
    running = (agent.status or {}).get("dataplane", {}) or agent.config or {}
    first = interface or running.get("interface") or _default_interface() or only_interface(links)
    names = [str(first or "")]
    if first and first == running.get("interface"):
        names += running.get("backend_interfaces", ())
    rules = _run("nft", "-j", "list", "ruleset")
    facts = Facts(
        host=_host(),
        links=tuple(_with_details(link) if link.name in names else link for link in links),
        agent=agent,
        sysctl=_sysctls(["all", *(link.name for link in links)]),
        pinned=_pinned(),
        entry=_entry(agent),
        failover=gather_failover.gather(agent.config, env.socket, rules),
        fleet=gather_fleet.gather(agent.config),
        tier=gather_tier.gather(),
        gue_ports=gue_ports(_run("ip", "fou", "show") or ""),
        nft_installed=shutil.which("nft") is not None,
        nft_tables=nft_tables(rules),
        installed=gather_agent.installed(),
        units=gather_agent.units(),
        now=time.time(),
    )
    return facts, tuple(names)


def _host() -> Host:
    release = os.uname().release
    return Host(
        root=os.geteuid() == 0,
        capabilities=gather_agent.effective_capabilities(read(Path("/proc/self/status")) or ""),
        kernel=kernel_version(release),
        kernel_release=release,
        cpus=os.cpu_count() or 1,
        bpf_map=bpf.mappable_array(),
        bpf_program=bpf.xdp_program(),
        btf=Path("/sys/kernel/btf/vmlinux").exists(),
        jit=_number(Path("/proc/sys/net/core/bpf_jit_enable")),
        bpffs=bpffs_mounted(read(Path("/proc/self/mounts")) or ""),
        bcc=_bcc(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        clock=_clock(),
    )


def _clock() -> bool | None:
    """Return whether the clock is synchronised, as NTP daemons report it to the kernel."""
    nothing = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: only read
    state = int(ctypes.CDLL(None).adjtimex(nothing))
    return None if state < 0 else state != _TIME_ERROR


def kernel_version(release: str) -> tuple[int, int]:
    """Return (6, 12) for 6.12.9-amd64; (0, 0) if there is no version in the text."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def bpffs_mounted(mounts: str) -> bool:
    """Return whether /sys/fs/bpf is a BPF file system, according to /proc/self/mounts."""
    rows = (line.split() for line in mounts.splitlines())
    return any(len(row) > 2 and row[1] == "/sys/fs/bpf" and row[2] == "bpf" for row in rows)


def _bcc() -> Bcc:
    # In another process: loading LLVM takes memory, and only the agent imports bcc.
    try:
        result = subprocess.run(
            [sys.executable, "-c", _BCC_PROBE],
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Bcc(found=True, usable=False, problem=str(error))
    if result.returncode == 0:
        usable, version = json.loads(result.stdout)
        return Bcc(found=True, usable=usable, version=version)
    lines = result.stderr.strip().splitlines()
    last = lines[-1] if lines else f"exit status {result.returncode}"
    return Bcc(found="No module named 'bcc'" not in last, usable=False, problem=last)


def _links() -> tuple[Link, ...]:
    """Return all interfaces of this network namespace."""
    addresses: dict[str, set[str]] = {}
    for entry in _ip("address", "show"):
        for info in entry.get("addr_info", []):
            addresses.setdefault(entry["ifname"], set()).add(info["local"])
    return tuple(
        link_of(entry, addresses.get(entry["ifname"], set()))
        for entry in _ip("-d", "link", "show")
        if entry.get("ifname")
    )


def link_of(entry: Mapping[str, Any], addresses: set[str]) -> Link:
    """Return an interface from the output of ``ip -j -d link``."""
    xdp = entry.get("xdp") or {}
    program = xdp.get("prog")
    return Link(
        name=entry["ifname"],
        kind=(entry.get("linkinfo") or {}).get("info_kind", ""),
        up="UP" in entry.get("flags", []),
        carrier="NO-CARRIER" not in entry.get("flags", []),
        mtu=entry.get("mtu", 0),
        parent=entry.get("link"),
        master=entry.get("master"),
        program=Program(program["id"], program.get("name", ""), _hook(xdp)) if program else None,
        addresses=frozenset(ip_address(address) for address in addresses),
    )


def _hook(xdp: Mapping[str, Any]) -> str:
    return {1: "native", 2: "generic", 3: "offloaded"}.get(xdp.get("mode", 0), "several modes")


def _with_details(link: Link) -> Link:
    """Add what ethtool and the kernel's netdev family know of the interface."""
    ifindex = None
    with contextlib.suppress(OSError):
        import socket

        ifindex = socket.if_nametoindex(link.name)
    features, driver = _run("ethtool", "-k", link.name), _run("ethtool", "-i", link.name)
    match = re.search(r"^driver: (\S+)", driver or "", re.MULTILINE)
    channels = _run("ethtool", "-l", link.name)
    return replace(
        link,
        driver=match[1] if match else None,
        features=None if features is None else ethtool_features(features),
        queues=None if channels is None else ethtool_channels(channels),
        xdp_features=None if ifindex is None else netdev.xdp_features(ifindex),
        filters=_filters(link.name),
    )


def _filters(interface: str) -> tuple[Filter, ...] | None:
    text = _run("tc", "-j", "filter", "show", "dev", interface, "ingress")
    if text is None:
        return None
    try:
        return tc_filters(json.loads(text or "[]"))
    except ValueError:
        return None


def tc_filters(answer: list[Mapping[str, Any]]) -> tuple[Filter, ...]:
    """Return the filters in the output of ``tc -j filter show``, which also has a headline for
    each.
    """
    found = {}
    for entry in answer:
        options = entry.get("options") or {}
        program = options.get("prog") or {}
        if options:
            key = (entry.get("pref", 0), entry.get("kind", ""), options.get("handle"))
            name = program.get("name") or options.get("bpf_name") or ""
            found[key] = Filter(key[0], key[1], name, program.get("id"))
    return tuple(sorted(found.values(), key=lambda one: one.priority))


def nft_tables(rules: str | None) -> frozenset[str] | None:
    """Return the tables of the family inet in the output of ``nft -j list ruleset``."""
    if rules is None:
        return None
    found = (entry.get("table") or {} for entry in json.loads(rules).get("nftables", []))
    return frozenset(str(table["name"]) for table in found if table.get("family") == "inet")


def gue_ports(text: str) -> frozenset[int]:
    """Return the ports in the output of ``ip fou show`` that decapsulate gue."""
    return frozenset(int(port) for port in re.findall(r"^port (\d+) gue\b", text, re.MULTILINE))


def _entry(agent: AgentFacts) -> Entry | None:
    hook = (agent.status or {}).get("dataplane", {}).get("hook")
    if hook != "external" and (agent.config or {}).get("hook") != "external":
        return None
    name = (agent.status or {}).get("agent", {}).get("name", "")
    return bpf.entry(_PINS / name / "entry")


def ethtool_features(text: str) -> dict[str, Feature]:
    """Return the offloads in the output of ``ethtool -k``."""
    rows = re.findall(r"^\s*([\w-]+): (on|off)( \[fixed\])?", text, re.MULTILINE)
    return {name: Feature(state == "on", bool(fixed)) for name, state, fixed in rows}


def ethtool_channels(text: str) -> Queues | None:
    """Return the receive queues in the output of ``ethtool -l``: combined ones, or RX."""
    rows = re.findall(r"^(RX|Combined):\s+(\d+|n/a)", text, re.MULTILINE)
    counts = {"RX": [0, 0], "Combined": [0, 0]}
    for name in counts:
        numbers = [int(number) if number.isdigit() else 0 for kind, number in rows if kind == name]
        if len(numbers) == 2:
            counts[name] = numbers
    maximum = counts["Combined"][0] or counts["RX"][0]
    current = counts["Combined"][1] or counts["RX"][1]
    return Queues(current, maximum) if current else None


def _default_interface() -> str | None:
    for family in ("-4", "-6"):
        for route in _ip(family, "route", "show", "default"):
            if route.get("dev"):
                return str(route["dev"])
    return None


def only_interface(links: tuple[Link, ...]) -> str | None:
    """Return the only interface besides loopback, if there is exactly one."""
    names = [link.name for link in links if link.name != "lo"]
    return names[0] if len(names) == 1 else None


def _sysctls(names: list[str]) -> dict[str, int]:
    return dict(_read_sysctls(names))


def _read_sysctls(names: list[str]) -> Iterator[tuple[str, int]]:
    paths = {name: name.replace(".", "/") for name in _SINGLE_SYSCTLS}
    for interface in names:
        for key in _PER_INTERFACE:
            paths[f"net.ipv4.conf.{interface}.{key}"] = f"net/ipv4/conf/{interface}/{key}"
        paths[f"net.ipv6.conf.{interface}.disable_ipv6"] = f"net/ipv6/conf/{interface}/disable_ipv6"
    for name, path in paths.items():
        number = _number(Path("/proc/sys", path))
        if number is not None:
            yield name, number


def _pinned() -> frozenset[int]:
    """Return the ids of the programs that agents of this host have pinned."""
    try:
        paths = list(_PINS.glob("*/abi*/program*"))
    except OSError:
        return frozenset()
    idents = (bpf.pinned_program_id(path) for path in paths)
    return frozenset(ident for ident in idents if ident is not None)


def _ip(*arguments: str) -> list[dict[str, Any]]:
    """Return the answer of ``ip -j``. An old ``ip`` prints empty objects among the others."""
    text = _run("ip", "-j", *arguments)
    try:
        answer = json.loads(text or "[]")
    except ValueError:
        return []
    return [entry for entry in answer if entry] if isinstance(answer, list) else []


def _run(*command: str) -> str | None:
    """Return the standard output of a command; None if it failed."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def _number(path: Path) -> int | None:
    text = (read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None
