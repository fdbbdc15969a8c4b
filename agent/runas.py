"""Decides how a command of the operator's is started as another user of this host.

``setpriv`` (util-linux) changes the user, in the child. Python's own ``subprocess.Popen(user=…)``
forks for that instead of calling vfork, and a fork of the agent, which has hundreds of megabytes,
stops its event loop for many milliseconds (17 with 100 MB on a busy host; vfork takes 0.2).
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_SETPRIV = "/usr/bin/setpriv"
_STATUS = Path("/proc/self/status")
_NEEDED = {"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}  # linux/capability.h


def words(command: Sequence[str], name: str | None) -> list[str]:
    """Return the words that start a command as this user; None: as this process.

    The command has the user's own groups and no others. Raises LookupError if this host has no such
    user, or if this process may not start commands as another user, or not end them.
    """
    if name is None:
        return [*command]
    found = _account(name)
    if found.pw_uid == os.geteuid():
        return [*command]
    if lacking := _lacking():
        raise LookupError(f"this process lacks {' and '.join(lacking)}")
    user, group = f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}"
    return [_SETPRIV, user, group, "--init-groups", "--", *command]


def environment(name: str | None, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a command of this user: ``inherited``, but the user's own home.

    Raises LookupError if this host has no such user.
    """
    if name is None:
        return dict(inherited)
    return {**inherited, "HOME": _account(name).pw_dir}


def refusal(command: str, name: str | None, error: Exception) -> str:
    """Return why a command could not be started as this user."""
    what = command if name is None else f"{command} as {name}"
    return f"{what}: {getattr(error, 'strerror', None) or error}"


def _account(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise LookupError(f"this host has no user {name!r}") from None


def _lacking() -> list[str]:
    """Return the capabilities that this process needs for another user's command, and lacks."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", _STATUS.read_text(), re.MULTILINE)
    held = int(found[1], 16) if found else 0
    return [name for name, bit in _NEEDED.items() if not held >> bit & 1]
