"""Owns how important files are written and read.

Writes are atomic: a file always has either the old or the new content, complete. Secrets are only
read from files that other users cannot read, and configurations only from files that other users
cannot change.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
import time
from collections.abc import Collection
from pathlib import Path

from agent.errors import ConfigError


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content so that a crash leaves either the old content or the new one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # The name is fixed, so that the next write replaces what a crash has left behind.
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)  # it may hold a password
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    sync_folder(path.parent)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what differs once a file was replaced or written anew; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def is_young(path: Path, young_s: float) -> bool:
    """Return whether a file was written less than so many seconds ago, so that more may come.

    An editor or ``cp`` empties a file before it writes it, and a download may take a while. A time
    in the future, left by a clock that was ahead, says nothing.
    """
    try:
        return 0 <= time.time() - path.stat().st_mtime < young_s
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk, so that renames in it survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_private(path: Path, what: str, most: int, *, make: str) -> bytes:
    """Read a file that holds a secret of at most ``most`` bytes.

    Raises ConfigError if there is no such file, if it is readable by others than its owner and
    group, or if it is writable by others than its owner. ``what``: the secret, in words;
    ``make``: the command that creates it.
    """
    try:
        with path.open("rb") as file:
            _check_private(path, what, os.fstat(file.fileno()))
            text = file.read(most + 1)
    except OSError as error:
        raise ConfigError(
            f"{what} cannot be read: {error.strerror or error}",
            where=str(path),
            remedy=f"make it: {make}",
        ) from error
    if len(text) > most:
        raise ConfigError(
            f"{what} is longer than {most} bytes",
            where=str(path),
            remedy=f"check that this is the right file, or make a new one: {make}",
        )
    return text


def _check_private(path: Path, what: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(
            f"{what} is not in a regular file",
            where=str(path),
            remedy="name the file that holds it in the configuration",
        )
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(
            f"everybody on this host can read or change {what}"
            f" (mode {stat.S_IMODE(status.st_mode):04o})",
            where=str(path),
            remedy=f"`chmod 0600 {path}`, and make a new one if anybody else may have read it",
        )


def check_trusted(path: Path, groups: Collection[str] = ()) -> None:
    """Raise ConfigError if somebody else could change this file, or put another in its place.

    The configuration names commands that run as root. Only root, the user of this process and the
    members of ``groups`` may therefore change it. The folder counts, too, and with a link the
    folders of both, unless a folder is sticky (``/tmp``) or on a read-only file system (a
    ConfigMap in a pod).
    """
    real = path.resolve()
    try:
        file = real.stat()
        folders = {each: each.stat() for each in (path.absolute().parent, real.parent)}
        fixed = {each for each in folders if os.statvfs(each).f_flag & os.ST_RDONLY}
    except OSError:
        return  # whoever reads the file says so
    if file.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            "the file belongs to another user, who could change it",
            where=str(path),
            remedy=f"chown root {real}",
        )
    found = [(real, file, "file")] if real.parent not in fixed else []
    for folder, status in folders.items():
        if folder not in fixed and not status.st_mode & stat.S_ISVTX:
            found.append((folder, status, "folder of the file"))
    for each, status, what in found:
        if _others_write(status, groups):
            raise ConfigError(
                f"other users can change the {what} (mode {stat.S_IMODE(status.st_mode):04o})",
                where=str(path),
                remedy=f"chmod go-w {each}",
            )


def _others_write(found: os.stat_result, groups: Collection[str]) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    if not found.st_mode & stat.S_IWGRP or found.st_gid == 0:
        return False
    try:
        return grp.getgrgid(found.st_gid).gr_name not in groups
    except KeyError:
        return True
