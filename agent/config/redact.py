"""Decides which values of a configuration are secret, and hides them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Passwords of VRRP, and the seed, with which an attacker could choose a backend.
SECRETS = ("password", "hash_seed")
HIDDEN = "(hidden)"


def redacted(value: Any) -> Any:
    """Return the value without secrets, at any depth."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if key in SECRETS and each is not None else redacted(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [redacted(each) for each in value]
    return value


def hides(value: Any) -> bool:
    """Return whether a value that ``redacted`` returned has something hidden in it."""
    if isinstance(value, Mapping):
        return any(map(hides, value.values()))
    if isinstance(value, list):
        return any(map(hides, value))
    return bool(value == HIDDEN)
