"""Owns the running configuration on disk.

It holds what operators changed at run time, until the operator's file changes, and it is the last
good configuration for a start with a file that cannot be used. It is valid for one text of the
operator's file, identified by digest. A checksum detects a damaged file. Every write goes to a new
file, which is synced and renamed over the old one, so at any moment either the old or the new file
exists, complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config.document import Document, read_yaml, write_yaml
from agent.config.load import build, parse
from agent.config.plan import Change, keeping, plan
from agent.config.render import document, service_document
from agent.config.versions import Act, Author, Versions
from agent.errors import ConfigError
from agent.files import sync_folder, write_atomically
from agent.model import Config, Service

_HEADER = """\
# The running configuration of {name}, written by lb-agent. Do not edit: change the agent's file,
# or use lbctl. When the agent's file changes, this one is dropped.
format: 1
file_sha256: {file_digest}
body_sha256: {body_digest}
"""
_UNKNOWN = Act("save", Author("lb-agent"))
_NO_CHANGES = (
    "runtime_changes: []\n"  # the beginning of the body of a configuration without runtime changes
)
_SPLIT = re.compile(
    r"(?:#[^\n]*\n)*format: (\d+)\nfile_sha256: ([0-9a-f]{64})\nbody_sha256: ([0-9a-f]{64})\n"
)


@dataclass(frozen=True, slots=True)
class LoadedRunning:
    """The configuration to run, and where it comes from.

    ``changes``: what ``config`` has that the operator's file does not. ``dropped``: runtime changes
    that are dropped because the file changed, one line each; ``settle`` keeps them in
    ``<name>.running.yaml.previous``. ``problem``: why the existing running configuration cannot be
    used; ``settle`` keeps it in ``<name>.running.yaml.damaged``. ``file_problem``: why the
    operator's file cannot be used; the last good configuration takes its place then.
    """

    config: Config
    file_config: Config
    file_digest: str
    changes: tuple[Change, ...] = ()
    dropped: tuple[str, ...] = ()
    problem: str = ""
    file_problem: str = ""


@dataclass(frozen=True, slots=True)
class _Saved:
    file: str  # the path of the operator's file
    file_digest: str
    config: Config
    changes: tuple[str, ...]


class RunningStore:
    """The running configuration of one instance, whose operator writes ``file``."""

    def __init__(self, state_dir: Path, name: str, file: Path | None = None) -> None:
        self._name = name
        self._file = "" if file is None else os.path.realpath(file)
        self._held: tuple[_Saved, Act] | None = None  # what could not be written, if anything
        # The stamp of the file when it was last written, and its content.
        self._written: tuple[object, _Saved] | None = None
        self._texts: dict[str, tuple[Service, str]] = {}  # the services that were last written
        self._digest = ""  # of the configuration that was last saved
        self.versions = Versions(state_dir, name)
        self.problem = ""  # why the running configuration is not on disk; empty: it is
        self.history_problem = ""  # why the last version is not in the history; empty: it is
        self.path = state_dir / f"{name}.running.yaml"
        self.previous_path = state_dir / f"{name}.running.yaml.previous"
        self.damaged_path = state_dir / f"{name}.running.yaml.damaged"

    def load(self, file_text: str, where: str = "agent.yaml") -> LoadedRunning:
        """Return the configuration to run, given the text of the operator's file.

        Raises ConfigError if that text is invalid. Changes no file: the caller that runs the result
        calls ``settle``.
        """
        file_config = parse(file_text, where)
        digest = file_digest(file_text)
        loaded = LoadedRunning(file_config, file_config, digest)
        try:
            saved = self._read()
        except ConfigError as error:
            return replace(loaded, problem=str(error))
        if saved is None:
            return loaded
        if saved.file_digest != digest:
            return replace(loaded, dropped=saved.changes)
        if not saved.changes:
            return loaded
        config = keeping(file_config, replace(file_config, services=saved.config.services))
        return replace(loaded, config=config, changes=plan(file_config, config))

    def settle(self, loaded: LoadedRunning) -> None:
        """Put aside a running configuration that ``loaded`` has replaced or found damaged."""
        if loaded.problem:
            self._move(self.damaged_path)
        else:
            self._put_aside_unless(loaded.file_digest)

    def last_good(self, file_problem: str) -> LoadedRunning | None:
        """Return the configuration that was last saved for the operator's file, whatever it says
        now.

        This is for a start with a file that cannot be used. Raises ConfigError if what was saved is
        damaged.
        """
        saved = self._read()
        if saved is None or saved.file != self._file:
            return None
        return LoadedRunning(
            saved.config, saved.config, saved.file_digest, file_problem=file_problem
        )

    def keep(
        self,
        config: Config,
        file_digest: str,
        changes: Iterable[Change | str] = (),
        act: Act = _UNKNOWN,
    ) -> str:
        """Save like ``save``, but hold in memory what cannot be written.

        Returns why it could not be written, or an empty text. What is held counts as saved for this
        process, and ``write_held`` tries again. ``act`` is what made this the running
        configuration, which becomes a new version if it differs from the last one.
        """
        lines = tuple(str(change) for change in changes)
        act = act.after(self._held[1] if self._held else None)
        try:
            self.save(config, file_digest, lines)
        except ConfigError as error:
            self._held = _Saved(self._file, file_digest, config, lines), act
            self.problem = str(error)
        else:
            self._held, self.problem = None, ""
            self._add_version(act)
        return self.problem

    def write_held(self) -> bool:
        """Try to write what is held. Returns whether it was written now."""
        if self._held is None:
            return False
        (held, act), self._held = self._held, None
        return not self.keep(held.config, held.file_digest, held.changes, act)

    def version(self, number: int) -> Config:
        """Return the configuration of a version. Raises NotFoundError, or ConfigError if it is
        damaged.
        """
        path = self.versions.path_of(number)
        whole = self._verified(path)
        if whole is None:
            raise self._damaged("it was removed meanwhile", path)
        return self._parsed(*whole, path).config

    def _add_version(self, act: Act) -> None:
        try:
            self.versions.add(self.path, self._digest, act)
        except OSError as error:
            self.history_problem = str(error)
        else:
            self.history_problem = ""

    def save(self, config: Config, file_digest: str, changes: Iterable[Change | str] = ()) -> None:
        """Save ``config`` as what the next start runs with, as long as the operator's file is the
        same.

        ``changes`` is what it has that the file does not. Raises ConfigError if it cannot be
        written; the old one stays then.
        """
        self._put_aside_unless(file_digest)
        lines = [str(change) for change in changes]
        origin, content = self._body(config, lines)
        body = origin + content
        header = _HEADER.format(name=self._name, file_digest=file_digest, body_digest=_sha256(body))
        self._written = None
        try:
            write_atomically(self.path, header + body)
            saved = _Saved(self._file, file_digest, config, tuple(lines))
            self._written = self._stamp(), saved
            self._digest = _sha256(content)
        except OSError as error:
            raise ConfigError(
                f"the running configuration cannot be saved: {error.strerror}",
                where=str(self.path),
                remedy="free space on that file system, or set state_dir to a folder that the "
                "agent may write",
            ) from error

    def _stamp(self) -> object:
        """Return what shows that the file is unchanged, or None if it does not exist."""
        try:
            seen = self.path.stat()
        except OSError:
            return None
        return seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size

    def _body(self, config: Config, changes: list[str]) -> tuple[str, str]:
        """Return the two parts of the body: where the configuration comes from, and its content.

        The services come last in the content. Only those that have changed are formatted again,
        because there may be thousands.
        """
        alone = document(replace(config, services=()))
        services = alone.pop("services")
        origin = write_yaml({"runtime_changes": changes, "file": self._file})
        head = write_yaml({"config": alone})
        if not config.services:
            return origin, head + _indented(write_yaml({"services": services}))
        texts = {}
        for service in config.services:
            held = self._texts.get(service.name)
            is_same = held is not None and held[0] is service
            texts[service.name] = held if held and is_same else (service, _text_of(service))
        self._texts = texts
        return origin, head + "  services:\n" + "".join(text for _, text in texts.values())

    def _read(self) -> _Saved | None:
        if self._held is not None:
            return self._held[0]
        if self._written is not None and self._stamp() == self._written[0]:
            return self._written[1]  # the file is unchanged, and reading it again takes a second
        whole = self._verified()
        return self._parsed(*whole) if whole else None

    def _verified(self, path: Path | None = None) -> tuple[str, str] | None:
        """Return the digest of the operator's file that a saved file belongs to, and its body.

        Returns None if there is no such file, and raises ConfigError if the checksum is wrong.
        ``path`` is a version's file; None means the running configuration.
        """
        try:
            text = (path or self.path).read_bytes().decode()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(str(error), path) from error
        match = _SPLIT.match(text)
        if match is None:
            raise self._damaged("its first lines are not those of a running configuration", path)
        version, digest, checksum = match.groups()
        body = text[match.end() :]
        if version != "1":
            raise self._damaged(f"it has format {version}, this version reads format 1", path)
        if _sha256(body) != checksum:
            raise self._damaged("its checksum is wrong", path)
        return digest, body

    def _parsed(self, digest: str, body: str, path: Path | None = None) -> _Saved:
        path = path or self.path
        loaded = read_yaml(body, str(path))
        match loaded.data:
            case {"runtime_changes": list(changes), "config": dict(data), **more}:
                # No lines are given, because they would be those of the body, without the header.
                config = build(data, Document(str(path)), tuple(loaded.problems))
                file = str(more.get("file", ""))  # earlier releases left it out
                return _Saved(file, digest, config, tuple(str(change) for change in changes))
        raise self._damaged("runtime_changes and config are not both in it", path)

    def _damaged(self, why: str, path: Path | None = None) -> ConfigError:
        if path not in (None, self.path):
            return ConfigError(
                f"this version cannot be used: {why}",
                where=str(path),
                remedy="take another one: lbctl history",
            )
        return ConfigError(
            f"the running configuration cannot be used: {why}",
            where=str(self.path),
            remedy="make the runtime changes again; the agent's own file is used now",
        )

    def _put_aside_unless(self, file_digest: str) -> None:
        try:
            whole = self._verified()
        except ConfigError:
            self._move(self.damaged_path)
            return
        if whole and whole[0] != file_digest and not whole[1].startswith(_NO_CHANGES):
            self._move(self.previous_path)

    def _move(self, target: Path) -> None:
        # If it cannot be moved, the next save replaces it. That is no reason to refuse to start.
        with contextlib.suppress(OSError):
            self.path.replace(target)
            sync_folder(self.path.parent)


def file_digest(text: str) -> str:
    """Return the digest by which a running configuration identifies its file."""
    return _sha256(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text_of(service: Service) -> str:
    return _indented(write_yaml([service_document(service)]))


def _indented(text: str) -> str:
    """Return a text one level deeper in the document."""
    return textwrap.indent(text, "  ")
