"""Owns how the secret that the balancers share is read, and decides whether it can be trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agent.errors import ConfigError

LEAST_BYTES = 16
MOST_BYTES = 4096
_MAKE = "`(umask 077; openssl rand -hex 32 > {path})` on one balancer, and copy it to the others"


def read_secret(path: Path) -> bytes:
    """The secret in a file, without the line's end; ConfigError if it is none.

    A file that others than its owner and its group can read, or that others than its owner can
    change, holds no secret.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_file(path, status)
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the balancers' secret cannot be read: {error.strerror or error}",
            where=str(path),
            remedy=f"make it: {_MAKE.format(path=path)}",
        ) from error
    secret = text.rstrip(b"\r\n")
    if len(text) > MOST_BYTES:
        raise ConfigError(
            f"the balancers' secret is longer than {MOST_BYTES} bytes",
            where=str(path),
            remedy=f"is this the right file? A new one: {_MAKE.format(path=path)}",
        )
    if len(secret) < LEAST_BYTES:
        raise ConfigError(
            f"the balancers' secret has {len(secret)} bytes, and needs at least {LEAST_BYTES}",
            where=str(path),
            remedy=f"make a new one: {_MAKE.format(path=path)}",
        )
    return secret


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(
            "the balancers' secret is not in a regular file",
            where=str(path),
            remedy="set 'key_file' to the file that holds it",
        )
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(
            "everybody on this host can read or change the balancers' secret"
            f" (mode {stat.S_IMODE(status.st_mode):04o})",
            where=str(path),
            remedy=f"`chmod 0600 {path}`, and make a new secret if a stranger may have read it",
        )
