"""Owns the programs that the smoke test runs on the host: none outlives it, each can clean up."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.errors import SteelyardError
from vagrant.smoke import bounds

_TAIL_LINES = 12
_RUBY_FRAME = re.compile(r"(/|<internal:)\S+:\d+:in ")


class VagrantError(SteelyardError):
    """The machines, or what they run on, did not do what they were asked to."""


def run(
    command: Sequence[str | Path],
    timeout_s: float,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    text: str | None = None,
    shown: str | None = None,
    where: str = "",
) -> str:
    """What a program wrote; raises VagrantError if it fails or does not end in that time.

    With a ``log``, all that it writes goes there. It is in a session of its own: a Ctrl-C does not
    reach it before us, and if we leave it is asked to leave as well, and waited for. Errors call
    it ``shown`` and say ``where``.
    """
    words = [str(word) for word in command]
    shown = shown or shlex.join(words)
    remedy = f"see {log}" if log else ""
    with contextlib.ExitStack() as opened:
        out = opened.enter_context(log.open("a")) if log else subprocess.PIPE
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT if log else subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,
        )
        try:
            found, said = process.communicate(text, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            end(process)
            raise VagrantError(
                f"`{shown}` did not end within {timeout_s:.0f} s", where=where, remedy=remedy
            ) from error
        except BaseException:
            end(process)
            raise
    if process.returncode != 0:
        whole = log.read_text(errors="replace") if log else said or found
        raise VagrantError(
            f"`{shown}` failed ({process.returncode}): {tail(whole)}", where=where, remedy=remedy
        )
    return found or ""


def end(process: subprocess.Popen[str]) -> None:
    """Ask a program and its children to leave, wait for them, and kill what stays."""
    for number, patience_s in ((signal.SIGINT, bounds.LEAVE_S), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_s)
            return


def tail(text: str) -> str:
    """The end of what a program said, on one line; without where in Ruby it was said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not _RUBY_FRAME.match(line)]
    return " / ".join(lines[-_TAIL_LINES:]) or "it said nothing"
