"""Reads the folder of a tier's certificates, and finds out which of them can be served.

HAProxy refuses its whole configuration for one file that is wrong. So it gets copies of those
that are right, and the others are problems with a name. One that has expired is served, as other
servers do: without it, clients would get no answer at all.
"""

from __future__ import annotations

import contextlib
import math
import re
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ConfigError
from agent.files import read_private, stamp
from agent.pem import certificates as ends_and_names
from agent.pem import pem_problem

MOST_CERTIFICATES = 10_000
_MOST_BYTES = 1 << 20
# Commands to HAProxy name the file, and end at a space.
_NAME = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9._*@-]{0,199}")
_MAKE = "ask your CA for one, or certbot"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that can be served.

    ``pem``: the chain and the key, as HAProxy takes them. ``end_s``: when the first certificate of
    the chain that expires does so, in seconds since the epoch.
    """

    name: str
    pem: bytes
    end_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """What is in the folder: the certificates, and what is wrong with the others.

    ``wrong``: the names of those that cannot be served.
    """

    certificates: tuple[Certificate, ...]
    problems: tuple[str, ...]
    wrong: frozenset[str] = frozenset()


def written(folder: Path) -> tuple[object, ...]:
    """Return what tells whether any file of a folder was written anew, without reading them."""
    try:
        found = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except OSError as error:
        return (error.errno,)
    inner = (each / name for each in found for name in ("fullchain.pem", "privkey.pem"))
    return tuple((str(each), stamp(each)) for each in (*found, *inner))


def read(folder: Path, now_s: float) -> Found:
    """Return what can be served of a folder. ``now_s``: seconds since the epoch.

    Raises ConfigError if the folder cannot be read.
    """
    try:
        names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    except OSError as error:
        raise ConfigError(
            f"the folder of certificates cannot be read: {error.strerror}", where=str(folder),
            remedy="name the folder that has them as `certificates`",
        ) from error  # fmt: skip
    certificates: dict[str, Certificate] = {}
    problems: list[str] = []
    wrong: set[str] = set()
    for each in names[:MOST_CERTIFICATES]:
        try:
            one = _certificate(folder / each)
        except ConfigError as error:
            problems.append(str(error).replace("\n  remedy", "; remedy"))
            wrong.add(_name_of(folder / each))
            continue
        if one is None:
            continue
        if one.name in certificates:
            problems.append(f"{folder / each}: there is another certificate {one.name}")
            continue
        certificates[one.name] = one
        if one.end_s <= now_s:
            problems.append(f"{folder / each}: the certificate has expired; remedy: {_MAKE}")
    return Found(
        tuple(certificates.values()), tuple(problems), frozenset(wrong - set(certificates))
    )


def kept(found: Found, copies: Path) -> tuple[Certificate, ...]:
    """Return what is to be served: for those that are wrong now, the copy that was served before.

    Without it, clients that ask for such a name would get a certificate of another.
    """
    before = []
    for name in sorted(found.wrong):
        path = copies / f"{name}.pem"
        with contextlib.suppress(OSError, ConfigError):
            before.append(checked(name, path.read_bytes(), str(path)))
    return (*found.certificates, *before)


def _name_of(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _certificate(path: Path) -> Certificate | None:
    """Return the certificate that a file or folder begins; None: it is something else."""
    if path.is_dir():
        chain, key = path / "fullchain.pem", path / "privkey.pem"
        if not chain.exists():
            return None
        name = _name_of(path)
    elif path.suffix in (".crt", ".pem"):
        beside = path.with_suffix(".key")
        chain, key, name = path, beside if beside.exists() else path, _name_of(path)
    else:
        return None
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:70]!r} cannot be a certificate's name", where=str(path),
            remedy="rename it: letters, digits, and . _ * @ -",
        )  # fmt: skip
    text = read_private(key, "the key of a certificate", _MOST_BYTES, make=_MAKE)
    if chain != key:
        text = _read(chain).rstrip() + b"\n" + text
    return checked(name, text, str(chain))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()[: _MOST_BYTES + 1]
    except OSError as error:
        raise ConfigError(
            f"it cannot be read: {error.strerror}", where=str(path), remedy=_MAKE
        ) from error


def checked(name: str, pem: bytes, where: str) -> Certificate:
    """Return a certificate, if its key fits. Raises ConfigError."""
    with tempfile.NamedTemporaryFile(prefix="steelyard-") as file:  # 0600; OpenSSL wants a path
        file.write(pem)
        file.flush()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file.name, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the certificate cannot be used: {pem_problem(error)}", where=where,
                remedy="give the certificate with its chain and its key, in PEM and without a "
                "password",
            ) from error  # fmt: skip
    try:
        end_s = min((end for end, _ in ends_and_names(pem.decode("ascii"))), default=math.inf)
    except ValueError as error:
        raise ConfigError(
            f"the certificate cannot be read: {error}", where=where, remedy=_MAKE
        ) from error
    return Certificate(name, pem, end_s)
