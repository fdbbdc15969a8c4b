"""The API over TLS beside a real agent: lbctl on another host, with certificates."""

from __future__ import annotations

import json
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbctl.lab import processes
from tests.netns.site import Site, site, wait_until
from tests.pki import Authority, Pair

PORT = 9443
USER = pwd.getpwnam("games")  # a user that every Debian and Ubuntu has

# The clone may lie where only root can read, so all is imported before.
SCRIPT = """
import asyncio, os, sys
from pathlib import Path
import agent.remote.run
from agent.logs import LogFormat, LogLevel, configure
import aiohttp.connector, aiohttp.client_reqrep, agent.api.client
uid, gid = map(int, sys.argv[2:])
os.setgroups([]), os.setgid(gid), os.setuid(uid)
configure(LogLevel("info"), LogFormat("json"))
asyncio.run(agent.remote.run.run(Path(sys.argv[1])))
"""


class Remote:
    """`lb-agent api` in front of a lab's agent, and lbctl at the client's host."""

    def __init__(self, lab: Site, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.authority = Authority(folder / "authority")
        address = str(lab.balancer.ipv4)
        self.server = self.authority.issue("server", "/CN=lb1", f"subjectAltName=IP:{address}")
        self.server.key.chmod(0o640)
        for path in (self.server.key, self.server.certificate, self.authority.certificate):
            subprocess.run(["chgrp", str(USER.pw_gid), path], check=True)
        self.pairs = {
            name: self.authority.issue(name, f"/CN={name}") for name in ("alice", "ops", "eve")
        }
        self.at = f"{address}:{PORT}"

    def settings(self) -> dict[str, Any]:
        return {
            "listen": self.at,
            "certificate": str(self.server.certificate),
            "key_file": str(self.server.key),
            "client_ca": str(self.authority.certificate),
            "crl_file": str(self.authority.revoked()),
            "user": USER.pw_name,
            "roles": {"viewer": ["alice"], "operator": ["ops"]},
        }

    def start(self) -> None:
        socket = str(self.lab.lab.socket(self.lab.balancer))
        command = [sys.executable, "-c", SCRIPT, socket, str(USER.pw_uid), str(USER.pw_gid)]
        processes.start(self.lab.lab.run_dir, "api", self.lab.balancer.namespace, command)

    def lbctl(self, name: str, *words: str) -> Any:
        """Run lbctl at the client's host with a certificate."""
        pair: Pair = self.pairs[name]
        program = processes.program("lbctl", "lbctl.main")
        where = ("--server", self.at, "--cert", str(pair.certificate), "--key", str(pair.key))
        ca = ("--ca", str(self.authority.certificate))
        return self.lab.run("client", *program, *where, *ca, *words)

    def asked(self, *headers: str) -> Any:
        """Ask the socket directly, as the user of `lb-agent api` or another one."""
        socket = str(self.lab.lab.socket(self.lab.balancer))
        curl = ["curl", "-s", "--unix-socket", socket]
        for header in headers:
            curl += ["-H", header]
        return curl


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    with site(name="st-tls", backends=2) as lab:
        # Not below pytest's own folder: any other pytest of this host closes that to others.
        folder = lab.lab.run_dir / "tls"
        folder.mkdir(mode=0o755)
        lab.lab.run_dir.chmod(0o755)
        made = Remote(lab, folder)
        lab.reload(lab.config() | {"api": made.settings()})
        made.start()
        wait_until("it serves", lambda: made.lbctl("alice", "status").returncode == 0)
        yield made


def drained(lab: Site) -> bool:
    return bool(lab.backend("web", "be1")["admin_state"] == "drain")


def test_a_certificate_has_its_role_and_the_audit_log_has_its_name(remote: Remote) -> None:
    lab = remote.lab
    shown = remote.lbctl("alice", "auth", "whoami").stdout
    assert "certificate alice, from " in shown
    assert "viewer" in shown
    refused = remote.lbctl("alice", "backend", "drain", "web/be1")
    assert refused.returncode == 1
    assert "certificate alice is a viewer, and this needs an operator" in refused.stderr
    assert not drained(lab)
    assert remote.lbctl("ops", "backend", "drain", "web/be1", "-m", "a fan").returncode == 0
    assert drained(lab)
    assert remote.lbctl("ops", "backend", "enable", "web/be1").returncode == 0
    nobody = remote.lbctl("eve", "status")
    assert nobody.returncode == 1
    assert "the certificate eve has no role" in nobody.stderr

    orders = [r for r in lab.get("/v1/audit")["records"] if r.get("by") == "certificate ops"]
    client = lab.lab.node("client").ipv4
    assert {r["source"] for r in orders} == {f"TLS, from {client}"}
    assert any(r["request"].get("message") == "a fan" for r in orders)
    versions = lab.get("/v1/history")["versions"]
    assert any(v["who"] == "certificate ops" and v["message"] == "a fan" for v in versions)


def test_only_its_user_and_root_may_name_a_certificate(remote: Remote) -> None:
    """And root by that gives up rights; the user itself may only read."""
    lab = remote.lab
    named = "Steelyard-Certificate: ops"

    def told(user: int | None, *headers: str, path: str = "/v1/whoami") -> Any:
        as_user = [] if user is None else ["setpriv", "--reuid", str(user), "--regid",
                                           str(USER.pw_gid), "--clear-groups"]  # fmt: skip
        done = lab.run(lab.balancer.name, *as_user, *remote.asked(*headers), f"http://agent{path}")
        return json.loads(done.stdout)

    assert told(USER.pw_uid)["role"] == "viewer"
    assert told(USER.pw_uid, named)["role"] == "operator"
    assert told(None, named)["role"] == "operator"
    assert told(None)["role"] == "admin"
    # The socket lets the user's group in, and the agent nobody else in it.
    other = told(54321, named)
    assert "may not send requests for others" in other["error"]["message"]
    assert "may not use the API" in told(54321)["error"]["message"]


def test_a_revoked_certificate_is_out_and_another_server_is_not_believed(remote: Remote) -> None:
    remote.authority.revoked(remote.pairs["alice"])
    log = remote.lab.lab.run_dir / "api.log"

    def is_refused() -> bool:
        returncode = remote.lbctl("alice", "status").returncode
        return returncode == 3 and "certificate revoked" in log.read_text()

    wait_until("it is refused", is_refused)
    assert remote.lbctl("ops", "status").returncode == 0
    other = Authority(remote.folder / "other")
    pair = remote.pairs["ops"]
    program = processes.program("lbctl", "lbctl.main")
    done = remote.lab.run(
        "client", *program, "--server", remote.at, "--cert", str(pair.certificate),
        "--key", str(pair.key), "--ca", str(other.certificate), "status",
    )  # fmt: skip
    assert done.returncode == 3
    assert "the server's certificate is refused" in done.stderr


def test_it_goes_on_while_the_agent_is_away_and_ends_with_the_setting(remote: Remote) -> None:
    lab = remote.lab
    lab.stop_agent(15)
    away = remote.lbctl("ops", "status")
    assert away.returncode == 3
    assert "the agent of this balancer does not answer" in away.stderr
    lab.start_agent()
    wait_until("it answers again", lambda: remote.lbctl("ops", "status").returncode == 0)
    document = lab.config()
    lab.reload({key: value for key, value in document.items() if key != "api"})
    wait_until("nothing listens", lambda: "nothing listens" in remote.lbctl("ops", "status").stderr)
    lab.reload(document)
    wait_until("it serves again", lambda: remote.lbctl("ops", "status").returncode == 0)


def test_what_runs_as_that_user_has_no_rights(remote: Remote) -> None:
    pid = processes.pid_of(remote.lab.lab.run_dir, "api")
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(USER.pw_uid)] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
