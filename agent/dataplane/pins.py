"""Owns the names below /sys/fs/bpf, where an instance's tables and program are pinned.

``/sys/fs/bpf/steelyard/<name>/abi<N>/``: the ABI version is part of the path, so a table of another
layout is never opened by mistake. ``abi<N>-<n>`` has tables of other sizes, until their flows have
been carried over. ``entry``, beside these folders, outlives ABIs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from agent.dataplane.abi import ABI_VERSION
from agent.errors import DataplaneError

BPFFS = Path("/sys/fs/bpf")
_BPFFS_TYPE = b"bpf"
_BPFFS_MODE = b"mode=0700"  # as systemd mounts it; otherwise everybody may create folders there


@dataclass(frozen=True, slots=True)
class Pins:
    """The pin folder of one instance."""

    folder: Path

    @property
    def program(self) -> Path:
        return self.folder / "program"

    @property
    def next_program(self) -> Path:
        """Where a program is pinned first, to be renamed to ``program`` in one step."""
        return self.folder / "program_next"

    @property
    def last_program(self) -> Path | None:
        """The program that uses these tables, or has used them; None: there was none so far."""
        return next((one for one in (self.program, self.next_program) if one.exists()), None)

    @property
    def entry(self) -> Path:
        """The program array whose slot 0 has the program for `hook: external`, whatever the ABI."""
        return self.folder.parent / "entry"

    def table(self, name: str) -> Path:
        return self.folder / name

    def of_other_versions(self) -> tuple[Pins, ...]:
        """Return what agents with another ABI or other sizes have left of the same instance."""
        folders = sorted(self.folder.parent.glob("abi*"))
        return tuple(Pins(folder) for folder in folders if folder != self.folder)


def set_aside(pins: Pins) -> Pins:
    """Rename the folder of the pins, so that new tables can take its name; return the new pins."""
    names = (pins.folder.with_name(f"{pins.folder.name}-{n}") for n in count(1))
    aside = next(folder for folder in names if not folder.exists())
    pins.folder.rename(aside)
    return Pins(aside)


def pins_of(name: str, root: Path = BPFFS) -> Pins:
    """Return the pin folder of the instance ``name``."""
    return Pins(root / "steelyard" / name / f"abi{ABI_VERSION}")


def ensure_bpffs(root: Path = BPFFS) -> None:
    """Mount the BPF file system if it is not mounted."""
    if any(
        fields[1] == str(root) and fields[2] == "bpf"
        for fields in map(str.split, Path("/proc/self/mounts").read_text().splitlines())
    ):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(root), _BPFFS_TYPE, 0, _BPFFS_MODE) != 0:
        code = ctypes.get_errno()
        raise DataplaneError(
            f"the BPF file system cannot be mounted: {os.strerror(code)}",
            where=str(root),
            remedy=f"run as root: mount -t bpf -o mode=0700 bpf {root}",
        )


def make(pins: Pins) -> None:
    """Create the folders of the instance where they are missing, and check that they are ours
    alone.
    """
    for folder in _folders(pins):
        folder.mkdir(mode=0o700, exist_ok=True)
    check_owner(pins)


def check_owner(pins: Pins) -> None:
    """Raise DataplaneError if a folder of the instance, or a link in its place, is somebody else's.

    It could lead us elsewhere, and have us delete what is there.
    """
    for folder in _folders(pins):
        try:
            found = folder.lstat()
        except FileNotFoundError:
            return
        is_open = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not is_open:
            continue
        raise DataplaneError(
            "the folder of the tables is not root's alone, so somebody else could put other tables "
            "there",
            where=str(folder),
            remedy=f"see whose it is with `ls -ld {folder}`, and move it away: `mv {folder} "
            f"{folder}.not-ours`",
        )


def _folders(pins: Pins) -> tuple[Path, Path, Path]:
    """Return the folders, from the one of all instances down."""
    return pins.folder.parent.parent, pins.folder.parent, pins.folder


def remove(pins: Pins) -> None:
    """Unpin everything of the instance; what is attached keeps running until it is detached."""
    if not pins.folder.exists():
        return
    for pinned in pins.folder.iterdir():
        pinned.unlink()
    pins.folder.rmdir()
    if not pins.of_other_versions():
        pins.entry.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: other versions, other instances
        pins.folder.parent.rmdir()
        pins.folder.parent.parent.rmdir()
