"""Judges a balancer's place in its fleet: the store, what it needs, and what the agent reports."""

from __future__ import annotations

from collections.abc import Iterator

from agent.humanise import plural
from lbctl.doctor.facts import CertificateUse, Facts, Finding, FleetFacts, Question, Verdict

_REACH = "etcdctl --endpoints {} endpoint health; a firewall, or fleet.etcd.endpoints"
_TLS = "fleet.etcd: ca_file, cert_file and key_file; the names in etcd's certificate"


def fleet(facts: Facts, _ask: Question) -> Iterator[Finding]:
    """Report everything about the fleet; nothing if none is configured."""
    found = facts.fleet
    if found is None:
        return
    yield from _membership(facts)
    yield from _store(found)
    yield from _secrets(found)
    yield from _common_name(found, facts)


def _membership(facts: Facts) -> Iterator[Finding]:
    """Check that the running agent follows its fleet."""
    standing = (facts.agent.status or {}).get("fleet")
    if not standing:
        return
    if not standing["problem"]:
        text = f"{standing['name']}: {standing['node']} runs version {standing['version']}"
        yield Finding("fleet", Verdict.OK, text)
        return
    # Somebody froze it on purpose, so nothing is broken.
    is_frozen = standing["frozen"] is not None and standing["store_away_s"] is None
    yield Finding(
        "fleet",
        Verdict.WARNING if is_frozen else Verdict.PROBLEM,
        standing["problem"],
        "lbctl fleet thaw" if is_frozen else "lbctl fleet status",
    )


def _store(found: FleetFacts) -> Iterator[Finding]:
    """Check that the members of etcd can be reached from here, and are healthy."""
    if found.tls_problem:
        yield Finding(
            "fleet store",
            Verdict.UNKNOWN if found.tls_denied else Verdict.PROBLEM,
            f"no member can be asked, because the files for TLS cannot be used:"
            f" {found.tls_problem}",
            "sudo lbctl doctor"
            if found.tls_denied
            else "fleet.etcd: ca_file, cert_file and key_file, in PEM and without a password",
        )
        return
    away = [each for each in found.members if each.problem]
    # With one member the fleet goes on: it passes requests to the others.
    verdict = Verdict.PROBLEM if len(away) == len(found.members) else Verdict.WARNING
    for each in away:
        fix = _TLS if each.is_tls else _REACH.format(each.url)
        yield Finding("fleet store", verdict, f"{each.url}: {each.problem}", fix)
    if not away:
        number = plural(len(found.members), "member")
        yield Finding("fleet store", Verdict.OK, f"etcd answers, {number} of it")


def _secrets(found: FleetFacts) -> Iterator[Finding]:
    """Check that nobody else can read the password and the private key."""
    for each in found.secrets:
        if each.denied:
            yield Finding("fleet secrets", Verdict.UNKNOWN, each.problem, "sudo lbctl doctor")
        else:
            verdict = Verdict.WARNING if each.works else Verdict.PROBLEM
            yield Finding("fleet secrets", verdict, each.problem, each.remedy)


def _common_name(found: FleetFacts, facts: Facts) -> Iterator[Finding]:
    """Check that the client certificate has no common name, which etcd takes for a user's name.

    etcd refuses it on its JSON interface while its authentication is on: "CommonName of client
    sending a request against gateway will be ignored".
    """
    for each in facts.agent.certificates:
        if each.use is CertificateUse.STORE and each.common_name:
            now = "refuses it" if found.has_user else "refuses it once its authentication is on"
            yield Finding(
                "fleet certificate",
                Verdict.PROBLEM if found.has_user else Verdict.WARNING,
                f"the certificate of {each.where} has the common name {each.common_name}; on the"
                f" interface that the agent uses, etcd {now}",
                "issue one without a common name, such as with the subject /O=steelyard",
            )
