"""The doctor on the running agent: its rights, its release, its tables, and certificates."""

from __future__ import annotations

import base64
import dataclasses
import math
import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from lbctl.doctor import certificate_checks, gather_agent, gather_certificates
from lbctl.doctor.checks import examine
from lbctl.doctor.facts import (
    Certificate,
    CertificateUse,
    FailoverFacts,
    Installed,
    InstalledUnit,
    Question,
    Role,
    TierFacts,
    Verdict,
)
from tests.cli.doctor_facts import HOST, PROCESS, RUNNING, STATUS, facts, verdicts
from tests.cli.test_doctor_failover import STANDING, configured
from tests.pki import Authority, self_signed

DAY_S = 86_400
NOW = 1_800_000_000.0
STARTED = "2026-01-01T00:00:00.000Z"
STARTED_S = 1_767_225_600.0


def running(status=None, **changed):
    return facts(agent=dataclasses.replace(RUNNING, status=status or STATUS, **changed))


def process(host=HOST, **changed):
    made = dataclasses.replace(RUNNING, process=dataclasses.replace(PROCESS, **changed))
    return facts(host=host, agent=made)


def plane(**more):
    return running(STATUS | {"dataplane": STATUS["dataplane"] | more})


def flow_table(share):
    return plane(flow_table={"slots": 1024, "used_share": share})


def nat_ports(*used, said=()):
    rows = [
        {"source": f"10.0.0.{n}", "server": "10.0.0.21:80 tcp", "used_ports": count, "ports": 100}
        for n, count in enumerate(used)
    ]
    return plane(nat_ports=rows, nat_problems=list(said))


def lists(nodes, **changed):
    return running(guard={"problem": "", "nodes": nodes, "nodes_total": 100} | changed)


def certified(*certificates):
    return dataclasses.replace(running(certificates=certificates), now=NOW)


def tiered(**fields):
    return dataclasses.replace(running(), tier=TierFacts(**fields))


def release(version="0.1.0", written=0.0, **changed):
    status = STATUS | {"agent": STATUS["agent"] | {"started_at": STARTED}}
    made = running(status, process=dataclasses.replace(PROCESS, **changed))
    return dataclasses.replace(made, installed=Installed(version, written))


OLD_KERNEL = dataclasses.replace(HOST, kernel=(5, 10))
NO_RAW = PROCESS.capabilities - {"CAP_NET_RAW"}
IPC_LOCK = PROCESS.capabilities | {"CAP_IPC_LOCK"}
ONLY_BPF = frozenset({"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF"})


@pytest.mark.parametrize(
    ("found", "check", "verdict", "says"),
    [
        (process(open_files=1024), "open files", "warning", "LimitNOFILE=65536"),
        (process(capabilities=NO_RAW), "agent rights", "warning", "--cap-add NET_RAW"),
        (
            process(OLD_KERNEL, locked_memory=65_536.0),
            "agent rights",
            "warning",
            "LimitMEMLOCK=infinity",
        ),
        (flow_table(0.8), "flow table", "warning", "tables: {flows: 2048}"),
        (nat_ports(90, 80), "fullnat ports", "warning", "170 of 200 source ports"),
        (nat_ports(*[0] * 33), "fullnat ports", "warning", "tables: {nat_blocks: 33}"),
        (lists(51), "blocks and lists", "warning", "tables: {guard_nodes: 262144}"),
        (release("0.2.0"), "release", "warning", "version 0.1.0, and 0.2.0 is installed"),
        (release(written=STARTED_S + 1), "release", "warning", "systemctl restart lb-agent"),
        (
            certified(Certificate("the status page", NOW - DAY_S)),
            "certificate",
            "problem",
            "of the status page: ended 1d00h ago",
        ),
        (
            certified(Certificate("the status page", NOW + 13 * DAY_S)),
            "certificate",
            "warning",
            "certbot renew",
        ),
        (
            certified(
                *(
                    Certificate(f"a/{n}", NOW + n * DAY_S, use=CertificateUse.SERVER)
                    for n in range(1, 6)
                )
            ),
            "certificate",
            "warning",
            "of a/1, a/2, a/3 and 2 more: ends in 1d00h (the first)",
        ),
        (
            certified(Certificate("the page", None, "you cannot read it", denied=True)),
            "certificate",
            "unknown",
            "sudo lbctl doctor",
        ),
        (
            certified(Certificate("the page", None, "No such file or directory")),
            "certificate",
            "problem",
            "the page: No such file or directory",
        ),
        (
            certified(Certificate("the CA of etcd", NOW + 29 * DAY_S, use=CertificateUse.STORE_CA)),
            "certificate",
            "warning",
            "of the CA of etcd: ends in 29d00h; add the new CA's certificate to the file",
        ),
        (
            certified(Certificate("us", NOW - DAY_S, use=CertificateUse.STORE)),
            "certificate",
            "problem",
            "of us: ended 1d00h ago; issue a new one, without a common name",
        ),
        (
            certified(Certificate("us", None, "no PEM", use=CertificateUse.STORE)),
            "certificate",
            "problem",
            "us: no PEM; fleet.etcd.cert_file",
        ),
        (
            certified(Certificate("the list", NOW - DAY_S, use=CertificateUse.API_CRL)),
            "certificate",
            "problem",
            "of the list: ended 1d00h ago; have the CA issue a new list",
        ),
        (
            certified(Certificate("the list", NOW + DAY_S / 4, use=CertificateUse.API_CRL)),
            "certificate",
            "warning",
            "of the list: ends in 6h00m; have the CA issue a new list",
        ),
        (tiered(), "tier", "problem", "systemctl start lb-agent-tier-proxy"),
        (
            tiered(problem="it does not answer", remedy="start it"),
            "tier",
            "problem",
            "it does not answer; start it",
        ),
        (
            tiered(problem="it does not answer", denied=True),
            "tier",
            "unknown",
            "sudo lbctl doctor",
        ),
        (
            tiered(connections=3, problems=("chat.pem: key values mismatch",)),
            "tier",
            "problem",
            "chat.pem: key values mismatch; lbctl tier status",
        ),
    ],
)
def test_what_is_wrong_with_the_agent_is_named_with_its_fix(found, check, verdict, says):
    finding = verdicts(found)[check]
    assert finding.verdict.value == verdict
    assert says in f"{finding.message}; {finding.fix}"


@pytest.mark.parametrize(
    "found",
    [
        process(OLD_KERNEL),
        process(locked_memory=65_536.0),  # of a kernel that counts no maps
        process(
            OLD_KERNEL, locked_memory=1.0, capabilities=PROCESS.capabilities | {"CAP_IPC_LOCK"}
        ),
        process(capabilities=None),
        flow_table(0.79),
        nat_ports(79, 80),
        nat_ports(90, said=["90 of 100 source ports towards 10.0.0.21:80 tcp are in use"]),
        lists(50),
        lists(90, problem="they need 120 nodes"),  # the agent says it itself
        running(guard={}),
        release(written=STARTED_S - 1),
        release(written=STARTED_S + 1, same_python=False),
        certified(Certificate("the status page", NOW + 15 * DAY_S)),
        certified(Certificate("us", NOW + 31 * DAY_S, use=CertificateUse.STORE)),
        certified(),
        tiered(connections=0),
    ],
)
def test_what_is_well_is_no_warning_of_its_own(found):
    own = {"agent rights", "flow table", "fullnat ports", "blocks and lists", "release"}
    assert not verdicts(found).keys() & (own | {"certificate", "tier"})


def test_each_right_that_is_missing_is_named():
    fixes = [
        finding.fix
        for finding in verdicts_of(process(capabilities=ONLY_BPF))
        if finding.check == "agent rights"
    ]
    assert [fix.rpartition(" ")[2] for fix in fixes] == ["PERFMON", "SYS_ADMIN"]


def verdicts_of(found):
    ask = Question(Role.BALANCER, "eth0")
    return [finding for finding in examine(found, ask) if finding.verdict is not Verdict.OK]


def test_a_device_without_carrier_is_told_once():
    found = plane(link_problems=["eth0.7 has no carrier", "eth0 is down"])
    told = [finding.message for finding in verdicts_of(found)]
    assert told == ["next hops: eth0.7 has no carrier"]


def test_a_unit_that_is_not_the_shipped_one_is_named(tmp_path):
    package, installed = tmp_path / "agent", tmp_path / "system"
    (package / "_units").mkdir(parents=True)
    installed.mkdir()
    for name in ("lb-agent.service", "lb-agent-node.service", "lb-agent-failover.service"):
        (package / "_units" / name).write_text("[Unit]\n")
    (installed / "lb-agent.service").write_text("[Unit]\nLimitNOFILE=1\n")
    (installed / "lb-agent-failover.service").write_text("[Unit]\n")
    units = gather_agent.units([installed, tmp_path], package)
    assert units == (
        InstalledUnit(str(installed / "lb-agent-failover.service"), as_shipped=True),
        InstalledUnit(str(installed / "lb-agent.service"), as_shipped=False),
    )
    finding = verdicts(dataclasses.replace(facts(), units=units))["unit"]
    assert finding.verdict is Verdict.WARNING
    assert finding.message.startswith(f"{installed}/lb-agent.service is not")
    assert finding.fix.endswith("then deploy/setup.sh --service, and systemctl restart lb-agent")


@pytest.mark.parametrize(
    ("unit", "fix"),
    [
        (InstalledUnit("/usr/lib/systemd/system/lb-agent.service", False), "apt-get install"),
        (
            InstalledUnit("/etc/systemd/system/lb-agent.service", False, "/usr/lib/…"),
            "rm /etc/systemd/system/lb-agent.service, which hides the package's",
        ),
    ],
)
def test_a_unit_of_the_package_comes_back_by_apt(unit: InstalledUnit, fix: str):
    finding = verdicts(dataclasses.replace(facts(), units=(unit,)))["unit"]
    assert fix in finding.fix


def test_units_of_a_checkout_and_what_they_hide_are_found(tmp_path):
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    for folder, unit in (
        (etc, "lb-agent.service"), (lib, "lb-agent.service"), (lib, "lb-agent-node.service"),
    ):  # fmt: skip
        folder.mkdir(exist_ok=True)
        (folder / unit).write_text("other")
    assert gather_agent.units([etc, lib]) == (
        InstalledUnit(str(lib / "lb-agent-node.service"), as_shipped=False),
        InstalledUnit(
            str(etc / "lb-agent.service"), as_shipped=False, hides=str(lib / "lb-agent.service")
        ),
    )


def test_a_failover_process_of_another_release_is_named():
    old = dataclasses.replace(STANDING, version="0.0.9")
    made = dataclasses.replace(release(), failover=FailoverFacts(configured(), old))
    finding = verdicts(made)["release"]
    assert "version 0.0.9, and 0.1.0 is installed" in finding.message
    assert "lb-agent-failover" in finding.fix


def test_a_process_is_read_from_its_folder(tmp_path):
    found = gather_agent.process_at(tmp_path)
    assert (found.open_files, found.locked_memory, found.capabilities) == (None, None, None)
    (tmp_path / "limits").write_text(
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max open files            1024                 524288               files     \n"
        "Max locked memory         unlimited            unlimited            bytes     \n"
    )
    (tmp_path / "status").write_text("Name:\tlb-agent\nCapEff:\t000000c000003001\n")
    (tmp_path / "cmdline").write_text("/elsewhere/bin/python\0/usr/local/bin/lb-agent\0run\0")
    found = gather_agent.process_at(tmp_path)
    assert (found.open_files, found.locked_memory) == (1024, float("inf"))
    assert found.capabilities == {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"}
    assert not found.same_python


def test_this_process_runs_the_doctors_own_python():
    assert gather_agent.process_at(Path("/proc/self")).same_python


def test_the_release_that_is_installed_is_as_old_as_its_newest_file(tmp_path):
    for name, at in (("a.py", 100.0), ("sub/b.py", 300.0), ("sub/c.txt", 900.0)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (at, at))
    assert gather_agent.installed(tmp_path).written == 300.0


def certificate(path, days, subject="/CN=lb"):
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -utf8"
    made = subprocess.run(
        [
            *command.split(),
            "-multivalue-rdn",
            "-subj",
            subject,
            "-keyout",
            path.with_suffix(".key"),
            "-out",
            path,
            "-days",
            str(days),
        ],
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return told_by_openssl("x509", "-enddate", path)


def told_by_openssl(command, which, path):
    """A time in a file, in seconds since the epoch."""
    said = subprocess.run(
        ["openssl", command, "-noout", which, "-dateopt", "iso_8601", "-in", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return datetime.fromisoformat(said.stdout.strip().partition("=")[2]).timestamp()


@pytest.mark.parametrize("days", [30, 12_000])  # UTCTime, and GeneralizedTime from 2050 on
def test_the_end_of_a_certificate_is_what_openssl_says(tmp_path, days):
    path = tmp_path / "page.pem"
    end = certificate(path, days)
    assert list(gather_certificates.certificates(path.read_text())) == [(end, "lb")]


def test_of_a_chain_the_first_certificate_counts(tmp_path):
    first, second = tmp_path / "a.pem", tmp_path / "b.pem"
    end = certificate(first, 10)
    certificate(second, 20)
    first.write_text("text\n" + first.read_text() + second.read_text())
    (page,) = gather_certificates.gather({"status_page": {"certificate": str(first)}}, None)
    assert page.until == end


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no certificate in it"),
        ("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", "is no certificate"),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "is no certificate"),
    ],
)
def test_what_is_no_certificate_is_told(text, says):
    with pytest.raises(ValueError, match=says):
        list(gather_certificates.certificates(text))


def test_certificates_of_the_page_and_of_checked_servers_are_gathered(tmp_path):
    path = tmp_path / "page.pem"
    config = {
        "status_page": {"certificate": str(path)},
        "services": [
            {"name": "chat", "health": {"type": "https"}},
            {"name": "plain", "health": {"type": "http"}},
        ],
    }

    class Answers:
        def get(self, path, params=None):
            assert (path, params["service"]) == ("/v1/list/backends", "chat")
            row = {"service": "chat", "name": "gpu-1", "certificate_until": STARTED}
            return {"backends": [row, row | {"certificate_until": None}]}

    (missing,) = gather_certificates.gather(config, None)
    assert (missing.until, missing.problem) == (None, "No such file or directory")
    end = certificate(path, 10)
    page, server = gather_certificates.gather(config, Answers())
    assert (page.until, page.use) == (end, CertificateUse.PAGE)
    assert server == Certificate("chat/gpu-1", STARTED_S, use=CertificateUse.SERVER)


def test_certificates_of_the_hosts_tier_are_gathered(tmp_path):
    folder, path = tmp_path / "tls", tmp_path / "tier.yaml"
    folder.mkdir()
    assert list(gather_certificates.tiers(path)) == []
    path.write_text(
        f"listen: [192.0.2.1:443]\nengines: 192.0.2.2:80\ncertificates: {tmp_path}/none\n"
    )
    (missing,) = gather_certificates.tiers(path)
    assert (missing.until, missing.use) == (None, CertificateUse.TIER)
    assert "cannot be read: No such file" in missing.problem
    path.write_text(path.read_text().replace("/none", "/tls"))
    pair = self_signed(folder, "chat", "chat")
    pair.key.chmod(0o600)
    (folder / "half.crt").write_text("half")
    chat, half = gather_certificates.tiers(path)
    assert (chat.where, chat.use, half.where, half.until) == (
        "chat of the tier", CertificateUse.TIER, "half of the tier", None
    )  # fmt: skip
    assert chat.until is not None


def test_certificates_of_the_fleet_are_gathered_with_the_common_name_of_ours(tmp_path):
    ours, old, new = (tmp_path / f"{name}.pem" for name in ("ours", "old", "new"))
    ends = [certificate(path, days) for path, days in ((ours, 10), (old, 20), (new, 30))]
    # While a CA is replaced, both are in the file, in any order.
    old.write_text(new.read_text() + old.read_text())
    etcd = {"cert_file": str(ours), "ca_file": str(old)}
    client, ca = gather_certificates.gather({"fleet": {"name": "prod", "etcd": etcd}}, None)
    assert (client.use, client.until, client.common_name) == (CertificateUse.STORE, ends[0], "lb")
    assert (ca.use, ca.until) == (CertificateUse.STORE_CA, ends[2])
    (missing,) = gather_certificates.gather({"fleet": {"etcd": {"cert_file": "/none"}}}, None)
    assert (missing.use, missing.until) == (CertificateUse.STORE, None)


def test_certificates_of_the_api_and_its_list_are_gathered(tmp_path):
    ca = Authority(tmp_path / "ca")
    server = ca.issue("server", "/CN=lb1")
    settings = {
        "certificate": str(server.certificate),
        "client_ca": str(ca.certificate),
        "crl_file": str(ca.revoked(server)),
    }
    found = gather_certificates.gather({"api": settings}, None)
    assert [each.use for each in found] == [
        CertificateUse.API,
        CertificateUse.API_CA,
        CertificateUse.API_CRL,
    ]
    assert found[2].until == told_by_openssl("crl", "-nextupdate", settings["crl_file"])
    settings["crl_file"] = settings["client_ca"]
    wrong = gather_certificates.gather({"api": settings}, None)[2]
    assert (wrong.until, wrong.problem) == (None, "there is no list of revoked certificates in it")


@pytest.mark.parametrize("numbered", [False, True])  # a list with extensions says its version
def test_a_list_is_due_when_openssl_says(tmp_path, numbered):
    ca = Authority(tmp_path / "ca", numbered=numbered)
    path = ca.revoked(ca.issue("one", "/CN=one"), ca.issue("two", "/CN=two"))
    due = told_by_openssl("crl", "-nextupdate", path)
    assert list(gather_certificates.revocations(path.read_text())) == [due]


def der(kind, *parts):
    content = b"".join(parts)
    return bytes((kind, len(content))) + content


def crl(*signed):
    whole = base64.b64encode(der(0x30, der(0x30, *signed))).decode()
    return f"-----BEGIN X509 CRL-----\n{whole}\n-----END X509 CRL-----\n"


BEGINNING = (der(0x30), der(0x30), der(0x17, b"261202000000Z"))


def test_a_list_may_have_no_end(tmp_path):
    text = crl(*BEGINNING)
    assert list(gather_certificates.revocations(text)) == [math.inf]
    path = tmp_path / "crl.pem"
    path.write_text(text)
    found = gather_certificates.gather({"api": {"crl_file": str(path)}}, None)
    facts = certified(*found)
    assert not list(certificate_checks.certificates(facts, None))


@pytest.mark.parametrize(
    "text",
    [
        crl(),
        crl(der(0x30), der(0x30)),
        crl(der(0x30), der(0x30), der(0x30)),
        crl(*BEGINNING, b"\x17\x0d2612"),
        crl(*BEGINNING, der(0x17, b"tomorrow")),
        "-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----",
    ],
)
def test_what_is_no_list_is_told(text):
    with pytest.raises(ValueError, match="is no list of revoked certificates"):
        list(gather_certificates.revocations(text))


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("/CN=lb1", "lb1"),
        ("/C=DE/O=steelyard/CN=lb é", "lb é"),
        ("/O=CN/OU=x+CN=many", "many"),  # of several names in one set
        ("/O=steelyard", ""),
        ("/", ""),
    ],
)
def test_the_common_name_is_what_openssl_wrote(tmp_path, subject, name):
    path = tmp_path / "own.pem"
    certificate(path, 10, subject)
    ((_, found),) = gather_certificates.certificates(path.read_text())
    assert found == name
