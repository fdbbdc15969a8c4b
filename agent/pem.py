"""Reads from certificates and lists of revoked ones, in PEM, when they end.

The standard library reads certificates only from connections.
"""

from __future__ import annotations

import base64
import math
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

_PEM = r"-----BEGIN {0}-----(.+?)-----END {0}-----"  # RFC 7468
_INTEGER, _SEQUENCE, _VERSION = 0x02, 0x30, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_COMMON_NAME = bytes((0x55, 0x04, 0x03))  # OID 2.5.4.3
_BEFORE_VALIDITY = 3  # serial number, algorithm, issuer; a version may precede them


def certificates(pem: str) -> Iterator[tuple[float, str]]:
    """Return for each certificate in a file when it expires, in seconds since the epoch, and its
    subject's common name; empty: it has none.

    Raises ValueError if there is no certificate.
    """
    return _read(pem, "CERTIFICATE", "certificate", _end_and_name)


def revocations(pem: str) -> Iterator[float]:
    """Return for each list of revoked certificates in a file when the next one is due, in seconds
    since the epoch; infinity: that is not said.

    Raises ValueError if there is no list.
    """
    return _read(pem, "X509 CRL", "list of revoked certificates", _next_update)


def pem_problem(error: OSError | ValueError) -> str:
    """Return in words why OpenSSL, or the system, could not take a file."""
    if isinstance(error, ssl.SSLError):
        return (getattr(error, "reason", None) or "it is not PEM").lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error)


def _read[T](pem: str, label: str, what: str, read: Callable[[bytes], T]) -> Iterator[T]:
    """Yield what ``read`` finds in the DER of each block with this label."""
    found = re.findall(_PEM.format(label), pem, re.DOTALL | re.ASCII)
    if not found:
        raise ValueError(f"there is no {what} in it")
    for text in found:
        try:
            yield read(base64.b64decode(text))
        except (ValueError, IndexError) as error:
            raise ValueError(f"what is in it is no {what}") from error


def _next_update(der: bytes) -> float:
    """Return ``nextUpdate``: RFC 5280, section 5.1, has it behind algorithm, issuer and
    ``thisUpdate`` in the signed part; a version may precede them.
    """
    _, whole, _ = _element(der)
    _, signed, _ = _element(whole)
    kind, _, rest = _element(signed)
    if kind == _INTEGER:
        _, _, rest = _element(rest)
    _, _, rest = _element(rest)
    kind, _, rest = _element(rest)
    if kind not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError(f"element {kind:#x} in the place of thisUpdate")
    if not rest or rest[0] not in (_UTC_TIME, _GENERALIZED_TIME):
        return math.inf
    kind, text, _ = _element(rest)
    return _time(kind, text)


def _end_and_name(der: bytes) -> tuple[float, str]:
    """Return ``notAfter`` and the common name: RFC 5280, section 4.1, has ``validity`` and
    ``subject`` as the fifth and the sixth field of the signed part.
    """
    _, certificate, _ = _element(der)
    _, signed, _ = _element(certificate)
    kind, _, rest = _element(signed)
    if kind != _VERSION:
        rest = signed
    for _ in range(_BEFORE_VALIDITY):
        _, _, rest = _element(rest)
    kind, validity, rest = _element(rest)
    if kind != _SEQUENCE:
        raise ValueError(f"element {kind:#x} in the place of validity")
    _, subject, _ = _element(rest)
    return _not_after(validity), _common_name(subject)


def _not_after(validity: bytes) -> float:
    _, _, rest = _element(validity)
    kind, text, _ = _element(rest)
    return _time(kind, text)


def _time(kind: int, text: bytes) -> float:
    # %y: 69 and above mean 19.., for UTCTime 50 and above; no certificate of today ends there.
    form = "%y%m%d%H%M%SZ" if kind == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode(), form).replace(tzinfo=UTC).timestamp()


def _common_name(subject: bytes) -> str:
    """Return the common name in a subject, which is a list of sets of pairs."""
    for names in _elements(subject):
        for pair in _elements(names):
            oid, value = _elements(pair)
            if oid == _COMMON_NAME:
                return value.decode("utf-8", "replace")
    return ""


def _elements(data: bytes) -> Iterator[bytes]:
    """Yield the content of each DER element."""
    while data:
        _, content, data = _element(data)
        yield content


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return kind and content of the first DER element, and the bytes after it."""
    kind, length, at = data[0], data[1], 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(data[at : at + size]), at + size
    if at + length > len(data):
        raise ValueError("cut off")
    return kind, data[at : at + length], data[at + length :]
