"""Judges certificates: the status page's, the API's, the fleet's, the tier's, and those that health
checks verify.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from agent.humanise import age
from lbctl.doctor.facts import (
    Certificate,
    CertificateUse,
    Facts,
    Finding,
    Question,
    Verdict,
)

_DAY_S = 86_400
_NAMED = 3
# How long before its end a certificate is reported. Those of servers: as by the health checks.
# Nothing renews those of the store by itself, and a new CA has to be brought to every member.
_SOON_S = {
    CertificateUse.PAGE: 14 * _DAY_S,
    CertificateUse.SERVER: 14 * _DAY_S,
    CertificateUse.STORE: 30 * _DAY_S,
    CertificateUse.STORE_CA: 30 * _DAY_S,
    CertificateUse.API: 14 * _DAY_S,
    CertificateUse.API_CA: 30 * _DAY_S,
    CertificateUse.API_CRL: _DAY_S // 2,  # often made anew every day
    CertificateUse.TIER: 14 * _DAY_S,
}
_RENEW = {
    CertificateUse.PAGE: "renew it in place (certbot renew); the agent takes a new file within a "
    "minute",
    CertificateUse.SERVER: "renew it on the server, or health: {verify_tls: false}",
    CertificateUse.STORE: "issue a new one, without a common name, and replace the file; the agent "
    "reads it again",
    CertificateUse.STORE_CA: "add the new CA's certificate to the file, then renew the "
    "certificates of etcd's members",
    CertificateUse.API: "replace it and its key; `lb-agent api` takes new files within seconds",
    CertificateUse.API_CA: "add the new CA's certificate to the file, then renew the clients' "
    "certificates: once it has ended, none that it signed is let in",
    CertificateUse.API_CRL: "have the CA issue a new list, and replace the file: once it has "
    "ended, nobody is let in",
    CertificateUse.TIER: "renew it in its folder (certbot renew); the tier takes it within seconds",
}
_CORRECT = {
    CertificateUse.PAGE: "status_page.certificate: a PEM file",
    CertificateUse.STORE: "fleet.etcd.cert_file: a PEM file",
    CertificateUse.STORE_CA: "fleet.etcd.ca_file: a PEM file",
    CertificateUse.API: "api.certificate: a PEM file",
    CertificateUse.API_CA: "api.client_ca: a PEM file",
    CertificateUse.API_CRL: "api.crl_file: a PEM file",
    CertificateUse.TIER: "lb-agent tier check",
}


def certificates(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Report each certificate that has expired, expires soon or cannot be read."""
    found = facts.agent.certificates
    bad = False
    for each in found:
        if each.until is None:
            bad = True
            verdict = Verdict.UNKNOWN if each.denied else Verdict.PROBLEM
            fix = "sudo lbctl doctor" if each.denied else _CORRECT[each.use]
            yield Finding("certificate", verdict, f"{each.where}: {each.problem}", fix)
    for use in CertificateUse:
        known = [(end, one) for one in found if one.use is use and (end := one.until)]
        ended = [each for each in known if each[0] <= facts.now]
        ending = [each for each in known if facts.now < each[0] < facts.now + _SOON_S[use]]
        bad = bad or bool(ended or ending)
        fix = _RENEW[use]
        if ended:
            yield Finding("certificate", Verdict.PROBLEM, _expiry(ended, facts.now, "ended"), fix)
        if ending:
            yield Finding("certificate", Verdict.WARNING, _expiry(ending, facts.now, "ends"), fix)
    ends = [one.until for one in found if one.until is not None and math.isfinite(one.until)]
    if ends and not bad:
        soonest = min(ends)
        yield Finding("certificate", Verdict.OK, f"the next one ends in {age(soonest - facts.now)}")


def _expiry(these: Sequence[tuple[float, Certificate]], now: float, verb: str) -> str:
    """Return the certificates that expire first, in words."""
    ordered = sorted(these, key=lambda each: each[0])
    named = ", ".join(one.where for _, one in ordered[:_NAMED])
    more = f" and {len(these) - _NAMED} more" if len(these) > _NAMED else ""
    distance = age(abs(ordered[0][0] - now))
    when = f"{distance} ago" if verb == "ended" else f"in {distance}"
    first = " (the first)" if len(these) > 1 else ""
    return f"of {named}{more}: {verb} {when}{first}"
