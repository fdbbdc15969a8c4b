"""Decides whom the status page is shown to. Pure."""

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
    """What somebody who asks is told."""

    WELCOME = "welcome"
    WHO_ARE_YOU = "who are you"
    NOT_IT = "not it"
    OTHER_SITE = "other site"
    OTHER_HOST = "other host"


def answer(headers: Mapping[str, str], token: bytes | None) -> Answer:
    """For a request with these headers.

    A page of another site that the operator happens to look at can make the browser ask us: then
    Sec-Fetch-Site says so (W3C, Fetch Metadata Request Headers), or the site has had its own name
    lead to our address (DNS rebinding), and Host has that name. With a token the latter is no
    matter: browsers give it to the host that it was typed for.
    """
    if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return Answer.OTHER_SITE
    if token is None:
        return Answer.WELCOME if _is_address(headers.get("Host", "")) else Answer.OTHER_HOST
    given = _token(headers.get("Authorization", ""))
    if given is None:
        return Answer.WHO_ARE_YOU
    # Digests are of one length: the time that comparing takes tells nothing of the token's.
    same = hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(token).digest())
    return Answer.WELCOME if same else Answer.NOT_IT


def _is_address(host: str) -> bool:
    """Whether it is an address, or this host's own name for itself; no name of anybody's."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


def _token(authorization: str) -> bytes | None:
    """The token of an Authorization header: of Basic (RFC 7617) the password, or of Bearer (RFC
    6750). None: there is none.
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
