"""What Vagrant says, whose power is cut, and that nothing that was started stays."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vagrant.smoke import bounds, children, machines
from vagrant.smoke.children import VagrantError
from vagrant.smoke.machines import State
from vagrant.smoke.ssh import Ssh

STATUS = """\
1790000000,lb1,metadata,provider,libvirt
1790000000,client,metadata,provider,libvirt
1790000000,lb1,provider-name,libvirt
1790000000,lb1,state,running
1790000000,lb1,state-human-short,running
1790000000,client,provider-name,libvirt
1790000000,client,state,not_created
1790000000,,ui,info,Current machine states:%!(VAGRANT_COMMA) and so on
"""


def test_machines_and_their_states_are_read() -> None:
    assert machines.states(STATUS) == (
        State("lb1", "libvirt", "running"),
        State("client", "libvirt", "not_created"),
    )


def test_machines_of_a_role_come_by_number() -> None:
    names = ["lb1", "be10", "be2", "client2", "client", "be1"]
    assert machines.named(names, "be") == ("be1", "be2", "be10")
    assert machines.named(names, "client") == ("client", "client2")


def test_power_is_cut_without_a_goodbye() -> None:
    off = machines.power_command("libvirt", "some-id", on=False)
    assert off[-2:] == ["destroy", "some-id"]
    assert machines.power_command("libvirt", "some-id", on=True)[-2:] == ["start", "some-id"]
    assert "poweroff" in machines.power_command("virtualbox", "some-id", on=False)
    with pytest.raises(VagrantError, match="docker"):
        machines.power_command("docker", "some-id", on=True)


def test_virtualbox_runs_the_machines_only_where_it_is_all() -> None:
    for environment, programs, wanted in (
        ({}, ("virsh", "VBoxManage"), "libvirt"),
        ({}, ("VBoxManage",), "virtualbox"),
        ({}, (), "libvirt"),
        ({"VAGRANT_DEFAULT_PROVIDER": "virtualbox"}, ("virsh",), "virtualbox"),
    ):
        assert machines.provider(environment, programs.__contains__) == wanted


def test_words_reach_a_machine_as_they_are(tmp_path: Path) -> None:
    command = Ssh(tmp_path, "Host lb1\n").command("lb1", "sh", "-c", "echo 'a b' >$HOME/x")
    assert command[-1] == """sudo -n sh -c 'echo '"'"'a b'"'"' >$HOME/x'"""
    assert command[-3:-1] == ["lb1", "--"]
    assert (tmp_path / "ssh_config").read_text() == "Host lb1\n"


def test_what_a_program_wrote_is_kept_and_its_failure_named(tmp_path: Path) -> None:
    assert children.run(["echo", "so"], 10) == "so\n"
    assert children.run(["cat"], 10, text="given") == "given"
    with pytest.raises(VagrantError, match=r"`false` failed \(1\): it said nothing"):
        children.run(["false"], 10)
    log = tmp_path / "log"
    with pytest.raises(VagrantError, match="no such box") as raised:
        children.run(["sh", "-c", "echo no such box; exit 3"], 10, log=log)
    assert raised.value.remedy == f"see {log}"


def test_a_program_that_does_not_end_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "LEAVE_S", 0.2)
    said = tmp_path / "pid"
    stubborn = f"trap '' INT; sleep 600 & echo $! >{said}; wait; wait"
    with pytest.raises(VagrantError, match="did not end"):
        children.run(["sh", "-c", stubborn], 0.5)
    child = int(said.read_text())
    deadline = time.monotonic() + 60
    while _lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_waiting_ends_with_what_is_still_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "POLL_S", 0.01)
    left = iter(["one", "two", None])
    machines.wait("all", lambda: next(left), 10)
    with pytest.raises(VagrantError, match="all are up: be3 is down"):
        machines.wait("all are up", lambda: "be3 is down", 0.05)
