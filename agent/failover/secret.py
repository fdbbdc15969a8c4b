"""Reads the secret that the balancers share, and decides whether it can be trusted."""

from __future__ import annotations

from pathlib import Path

from agent.errors import ConfigError
from agent.files import read_private

LEAST_BYTES = 16
MOST_BYTES = 4096
_WHAT = "the balancers' secret"
_MAKE = "`(umask 077; openssl rand -hex 32 > {path})` on one balancer, and copy it to the others"


def read_secret(path: Path) -> bytes:
    """Return the secret in a file, without the end of the line.

    Raises ConfigError if it is too short, or if the file is not private: only its owner may be able
    to write it, and only its owner and its group to read it.
    """
    text = read_private(path, _WHAT, MOST_BYTES, make=_MAKE.format(path=path))
    secret = text.rstrip(b"\r\n")
    if len(secret) < LEAST_BYTES:
        raise ConfigError(
            f"the balancers' secret has {len(secret)} bytes, and needs at least {LEAST_BYTES}",
            where=str(path),
            remedy=f"make a new one: {_MAKE.format(path=path)}",
        )
    return secret
