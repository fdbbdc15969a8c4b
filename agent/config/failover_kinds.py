"""Decides what values of failover may be: the types of its schema, as ``kinds`` has others."""

from __future__ import annotations

import shlex
from typing import Annotated

from pydantic import BeforeValidator

from agent.config.kinds import Kind, duration, matching, refuse, shown, text, whole

_SHORTEST_S, _LONGEST_S = 0.01, 255.0


def _interval(value: object) -> float:
    seconds = duration(_SHORTEST_S, _LONGEST_S)(value)
    centiseconds = seconds * 100
    if abs(centiseconds - round(centiseconds)) > 1e-6:
        refuse(f"{shown(value)} is not a multiple of 10ms", "adverts carry hundredths of a second")
    return round(centiseconds) / 100


def _command(value: object) -> tuple[str, ...]:
    remedy = "give the program and its arguments: /usr/local/bin/check --fast, or a list"
    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as error:
            refuse(f"{shown(value)} cannot be split into words: {error}", remedy)
    elif isinstance(value, list):
        words = [text(word) for word in value]
    else:
        refuse(f"{shown(value)} is not a command", remedy)
    if not words or not words[0].startswith("/"):
        refuse(f"{shown(value)} does not begin with an absolute path", remedy)
    return tuple(words)


def _command_if_any(value: object) -> tuple[str, ...]:
    return () if value == [] else _command(value)


def _version(value: object) -> int:
    if value not in (2, 3) or isinstance(value, bool):
        refuse(f"{shown(value)} is not a version of VRRP", "give 3, or 2 for old IPv4 peers")
    assert isinstance(value, int)  # noqa: S101 (it is 2 or 3)
    return value


Vrid = Annotated[int, BeforeValidator(whole(1, 255)), Kind("whole number, 1 to 255")]
Version = Annotated[int, BeforeValidator(_version), Kind("`3` \\| `2`")]
Priority = Annotated[int, BeforeValidator(whole(1, 255)), Kind("whole number, 1 to 255")]
Lost = Annotated[int, BeforeValidator(whole(0, 253)), Kind("whole number, 0 to 253")]
Change = Annotated[int, BeforeValidator(whole(-253, 253)), Kind("whole number, -253 to 253")]
Repeats = Annotated[int, BeforeValidator(whole(1, 100)), Kind("whole number, 1 to 100")]
AdvertInterval = Annotated[float, BeforeValidator(_interval), Kind("duration, 10ms to 255s")]
Delay = Annotated[float, BeforeValidator(duration(0, 3600)), Kind("duration, 0s to 1h")]
SyncInterval = Annotated[float, BeforeValidator(duration(0.02, 10)), Kind("duration, 20ms to 10s")]
Rate = Annotated[
    int, BeforeValidator(whole(100_000, 10**10)), Kind("whole number, 100000 to 10000000000")
]
Command = Annotated[
    tuple[str, ...], BeforeValidator(_command), Kind("text, or a list: absolute path, arguments")
]
Password = Annotated[
    str,
    BeforeValidator(
        matching(r"[\x21-\x7e]+", "a password", "use printable characters without spaces", 64)
    ),
    Kind("text"),
]
CheckCommand = Annotated[
    tuple[str, ...],
    BeforeValidator(_command_if_any),
    Kind("text, or a list: absolute path, arguments"),
]
