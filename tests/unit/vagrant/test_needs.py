"""What a host needs for the virtual machines, and whether KVM works on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vagrant.smoke import needs
from vagrant.smoke.children import VagrantError

KVM = Path(__file__).parents[3] / "vagrant" / "kvm"


def test_all_that_is_missing_is_named_at_once_with_the_command() -> None:
    there = {"virsh", "ssh", "qemu-system-x86_64"}
    with pytest.raises(VagrantError, match="not installed: vagrant, rsync, libvirtd") as caught:
        needs.require("libvirt", there.__contains__, builds_box=True)
    assert "debootstrap, sfdisk, mkfs.ext4" in caught.value.message
    install, *packages = caught.value.remedy.removeprefix("apt-get ").split()
    assert (install, packages[0]) == ("install", "--no-install-recommends")
    assert packages[1:] == [
        *("vagrant", "rsync", "libvirt-daemon-system", "dnsmasq-base", "qemu-utils"),
        *("debootstrap", "fdisk", "e2fsprogs", "vagrant-libvirt"),
    ]


def test_only_what_is_used_is_needed() -> None:
    needs.require("libvirt", needs.PROGRAMS.__contains__, builds_box=True)
    tools = {"debootstrap", "sfdisk", "mkfs.ext4"}
    needs.require("libvirt", lambda name: name not in tools, builds_box=False)
    needs.require("virtualbox", {"vagrant", "rsync", "ssh"}.__contains__, builds_box=True)


@pytest.mark.parametrize(
    ("does", "works"),
    [
        ("printf KVM; exec sleep 60", True),
        ("exec sleep 60", False),  # takes the guest, and never runs it
        ("echo 'Could not access KVM kernel module' >&2; exit 1", False),
        ("printf KV; exec sleep 60", False),
    ],
)
def test_a_guest_under_kvm_has_to_do_something(tmp_path: Path, does: str, works: bool) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{does}\n")
    qemu.chmod(0o755)
    script = tmp_path / "kvm"
    script.write_text(KVM.read_text().replace("patience_s=5", "patience_s=0.5"))
    environment = os.environ | {"STEELYARD_VM_QEMU": str(qemu), "TMPDIR": str(tmp_path)}
    # A guest that answers is read at once, however busy the host is.
    command = ["bash", str(KVM if works else script)]
    done = subprocess.run(command, env=environment, check=False, timeout=60)
    assert (done.returncode == 0) is works
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kvm", "qemu"], "nothing is left"


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU on this host")
@pytest.mark.parametrize(
    ("processor", "works"),
    [
        ("qemu64", True),
        ("pentium3", False),  # real mode works, as with KVM_PVM, and 64-bit mode does not
    ],
)
def test_the_guest_says_its_word_in_64_bit_mode(
    tmp_path: Path, processor: str, works: bool
) -> None:
    """Emulated, which every host can. A processor without 64-bit mode ends QEMU at once."""
    script = tmp_path / "kvm"
    script.write_text(
        KVM.read_text()
        .replace("-accel kvm -cpu host", f"-accel tcg -cpu {processor}")
        .replace("patience_s=5", "patience_s=60")
    )
    environment = os.environ | {"STEELYARD_VM_QEMU": "qemu-system-x86_64"}
    done = subprocess.run(["bash", str(script)], env=environment, check=False, timeout=120)
    assert (done.returncode == 0) is works
