"""Decides who may connect: which certificates are needed, and what a client is called by."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import ConfigError
from agent.files import read_private, stamp
from agent.pem import pem_problem

_KEY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the API is served, and with which files. ``crl_file`` None: nothing was revoked."""

    host: str
    port: int
    certificate: Path
    key_file: Path
    client_ca: Path
    crl_file: Path | None


def settings_of(answer: Mapping[str, Any]) -> Settings | None:
    """Return what GET /v1/api says; None: the API is not to be served."""
    match answer:
        case {
            "address": str(host),
            "port": int(port),
            "certificate": str(certificate),
            "key_file": str(key),
            "client_ca": str(authority),
            "crl_file": str() | None as revoked,
        }:
            crl = None if revoked is None else Path(revoked)
            return Settings(host, port, Path(certificate), Path(key), Path(authority), crl)
    return None


def written(settings: Settings) -> tuple[object, ...]:
    """Return what tells whether a file was replaced or written anew; None: it is not there."""
    files = (settings.certificate, settings.key_file, settings.client_ca, settings.crl_file)
    return tuple(stamp(path) for path in files if path is not None)


def context(settings: Settings) -> ssl.SSLContext:
    """Return what a server needs that lets in only clients with a certificate.

    Raises ConfigError if a file cannot be used.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    # A session that is resumed would not be checked against the list of revoked certificates.
    made.num_tickets = 0
    read_private(settings.key_file, "the API's key", _KEY_BYTES, make="ask for a new certificate")
    try:
        made.load_cert_chain(settings.certificate, settings.key_file, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"the API's certificate cannot be used: {pem_problem(error)}",
            where=str(settings.certificate),
            remedy="give the certificate with its chain as `api.certificate`, and its key, without "
            "a password, as `api.key_file`, both in PEM, and readable by the user `api.user`",
        ) from error
    _trust(made, settings.client_ca, "the authority of the clients' certificates", "client_ca")
    if settings.crl_file is not None:
        _trust(made, settings.crl_file, "the list of revoked certificates", "crl_file")
        made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return made


def _trust(made: ssl.SSLContext, path: Path, what: str, key: str) -> None:
    try:
        made.load_verify_locations(path)
    except OSError as error:
        raise ConfigError(
            f"{what} cannot be used: {pem_problem(error)}",
            where=str(path),
            remedy=f"give it as `api.{key}`, in PEM, and readable by the user `api.user`",
        ) from error


def name_of(certificate: Mapping[str, Any] | None) -> str | None:
    """Return the common name of a client's certificate; None: it has none, or several.

    ``certificate`` is what ``ssl.SSLSocket.getpeercert`` returns.
    """
    subject = (certificate or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if len(names) != 1 or not names[0] or not names[0].isprintable():
        return None
    return str(names[0])


def refusal(error: OSError) -> str:
    """Return why a handshake failed, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or "the handshake failed"
        return f"TLS: {reason.lower().replace('_', ' ')}"
    return error.strerror or str(error) or "it has left"
