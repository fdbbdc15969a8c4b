"""Decides from which seed backends are chosen: a secret, so that nobody outside can compute which
clients get which backend, and the same on all balancers of a group.
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
# What a host has of its own and tells nobody; without systemd it is new at each boot.
_OF_HOST = (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"))


def is_public(config: Config) -> bool:
    """Whether this balancer is one of several that have no secret from which to choose alike."""
    return config.hash_seed is None and config.failover.key_file is None and _has_others(config)


def _has_others(config: Config) -> bool:
    return bool(config.failover.instances or config.failover.sync.peers)


def _may_have_others(config: Config) -> bool:
    """Whether other balancers may have this one's clients without being named here."""
    return not config.manage_vips or any(s.key.vip_bits is not None for s in config.services)


def pick_seed(config: Config) -> int:
    """As configured; else made of the group's secret, or of the host's own if there is no group."""
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
    """64 bits from which the secret cannot be found."""
    return int.from_bytes(hmac.digest(secret, _USE, "sha256")[:8], "little")


def _host_secret() -> bytes:
    for path in _OF_HOST:
        try:
            if (text := path.read_bytes().strip()) not in _NOTHING:
                return text
        except OSError:
            continue
    return b""
