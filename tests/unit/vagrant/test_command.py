"""What the command does to the machines from beginning to end, with a Vagrant that notes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vagrant.smoke import needs

PROGRAM = """
import sys
from pathlib import Path
from vagrant.smoke import machines
machines.FOLDER = Path(sys.argv.pop(1))
from vagrant.smoke.__main__ import main
main()
"""
NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >>"$NOTES"\n'
VAGRANT = """
case "$1 $STATE" in
status*) echo "1,lb1,provider-name,libvirt"; echo "1,lb1,state,$STATE" ;;
"up fails")
	echo "no room on the host" >&2
	for n in $(seq 20); do echo "/usr/lib/v/warden.rb:48:in 'call'" >&2; done
	exit 1 ;;
"up hangs")
	trap 'echo interrupted >>"$NOTES"; exit 1' INT
	touch "$NOTES.hangs"
	sleep 60 & wait ;;
"destroy stuck") exit 1 ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with programs that note how they were called."""
    bodies = dict.fromkeys(needs.PROGRAMS, "") | {
        "vagrant": VAGRANT,
        "build-box": "",
        "libvirt": "",
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(NOTE + body)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def start(place: Path, state: str, *words: str) -> subprocess.Popen[str]:
    """The command, in which Vagrant says that its machines are in that state."""
    environment = {
        **os.environ,
        "PATH": f"{place}:{os.environ['PATH']}",
        "NOTES": str(place / "notes"),
        "STATE": state,
        "TMPDIR": str(place / "tmp"),
    }
    for name in ("VAGRANT_DEFAULT_PROVIDER", "STEELYARD_VM_BOX"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(place), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


def notes(place: Path) -> list[str]:
    """How programs were called, without what is the same for each."""
    found = (place / "notes").read_text() if (place / "notes").exists() else ""
    return [line.replace(" --no-color", "").strip() for line in found.splitlines()]


BEGIN = ["libvirt start", "vagrant status --machine-readable", "build-box", "vagrant up"]
END = ["libvirt start", "vagrant destroy --force", "libvirt stop"]


def test_machines_that_do_not_come_up_are_removed_and_the_reason_is_kept(place: Path) -> None:
    command = start(place, "fails")
    out, _ = command.communicate(timeout=60)
    assert command.returncode == 1
    assert notes(place) == [*BEGIN, *END]
    (last,) = out.splitlines()
    assert last.startswith("vagrant: FAILED: `vagrant up --no-color` failed (1): no room on the")
    (log,) = (place / "tmp").glob("steelyard-vagrant-*/vagrant.log")
    assert "no room" in log.read_text()


@pytest.mark.parametrize("words", [(), ("up",)])
def test_what_a_host_lacks_is_one_refusal_before_anything_is_begun(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PATH", "/none")
    # Not of /usr/sbin, which is looked at whatever PATH says.
    for name in ("rsync", "qemu-img"):
        (place / name).unlink()
    command = start(place, "fails", *words)
    out, _ = command.communicate(timeout=60)
    assert command.returncode == 1
    (line,) = out.splitlines()
    assert line.startswith(
        "vagrant: FAILED: not installed: rsync, qemu-img remedy: apt-get install"
    )
    assert line.endswith("rsync qemu-utils")
    assert notes(place) == []
    assert list((place / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_lets_vagrant_clean_up_and_leaves_nothing(
    place: Path, number: signal.Signals
) -> None:
    command = start(place, "hangs")
    deadline = time.monotonic() + 60
    while not (place / "notes.hangs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command.send_signal(number)
    out, _ = command.communicate(timeout=60)
    assert out == f"vagrant: interrupted by {number.name}\n"
    assert command.returncode == 128 + number
    assert notes(place) == [*BEGIN, "interrupted", *END]
    assert list((place / "tmp").iterdir()) == []


def test_libvirt_is_stopped_even_if_the_machines_cannot_be_removed(place: Path) -> None:
    command = start(place, "stuck", "down")
    out, _ = command.communicate(timeout=60)
    assert command.returncode == 1
    assert notes(place) == END
    assert "`vagrant destroy --force --no-color` failed" in out


def test_down_may_be_said_at_any_time(place: Path) -> None:
    command = start(place, "not_created", "down")
    out, _ = command.communicate(timeout=60)
    assert (command.returncode, out) == (0, "vagrant: nothing is left\n")
    assert list((place / "tmp").iterdir()) == []


def test_an_unknown_row_starts_nothing(place: Path) -> None:
    command = start(place, "running", "--rows", "drain,reboot")
    out, _ = command.communicate(timeout=60)
    assert command.returncode == 1
    assert out.startswith("vagrant: FAILED: there is no row reboot")
    assert notes(place) == []
