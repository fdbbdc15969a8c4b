"""Gathers the certificates that a balancer depends on, and when they expire."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.errors import SteelyardError
from agent.pem import certificates, revocations
from lbctl.doctor import gather_tier
from lbctl.doctor.facts import Certificate, CertificateUse
from lbctl.environment import Agent

_MOST_BACKENDS = 10_000


def gather(config: Mapping[str, Any], agent: Agent | None) -> tuple[Certificate, ...]:
    """Return the certificates that the configuration names and, if an agent answers, those that its
    checks have seen.
    """
    etcd = (config.get("fleet") or {}).get("etcd") or {}
    page, api = config.get("status_page") or {}, config.get("api") or {}
    named = (
        (CertificateUse.PAGE, "the status page", page.get("certificate")),
        (CertificateUse.API, "the API", api.get("certificate")),
        (CertificateUse.API_CA, "the CA of the API's clients", api.get("client_ca")),
        (CertificateUse.API_CRL, "the list of revoked clients of the API", api.get("crl_file")),
        (CertificateUse.STORE, "this balancer as a client of etcd", etcd.get("cert_file")),
        (CertificateUse.STORE_CA, "the CA of etcd", etcd.get("ca_file")),
    )
    ours = (_of_file(use, f"{what} ({path})", Path(path)) for use, what, path in named if path)
    return (
        *ours,
        *(_backends(config, agent) if agent is not None else ()),
        *tiers(gather_tier.FILE),
    )


def tiers(path: Path) -> Iterator[Certificate]:
    """Yield the certificates of the tier whose file this is, if there is one."""
    if not path.exists():
        return
    from agent.tier import certificates as folder  # not at the top: few hosts have a tier
    from agent.tier.settings import load

    try:
        found = folder.read(load(path).certificates, math.inf)
    except SteelyardError as error:
        denied = isinstance(error.__cause__, PermissionError)
        yield Certificate(
            f"the tier ({path})", None, error.message, denied=denied, use=CertificateUse.TIER
        )
        return
    for each in found.certificates:
        yield Certificate(f"{each.name} of the tier", each.end_s, use=CertificateUse.TIER)
    for name in sorted(found.wrong):
        words = "it cannot be served"
        yield Certificate(f"{name} of the tier", None, words, use=CertificateUse.TIER)


def _of_file(use: CertificateUse, where: str, path: Path) -> Certificate:
    try:
        text = path.read_text(encoding="utf-8")
        match use:
            case CertificateUse.API_CRL:
                until, common_name = min(revocations(text)), ""
            case CertificateUse.STORE_CA | CertificateUse.API_CA:
                # While a CA is replaced, the file has the old one and the new one.
                until, common_name = max(certificates(text))
            case _:
                until, common_name = next(certificates(text))
    except PermissionError:
        return Certificate(where, None, "you cannot read it", denied=True, use=use)
    except OSError as error:
        return Certificate(where, None, error.strerror or str(error), use=use)
    except ValueError as error:
        return Certificate(where, None, str(error), use=use)
    return Certificate(where, until, use=use, common_name=common_name)


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
                yield Certificate(where, end, use=CertificateUse.SERVER)
