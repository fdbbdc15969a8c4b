"""Owns how the keys of SYN cookies are read and named, and how they are written into tables."""

from __future__ import annotations

import hashlib
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from agent.dataplane.abi import COOKIE_KEYS
from agent.errors import ConfigError
from agent.files import read_private

KEY_BYTES = 16  # a SipHash key
_MAKE = "`(umask 077; openssl rand -hex 16 > {path})` on one host, and copy it to the others"
_WHAT = "the key of SYN cookies"
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Keys:
    """One or two keys of 16 bytes. The first one signs; cookies of all of them are accepted."""

    keys: tuple[bytes, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the keys: the first 16 hexadecimal digits of the SHA-256 of each."""
        return tuple(hashlib.sha256(key).hexdigest()[:16] for key in self.keys)


def read_keys(path: Path) -> Keys:
    """Return the keys in a file; each is a line of 32 hexadecimal digits.

    Raises ConfigError if the file does not hold one or two keys. To change the key without losing
    connections, add the new one as the second line on all hosts, then put it first on the
    balancers, and then remove the old one.
    """
    text = read_private(path, _WHAT, _MOST_BYTES, make=_MAKE.format(path=path)).decode(
        "ascii", "replace"
    )
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    try:
        keys = tuple(bytes.fromhex(line) for line in found)
    except ValueError:
        keys = ()
    if not 0 < len(keys) <= COOKIE_KEYS or any(len(key) != KEY_BYTES for key in keys):
        raise ConfigError(
            f"{_WHAT} is one line of {2 * KEY_BYTES} hexadecimal digits, or two while it changes",
            where=str(path),
            remedy=f"make it: {_MAKE.format(path=path)}",
        )
    return Keys(keys)


def wall_ahead_ns() -> int:
    """Return how far the wall clock is ahead of the monotonic clock.

    Programs in the kernel can read only the latter.
    """
    return time.time_ns() - time.monotonic_ns()


def packed(keys: Keys | None, wall_ns: int, mtu: int = 0) -> bytes:
    """Return a ``struct cookie_secret``; without keys there are no cookies.

    ``wall_ns``: see ``wall_ahead_ns``. ``mtu``: in bytes; 0 stands for 1500.
    """
    present = keys.keys if keys else ()
    room = b"".join(present).ljust(COOKIE_KEYS * KEY_BYTES, b"\0")
    return room + struct.pack("=QqH14x", len(present), wall_ns, mtu)
