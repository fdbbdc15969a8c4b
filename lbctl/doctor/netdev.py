"""Asks the kernel which XDP features an interface's driver has (generic netlink "netdev", Linux
6.3).

``ip`` and ``ethtool`` do not show them.
"""

from __future__ import annotations

import socket
import struct

_NETLINK_GENERIC = 16
_CONTROL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_DEV_GET, _IFINDEX, _XDP_FEATURES = 1, 1, 3
_REQUEST, _ERROR = 1, 2
_TIMEOUT_S = 2.0
NAMES = ("basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg")


def xdp_features(ifindex: int) -> frozenset[str] | None:
    """Return the features of an interface's driver; None if the kernel does not report them."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as sock:
            sock.settimeout(_TIMEOUT_S)
            sock.bind((0, 0))
            name = _attribute(_FAMILY_NAME, b"netdev\0")
            family = _ask(sock, _CONTROL, _GETFAMILY, name).get(_FAMILY_ID)
            if family is None:
                return None
            index = _attribute(_IFINDEX, struct.pack("=I", ifindex))
            answer = _ask(sock, struct.unpack("=H", family[:2])[0], _DEV_GET, index)
    except OSError:
        return None
    bits = answer.get(_XDP_FEATURES)
    return None if bits is None else feature_names(struct.unpack("=Q", bits[:8])[0])


def feature_names(bits: int) -> frozenset[str]:
    """Return the names of the bits that are set."""
    return frozenset(name for position, name in enumerate(NAMES) if bits & 1 << position)


def _ask(sock: socket.socket, family: int, command: int, attribute: bytes) -> dict[int, bytes]:
    body = struct.pack("=BBH", command, 1, 0) + attribute
    sock.send(struct.pack("=IHHII", 16 + len(body), family, _REQUEST, 1, 0) + body)
    answer = sock.recv(65_536)
    length, kind = struct.unpack_from("=IH", answer)
    if kind == _ERROR:
        code = struct.unpack_from("=i", answer, 16)[0]
        raise OSError(-code, "netlink")
    return attributes(answer[20:length])


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the netlink attributes in a message, by type."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding
