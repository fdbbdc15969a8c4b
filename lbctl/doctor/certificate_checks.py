"""Judges certificates: the status page's, and those of servers that the health checks verify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.humanise import age
from lbctl.doctor.facts import Certificate, Facts, Finding, Question, Verdict

SOON_S = 14 * 86_400  # as for the health checks
_NAMED = 3


def certificates(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Report each certificate that has expired, expires soon or cannot be read."""
    found = facts.agent.certificates
    bad = False
    for each in found:
        if each.until is None:
            bad = True
            verdict = Verdict.UNKNOWN if each.denied else Verdict.PROBLEM
            fix = "sudo lbctl doctor" if each.denied else "status_page.certificate: a PEM file"
            yield Finding("certificate", verdict, f"{each.where}: {each.problem}", fix)
    for of_backends in (False, True):
        known = [(end, one) for one in found if one.backend is of_backends and (end := one.until)]
        ended = [each for each in known if each[0] <= facts.now]
        ending = [each for each in known if facts.now < each[0] < facts.now + SOON_S]
        bad = bad or bool(ended or ending)
        fix = (
            "renew it on the server, or health: {verify_tls: false}"
            if of_backends
            else "renew it in place (certbot renew); the agent takes a new file within a minute"
        )
        if ended:
            yield Finding("certificate", Verdict.PROBLEM, _expiry(ended, facts.now, "ended"), fix)
        if ending:
            yield Finding("certificate", Verdict.WARNING, _expiry(ending, facts.now, "ends"), fix)
    if found and not bad:
        soonest = min(one.until for one in found if one.until is not None)
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
