"""Asks an interface which driver runs it (ETHTOOL_GDRVINFO, include/uapi/linux/ethtool.h)."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GDRVINFO = 0x3
_INFO_SIZE = 196


def driver_name(interface: str) -> str:
    """Return the driver's name; empty if the interface does not report one."""
    info = array.array("B", struct.pack("=I", _GDRVINFO).ljust(_INFO_SIZE, b"\0"))
    request = struct.pack("@16sP", interface.encode(), info.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError:
            return ""
    return info.tobytes()[4:36].split(b"\0", 1)[0].decode()


def is_veth(interface: str) -> bool:
    """Return whether the interface is a veth.

    Native XDP on a veth loses what it sends, unless the far end was prepared for it.
    """
    return driver_name(interface) == "veth"
