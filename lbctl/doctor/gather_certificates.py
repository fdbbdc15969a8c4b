"""Gathers the certificates that a balancer depends on, and when they expire."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.errors import SteelyardError
from lbctl.doctor.facts import Certificate
from lbctl.environment import Agent

_MOST_BACKENDS = 10_000
_FIRST_PEM = re.compile(
    r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL | re.ASCII
)
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17
_BEFORE_VALIDITY = 3  # serial number, algorithm, issuer; a version may precede them


def gather(config: Mapping[str, Any], agent: Agent | None) -> tuple[Certificate, ...]:
    """Return the status page's certificate and, if an agent answers, those that its checks have
    seen.
    """
    return (*_page(config), *(_backends(config, agent) if agent is not None else ()))


def _page(config: Mapping[str, Any]) -> Iterator[Certificate]:
    path = (config.get("status_page") or {}).get("certificate")
    if path is None:
        return
    where = f"the status page ({path})"
    try:
        yield Certificate(where, ends(Path(path).read_text(encoding="utf-8")))
    except PermissionError:
        yield Certificate(where, None, "you cannot read it", denied=True)
    except OSError as error:
        yield Certificate(where, None, error.strerror or str(error))
    except ValueError as error:
        yield Certificate(where, None, str(error))


def _backends(config: Mapping[str, Any], agent: Agent) -> Iterator[Certificate]:
    for service in config.get("services") or ():
        if (service.get("health") or {}).get("type") != "https":
            continue
        asked = {"service": service["name"], "limit": _MOST_BACKENDS}
        try:
            found = agent.get("/v1/list/backends", asked)["backends"]
        except SteelyardError:  # an older agent
            return
        for each in found:
            if until := each.get("certificate_until"):
                where = f"{each['service']}/{each['name']}"
                end = datetime.fromisoformat(until).timestamp()
                yield Certificate(where, end, backend=True)


def ends(pem: str) -> float:
    """Return when the first certificate of a file expires, in seconds since the epoch.

    Raises ValueError if there is none. The standard library reads certificates only from
    connections.
    """
    found = _FIRST_PEM.search(pem)
    if found is None:
        raise ValueError("there is no certificate in it")
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(found[0]))
    except (ValueError, IndexError) as error:
        raise ValueError("what is in it is no certificate") from error


def _not_after(der: bytes) -> float:
    """Return ``notAfter``: RFC 5280, section 4.1, has ``validity`` as the fifth field of the signed
    part.
    """
    _, certificate, _ = _element(der)
    _, signed, _ = _element(certificate)
    kind, _, rest = _element(signed)
    if kind != _VERSION:
        rest = signed
    for _ in range(_BEFORE_VALIDITY):
        _, _, rest = _element(rest)
    kind, validity, _ = _element(rest)
    if kind != _SEQUENCE:
        raise ValueError(f"element {kind:#x} in the place of validity")
    _, _, rest = _element(validity)
    kind, text, _ = _element(rest)
    # %y: 69 and above mean 19.., for UTCTime 50 and above; no certificate of today ends there.
    form = "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode(), form).replace(tzinfo=UTC).timestamp()


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return kind and content of the first DER element, and the bytes after it."""
    kind, length, at = data[0], data[1], 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(data[at : at + size]), at + size
    if at + length > len(data):
        raise ValueError("cut off")
    return kind, data[at : at + length], data[at + length :]
