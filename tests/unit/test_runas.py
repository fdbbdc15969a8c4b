"""As whom a command is started."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from agent import runas

ID = ("/bin/sh", "-c", "id -un; id -Gn; grep CapEff /proc/self/status")


def test_without_a_name_a_command_is_started_as_this_process() -> None:
    assert runas.words(ID, None) == [*ID]
    assert runas.environment(None, {"HOME": "/root"}) == {"HOME": "/root"}


def test_another_user_comes_with_its_own_groups_and_home_and_no_rights() -> None:
    words, more = runas.words(ID, "nobody"), [grp.getgrnam("adm").gr_gid]
    done = subprocess.run(words, capture_output=True, text=True, check=True, extra_groups=more)
    assert done.stdout.split() == ["nobody", "nogroup", "CapEff:", "0" * 16]
    made = runas.environment("nobody", {"HOME": "/root", "PATH": "/bin"})
    assert made == {"HOME": pwd.getpwnam("nobody").pw_dir, "PATH": "/bin"}


def test_ones_own_user_needs_no_rights() -> None:
    assert runas.words(ID, pwd.getpwuid(os.geteuid()).pw_name) == [*ID]


def test_what_cannot_be_done_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no user 'no-such-user'"):
        runas.words(ID, "no-such-user")
    status = tmp_path / "status"
    status.write_text("CapPrm:\t00000000000000c0\nCapEff:\t0000000000000040\n")
    monkeypatch.setattr(runas, "_STATUS", status)
    with pytest.raises(LookupError, match="lacks CAP_KILL and CAP_SETUID"):
        runas.words(ID, "nobody")
    assert runas.refusal("/bin/true", "bob", LookupError("this process lacks CAP_KILL")) == (
        "/bin/true as bob: this process lacks CAP_KILL"
    )
    assert runas.refusal("/bin/no", None, FileNotFoundError(2, "No such file")) == (
        "/bin/no: No such file"
    )
