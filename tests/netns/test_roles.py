"""Roles and the audit log of a real agent, with real users: no other kind can show what they may.

The users have numbers that nobody has, and groups that every Debian and Ubuntu has.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.api.client import ApiRefusedError
from lbctl.lab import processes
from tests.netns.site import Site, site, wait_until

VIEWERS, OPERATORS, ADMINS = "games", "operator", "staff"
ROLES = {"viewer": [VIEWERS], "operator": [OPERATORS], "admin": [ADMINS]}
USER = 54321

# A process that has imported all forks for each command, because that takes a tenth of the time and
# the clone may lie where only root can read. A first command, which only reads, imports the rest.
SCRIPT = """
import contextlib, importlib, io, json, os, sys, tempfile
from lbctl.main import COMMANDS, cli
import agent.api.client, agent.api.sentences, lbctl.layout, lbctl.changes, lbctl.wanted
import agent.state.auditlog, rich.console, rich.text, yaml
for each in COMMANDS:
    importlib.import_module(each.module)
socket, user = sys.argv[1], int(sys.argv[2])
with contextlib.redirect_stdout(io.StringIO()):
    cli(["--socket", socket, "backend", "list"], standalone_mode=False)

def run(groups, words):
    os.setgroups(groups), os.setgid(user), os.setuid(user)
    try:
        cli(["--socket", socket, *words], prog_name="lbctl")
    except SystemExit as ended:
        return ended.code or 0

for line in sys.stdin:
    groups, words = json.loads(line)
    files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    pid = os.fork()
    if not pid:
        code = 70
        try:
            for number, file in enumerate(files, 1):
                os.dup2(file.fileno(), number)
            code = run(groups, words)
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = [(file.seek(0), file.read())[1] for file in files]
    print(json.dumps([status, *said]), flush=True)
"""


class Users:
    """Runs lbctl as somebody in a group."""

    def __init__(self, lab: Site) -> None:
        socket = str(lab.lab.socket(lab.balancer))
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, socket, str(USER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def __call__(self, group: str | None, *words: str) -> subprocess.CompletedProcess[str]:
        groups = [] if group is None else [grp.getgrnam(group).gr_gid]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([groups, words]), file=self.process.stdin, flush=True)
        status, out, err = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(words, status, out, err)

    def done(self, group: str | None, *words: str) -> str:
        done = self(group, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def refused(self, group: str | None, *words: str) -> str:
        done = self(group, *words)
        assert done.returncode == 1, (done.stdout, done.stderr)
        return done.stderr


@pytest.fixture(scope="module")
def lab() -> Iterator[Site]:
    with site(name="st-roles", backends=2) as built:
        built.lab.run_dir.chmod(0o755)
        built.reload(built.config() | {"socket_roles": ROLES})
        yield built


@pytest.fixture(scope="module")
def anybody(lab: Site) -> Iterator[Users]:
    members = Users(lab)
    yield members
    members.end()


@pytest.fixture
def users(anybody: Users) -> Users:
    wait_until("the socket lets them in", lambda: anybody(VIEWERS, "status").returncode == 0)
    return anybody


def root(lab: Site, *words: str) -> Any:
    program = processes.program("lbctl", "lbctl.main")
    socket = str(lab.lab.socket(lab.balancer))
    return lab.run(lab.balancer.name, *program, "--socket", socket, *words)


def weights(lab: Site) -> dict[str, str]:
    return {b["name"]: b["admin_state"] for b in lab.get("/v1/services/web")["backends"]}


def orders(lab: Site) -> list[Any]:
    return [r for r in lab.get("/v1/audit", limit="10000")["records"] if r["kind"] == "order"]


def test_a_viewer_reads_and_is_refused_what_changes_anything(lab: Site, users: Users) -> None:
    assert "role      viewer" in users.done(VIEWERS, "auth", "whoami")
    for words in (["status"], ["flows"], ["events"], ["audit", "log"], ["backend", "list"]):
        users.done(VIEWERS, *words)
    assert "would be changed" in users.done(VIEWERS, "backend", "drain", "web/be1", "--dry-run")
    before = orders(lab)
    for words in (
        ["backend", "drain", "web/be1"],
        ["guard", "block", "198.51.100.7"],
        ["service", "remove", "web", "--yes"],
        ["reload"],
        ["trace"],
    ):
        error = users.refused(VIEWERS, *words)
        assert f"user {USER} (uid {USER}) is a viewer, and this needs an" in error
        assert f"ask a member of the group {OPERATORS} (operator), or of" in error or (
            f"ask a member of the group {ADMINS} (admin)" in error
        )
    assert "POST /v1/failover/promote: " in users.refused(VIEWERS, "failover", "promote")
    assert set(weights(lab).values()) == {"active"}
    assert orders(lab) == before


def test_who_has_no_role_cannot_even_connect(users: Users) -> None:
    for group in (None, "users"):
        done = users(group, "status")
        assert done.returncode == 3
        assert "permission denied" in done.stderr
        assert "socket_roles" in done.stderr


def test_an_operator_drains_and_an_admin_does_the_rest(lab: Site, users: Users) -> None:
    users.done(OPERATORS, "backend", "drain", "web/be1", "-m", "new driver")
    assert weights(lab)["be1"] == "drain"
    users.done(OPERATORS, "backend", "enable", "web/be1")
    users.done(OPERATORS, "guard", "block", "198.51.100.7", "--for", "1m", "--yes")
    users.done(OPERATORS, "guard", "unblock", "198.51.100.7")
    error = users.refused(OPERATORS, "service", "set", "web", "--scheduler", "round-robin")
    assert "is an operator, and this needs an admin" in error
    wanted = yaml.safe_load(users.done(ADMINS, "export", "--services-only"))
    wanted["services"][0]["scheduler"] = "round-robin"
    document = lab.lab.run_dir / "services.yaml"
    document.write_text(yaml.safe_dump(wanted))
    document.chmod(0o644)
    assert "an operator" in users.refused(OPERATORS, "apply", "-f", str(document), "--yes")
    users.done(ADMINS, "apply", "-f", str(document), "--yes")
    assert lab.get("/v1/services/web")["scheduler"] == "round-robin"
    users.done(ADMINS, "history", "rollback", "1", "--yes")

    table = root(lab, "audit", "log").stdout
    drain = next(line for line in table.splitlines() if "new driver" in line)
    assert f"user {USER}" in drain
    assert "operator" in drain
    assert "change backend web/be1: state active → drain" in drain
    assert any("denied" in line for line in table.splitlines())


def test_a_reload_changes_roles_without_a_restart(lab: Site, users: Users) -> None:
    document, pid = lab.config(), lab.agent_pid()
    lab.reload(document | {"socket_roles": {"viewer": [OPERATORS], "admin": [ADMINS]}})
    wait_until("the socket is closed to it", lambda: users(VIEWERS, "status").returncode == 3)
    assert "is a viewer" in users.refused(OPERATORS, "backend", "drain", "web/be1")
    text = lab.lab.config_path(lab.balancer).read_text()
    lab.write_config(text.replace(f"- {OPERATORS}", "- no-such-group"))
    error = users.refused(ADMINS, "reload")
    assert "this host has no group 'no-such-group'" in error
    line = 1 + next(n for n, each in enumerate(text.splitlines()) if f"- {OPERATORS}" in each)
    assert f"{lab.lab.config_path(lab.balancer)}:{line}:" in error
    lab.reload(document)
    assert lab.agent_pid() == pid


def log_file(lab: Site) -> Path:
    return Path(lab.get("/v1/audit")["file"])


def verified(lab: Site, *options: str) -> tuple[int, str]:
    done = root(lab, "audit", "verify", *options)
    return done.returncode, done.stdout


@contextlib.contextmanager
def edited(path: Path, lines: list[bytes]) -> Iterator[None]:
    """The log with other lines, in the same file, so that the agent goes on with it."""
    content = path.read_bytes()
    path.write_bytes(b"".join(lines))
    try:
        yield
    finally:
        path.write_bytes(content)


def test_a_log_that_is_edited_by_hand_is_found_out(lab: Site, users: Users) -> None:
    users.done(OPERATORS, "backend", "drain", "web/be2")
    users.done(OPERATORS, "backend", "enable", "web/be2")
    path = log_file(lab)
    assert path.stat().st_mode & 0o777 == 0o600
    code, text = verified(lab)
    assert (code, "as it was written" in text) == (0, True), text
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b'"drain"' in line and b"be2" in line)
    with edited(path, [line.replace(b"be2", b"be1") for line in lines]):
        code, text = verified(lab)
        assert code == 1
        assert f"{path}, line {place + 1}: record {place + 1} was edited" in text
    with edited(path, lines[:place] + lines[place + 1 :]):
        assert f"line {place + 1}: record {place + 1} is missing" in verified(lab)[1]
    with edited(path, lines[:-2]):
        code, text = verified(lab)
        assert (code, f"line {len(lines) - 2}: records" in text) == (1, True), "the agent knows"
        head = json.loads(lines[-1])["hash"]
        assert verified(lab, "--file", str(path))[0] == 0, "nothing to compare with"
        assert verified(lab, "--file", str(path), "--head", head)[0] == 1
    assert verified(lab)[0] == 0


def test_the_chain_outlives_the_agent_and_its_log_has_the_head(lab: Site, users: Users) -> None:
    lab.stop_agent(9)
    lab.start_agent()
    wait_until("the socket lets them in", lambda: users(VIEWERS, "status").returncode == 0)
    users.done(OPERATORS, "backend", "drain", "web/be2")
    users.done(OPERATORS, "backend", "enable", "web/be2")
    lab.stop_agent(15)
    written = (lab.lab.run_dir / f"{lab.balancer.name}.log").read_text()
    noted = [json.loads(line) for line in written.splitlines() if "audit log head" in line]
    lab.start_agent()
    records = lab.get("/v1/audit", limit="10000")["records"]
    known = {record["number"]: record["hash"] for record in records}
    assert noted
    assert all(known[line["number"]] == line["hash"] for line in noted)
    assert [record["kind"] for record in records].count("start") == 3
    assert verified(lab)[0] == 0


@pytest.mark.parametrize("required", [pytest.param(False, marks=pytest.mark.soak), True])
def test_what_happens_on_a_full_disk(lab: Site, users: Users, required: bool) -> None:
    """Without `required` a change is made and shouted about; with it, it is refused."""
    document = lab.config()
    small = lab.lab.run_dir / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=True)
    try:
        lab.stop_agent(15)
        lab.write_config(document | {"state_dir": str(small), "audit_log": {"required": required}})
        lab.start_agent()
        wait_until("the socket lets them in", lambda: users(VIEWERS, "status").returncode == 0)
        users.done(OPERATORS, "backend", "drain", "web/be1")
        fill(small / "ballast")
        wait_until("the last page of the log is full", lambda: not is_recorded(lab))
        if required:
            error = users.refused(OPERATORS, "backend", "enable", "web/be1")
            assert "the change was not made, because it cannot be recorded" in error
            assert "No space left on device" in error
            assert weights(lab)["be1"] == "drain"
        else:
            users.done(OPERATORS, "backend", "enable", "web/be1")
            assert weights(lab)["be1"] == "active"
        assert "not recorded in the audit log" in users.done(VIEWERS, "status")
        (small / "ballast").unlink()
        wait_until("all is recorded", lambda: not audit_problem(lab))
        users.done(OPERATORS, "backend", "enable", "web/be1")
        assert verified(lab)[0] == 0
        enabled = [r for r in orders(lab) if r["request"].get("values") == {"state": "active"}]
        assert len(enabled) == (1 if required else 2)
    finally:
        lab.stop_agent(15)
        subprocess.run(["umount", str(small)], check=True)
        lab.write_config(document)
        lab.start_agent()


def audit_problem(lab: Site) -> str:
    return str(lab.get("/v1/status")["agent"]["audit_problem"])


def is_recorded(lab: Site) -> bool:
    """Whether an order that changes nothing is recorded."""
    with contextlib.suppress(ApiRefusedError):
        lab.api.post("/v1/guard/unblock", {"prefixes": ["192.0.2.1"]})
    return not audit_problem(lab)


def fill(path: Path) -> None:
    """Take all room on a file system."""
    room = os.statvfs(path.parent)
    path.write_bytes(bytes(room.f_bavail * room.f_bsize))
    assert os.statvfs(path).f_bavail == 0
