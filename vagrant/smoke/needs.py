"""Decides what this host lacks for the virtual machines: everything, in one refusal."""

from __future__ import annotations

from collections.abc import Callable

from vagrant.smoke.children import VagrantError

# The program that is looked for, and the Debian package that has it.
_ALWAYS = {"vagrant": "vagrant", "rsync": "rsync", "ssh": "openssh-client"}
_LIBVIRT = {
    "virsh": "libvirt-clients",
    "libvirtd": "libvirt-daemon-system",
    "virtlogd": "libvirt-daemon-system",
    "dnsmasq": "dnsmasq-base",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
}
_BOX = {
    "debootstrap": "debootstrap",
    "sfdisk": "fdisk",
    "mkfs.ext4": "e2fsprogs",
}
PROGRAMS = _ALWAYS | _LIBVIRT | _BOX
# Packages that bring no program to look for, with the one that needs them.
_BESIDE = {"vagrant": "vagrant-libvirt"}


def require(provider: str, installed: Callable[[str], bool], *, builds_box: bool) -> None:
    """Raises VagrantError that names all that is missing, with the command that installs it."""
    libvirt = provider == "libvirt"
    wanted = _ALWAYS | (_LIBVIRT if libvirt else {}) | (_BOX if libvirt and builds_box else {})
    missing = [program for program in wanted if not installed(program)]
    if not missing:
        return
    packages = [wanted[program] for program in missing]
    if libvirt:
        packages += [_BESIDE[each] for each in packages if each in _BESIDE]
    listed = " ".join(dict.fromkeys(packages))
    raise VagrantError(
        f"not installed: {', '.join(missing)}",
        remedy=f"apt-get install --no-install-recommends {listed}",
    )
