"""Decides the seed with which backends are chosen.

It is secret, so that nobody outside can compute which clients get which backend, and it is the same
on all balancers of a group.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from agent.errors import SteelyardError
from agent.failover.secret import read_secret
from agent.logs import get_logger
from agent.model import Config

log = get_logger()

PUBLIC = 0
_USE = b"steelyard: the choice of backends"
_NOTHING = (b"", b"uninitialized")  # machine-id(5)
# Secrets that each host has of its own. Without systemd only the second exists, which changes at
# each boot.
_OF_HOST = (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"))


def is_public(config: Config) -> bool:
    """Return whether this balancer is one of several, and they have no common secret."""
    return config.hash_seed is None and config.failover.key_file is None and _has_others(config)


def _has_others(config: Config) -> bool:
    return bool(config.failover.instances or config.failover.sync.peers)


def _may_have_others(config: Config) -> bool:
    """Return whether other balancers may have the same clients, though the configuration names
    none.
    """
    return not config.manage_vips or any(s.key.vip_bits is not None for s in config.services)


def pick_seed(config: Config) -> int:
    """Return the configured seed, or one derived from the group's secret, or from the host's
    own.
    """
    if config.hash_seed is not None:
        return config.hash_seed
    if config.failover.key_file is not None:
        try:
            return made_of(read_secret(config.failover.key_file))
        except SteelyardError as error:
            log.error("backends are chosen with a seed that is no secret", problem=str(error))
            return PUBLIC
    if _has_others(config) or _may_have_others(config):
        return PUBLIC
    return made_of(_host_secret())


def made_of(secret: bytes) -> int:
    """Return 64 bits derived from a secret, which do not reveal it."""
    return int.from_bytes(hmac.digest(secret, _USE, "sha256")[:8], "little")


def _host_secret() -> bytes:
    for path in _OF_HOST:
        try:
            if (text := path.read_bytes().strip()) not in _NOTHING:
                return text
        except OSError:
            continue
    return b""
