"""Owns the lab's operations on network namespaces: making, entering, configuring, removing them."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.errors import SteelyardError

NETNS_DIR = Path("/run/netns")
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM, _ETHTOOL_GFLAGS, _ETHTOOL_SFLAGS = 0x17, 0x25, 0x26
_ETH_FLAG_TXVLAN = 1 << 7


class LabError(SteelyardError):
    """The lab cannot be built, found or removed."""


def path(namespace: str) -> Path:
    """Return the file of a namespace."""
    return NETNS_DIR / namespace


def names() -> list[str]:
    """Return the named network namespaces of this machine."""
    return sorted(entry.name for entry in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []


def entering(namespace: str) -> list[str]:
    """Return the command prefix that runs a command in a namespace.

    It is not ``ip netns exec``, which mounts a new /sys and so hides /sys/fs/bpf.
    """
    return ["nsenter", f"--net={path(namespace)}", "--"]


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Move the calling thread into a namespace for the duration of the context."""
    with Path("/proc/thread-self/ns/net").open() as home, path(namespace).open() as target:
        os.setns(target.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home.fileno(), os.CLONE_NEWNET)


def ip(commands: Sequence[str], namespace: str | None = None) -> None:
    """Run ``ip`` commands in one go; raises LabError with the kernel's message."""
    where = ["-n", namespace] if namespace else []
    result = subprocess.run(
        ["ip", *where, "-batch", "-"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # so that Ctrl-C does not interrupt a clean-up
    )
    if result.returncode != 0:
        raise LabError(
            f"ip refused a command: {' '.join(result.stderr.split())}",
            where=f"namespace {namespace}" if namespace else "network namespaces",
            remedy="`lbctl lab down` (with --name, if the lab has one) removes what is left;"
            " see `dmesg` for the kernel's side",
        )


def write_sysctls(namespace: str, settings: Mapping[str, str]) -> None:
    """Write settings below /proc/sys/net; those that this kernel does not have are left out."""
    with inside(namespace):
        for name, value in settings.items():
            setting = Path("/proc/sys/net") / name
            try:
                setting.write_text(value)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise LabError(
                    f"{setting} does not accept {value!r}: {error.strerror}",
                    where=f"namespace {namespace}",
                    remedy="run as root, outside of an unprivileged container",
                ) from error


def checksum_in_software(namespace: str, interface: str) -> None:
    """Do what ``ethtool -K INTERFACE tx off`` does.

    A veth hands packets over without checksums, XDP_TX sends them on as they are, and the
    receiver drops them.
    """
    _ethtool(namespace, interface, _ETHTOOL_STXCSUM, 0)


def tags_in_frames(namespace: str, interface: str) -> None:
    """Do what ``ethtool -K INTERFACE tx-vlan-offload off`` does."""
    flags = _ethtool(namespace, interface, _ETHTOOL_GFLAGS, 0)
    _ethtool(namespace, interface, _ETHTOOL_SFLAGS, flags & ~_ETH_FLAG_TXVLAN)


def _ethtool(namespace: str, interface: str, command: int, value: int) -> int:
    data = array.array("B", struct.pack("II", command, value))
    request = struct.pack("16sP", interface.encode(), data.buffer_info()[0])
    with inside(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, request)
    return int(struct.unpack("II", data)[1])
