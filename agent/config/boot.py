"""Decides which configuration a start runs with: the operator's file, or the last good
configuration if that file exists and cannot be used.

A missing file is an error: an operator who removed it wants nothing to run.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from agent.config.load import parse, read_text
from agent.config.store import LoadedRunning, RunningStore
from agent.errors import ConfigError
from agent.files import check_trusted
from agent.model import Config

_SUFFIX = ".running.yaml"
_USUAL_FOLDER = Config("default", "").state_dir
_STATE_DIR = re.compile(
    r"""^state_dir:[ \t]*["']?(/[^"'#\r\n]*?)["']?[ \t]*(?:#.*)?\r?$""", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Boot:
    """The configuration to run, and the store that keeps its running configuration."""

    store: RunningStore
    loaded: LoadedRunning


def boot(path: Path, *, fall_back: bool = True) -> Boot:
    """Return what a start with this file runs with.

    Raises ConfigError if the file cannot be used, or others could change it, and either no good
    configuration was saved for it or ``fall_back`` is false.
    """
    text = ""
    try:
        text = read_text(path)
        config = parse(text, str(path))
        check_trusted(path, config.admin_groups)
    except ConfigError as error:
        found = _last_good(path, text, error) if fall_back and path.is_file() else None
        if found is None:
            raise
        return found
    store = RunningStore(config.state_dir, config.name, path)
    return Boot(store, store.load(text, str(path)))


def _last_good(path: Path, text: str, error: ConfigError) -> Boot | None:
    """Return the newest configuration saved for this file, or None.

    The file may be too damaged to read its ``name`` and ``state_dir``, so all saved ones are tried.
    One that is in a ``state_dir`` of its own is found only while the file still has that line.
    """
    named = (Path(match[1]) for match in _STATE_DIR.finditer(text))
    folders = dict.fromkeys((*named, _USUAL_FOLDER))
    saved = [path for folder in folders for path in folder.glob(f"*{_SUFFIX}")]
    for state in sorted(saved, key=_written, reverse=True):
        store = RunningStore(state.parent, state.name.removesuffix(_SUFFIX), path)
        with contextlib.suppress(ConfigError):  # damaged: an older one may be whole
            loaded = store.last_good(_problem(error))
            if loaded is not None:
                return Boot(store, loaded)
    return None


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _problem(error: ConfigError) -> str:
    more = len(error.problems) - 1
    others = f" (and {more} more; lb-agent check lists them)" if more else ""
    return f"the last good configuration runs, because the file cannot be used: {error}{others}"
