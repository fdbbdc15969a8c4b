"""Decides which requests may see the status page. All functions are pure."""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

LEAST_TOKEN_BYTES = 16


class Answer(enum.Enum):
    """The decision about a request."""

    ALLOWED = "allowed"
    UNAUTHENTICATED = "unauthenticated"
    REJECTED = "rejected"
    OTHER_SITE = "other site"
    OTHER_HOST = "other host"


def answer(headers: Mapping[str, str], token: bytes | None) -> Answer:
    """Return the decision about a request with these headers.

    A page of another site that the operator visits can make the browser send us requests. Either
    Sec-Fetch-Site shows that (W3C, Fetch Metadata Request Headers), or the site lets its own name
    resolve to our address (DNS rebinding), and Host has that name. The latter does no harm if there
    is a token, because browsers send it only to the host for which it was entered.
    """
    if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return Answer.OTHER_SITE
    if token is None:
        return Answer.ALLOWED if _is_address(headers.get("Host", "")) else Answer.OTHER_HOST
    given = _token(headers.get("Authorization", ""))
    if given is None:
        return Answer.UNAUTHENTICATED
    # Digests have the same length, so the time of the comparison does not reveal the token's.
    same = hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(token).digest())
    return Answer.ALLOWED if same else Answer.REJECTED


def _is_address(host: str) -> bool:
    """Return whether a Host header has an address or ``localhost``, rather than any other name."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


def _token(authorization: str) -> bytes | None:
    """Return the token of an Authorization header, or None if it has none.

    With Basic (RFC 7617) it is the password, with Bearer (RFC 6750) the token.
    """
    scheme, _, rest = authorization.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip().encode(errors="replace")
        case "basic":
            try:
                decoded = base64.b64decode(rest.strip(), validate=True)
            except (binascii.Error, ValueError):
                return None
            return decoded.partition(b":")[2]
    return None
