"""Owns the history of the running configuration: each version, and who made it, when and why.

A version is the running configuration as it was saved (a hard link to the file that the next save
replaces, so it costs no write), with a small file beside it that describes it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import NotFoundError
from agent.files import write_atomically

MOST = 200  # versions
MOST_BYTES = 64 << 20  # all versions together
LEAST = 10  # versions that are kept, however large they are
MAX_CHANGES = 20  # lines that are kept with a version; `diff` shows all


@dataclass(frozen=True, slots=True)
class Author:
    """Who made a change, and the reason they gave."""

    who: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Act:
    """What made a version: ``how`` is ``start``, ``edit``, ``reload`` or ``rollback to N``."""

    how: str
    author: Author
    changes: tuple[str, ...] = ()

    def after(self, earlier: Act | None) -> Act:
        """Return this act, with the changes of an earlier act that did not become a version."""
        if earlier is None:
            return self
        return Act(self.how, self.author, (*earlier.changes, *self.changes))


@dataclass(frozen=True, slots=True)
class Version:
    """One version. ``changes`` are the first of ``changes_count``; ``digest`` is that of the
    content.
    """

    number: int
    at: float
    how: str
    who: str
    message: str
    changes: tuple[str, ...]
    changes_count: int
    digest: str


class Versions:
    """The versions of one instance, in ``<name>.versions`` in its state directory."""

    def __init__(self, state_dir: Path, name: str) -> None:
        self._folder = state_dir / f"{name}.versions"
        self._known: dict[int, Version] | None = None

    def all(self) -> tuple[Version, ...]:
        """Return every version, oldest first."""
        if self._known is None:
            found = (_read(path) for path in self._folder.glob("*.json"))
            self._known = {each.number: each for each in found if each is not None}
        known = dict(self._known)  # another thread may add one meanwhile
        return tuple(known[number] for number in sorted(known))

    def newest(self) -> int:
        """Return the number of the newest version, or 0 if there is none."""
        known = self.all()
        return known[-1].number if known else 0

    def path_of(self, number: int) -> Path:
        """Return the path of a version's saved configuration. Raises NotFoundError."""
        known = [each.number for each in self.all()]
        path = self._folder / f"{number}.yaml"
        if number not in known or not path.exists():
            kept = f"versions {known[0]} to {known[-1]} are kept" if known else "none is kept yet"
            raise NotFoundError(
                f"there is no version {number} of the configuration: {kept}",
                where="history",
                remedy="lbctl history",
            )
        return path

    def add(self, saved: Path, digest: str, act: Act) -> None:
        """Keep the file ``saved`` as a version, unless the newest version has the same content.

        Raises OSError.
        """
        known = self.all()
        if known and known[-1].digest == digest:
            return
        number = self.newest() + 1
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{number}.yaml"
        path.unlink(missing_ok=True)  # left over from a version that was never completed
        try:
            path.hardlink_to(saved)
        except OSError:  # a file system without hard links
            shutil.copyfile(saved, path)
        version = Version(
            number,
            time.time(),
            act.how,
            act.author.who,
            act.author.message,
            act.changes[:MAX_CHANGES],
            len(act.changes),
            digest,
        )
        write_atomically(self._folder / f"{number}.json", _document(version))
        assert self._known is not None  # noqa: S101 (all() has read it)
        self._known[number] = version
        self._forget()

    def _forget(self) -> None:
        """Remove the oldest versions, if there are too many or they are too large."""
        sizes = dict(self._sizes())
        keep, total = 0, 0
        for number in sorted(sizes, reverse=True):
            total += sizes[number]
            if keep >= MOST or (keep >= LEAST and total > MOST_BYTES):
                break
            keep += 1
        for number in sorted(sizes)[: len(sizes) - keep]:
            for kind in ("json", "yaml"):
                with contextlib.suppress(OSError):  # the next call tries again
                    (self._folder / f"{number}.{kind}").unlink()
            if self._known is not None:
                self._known.pop(number, None)

    def _sizes(self) -> Iterator[tuple[int, int]]:
        for path in self._folder.glob("*.yaml"):
            with contextlib.suppress(OSError, ValueError):
                yield int(path.stem), path.stat().st_size


def _document(version: Version) -> str:
    return (
        json.dumps(
            {
                "at": version.at,
                "how": version.how,
                "who": version.who,
                "message": version.message,
                "changes": list(version.changes),
                "changes_count": version.changes_count,
                "digest": version.digest,
            },
            ensure_ascii=False,
        )
        + "\n"
    )


def _read(path: Path) -> Version | None:
    """Return what is recorded of a version, or None if it cannot be read; it does not exist
    then.
    """
    try:
        record = json.loads(path.read_bytes())
        return Version(
            int(path.stem),
            float(record["at"]),
            str(record["how"]),
            str(record["who"]),
            str(record["message"]),
            tuple(str(each) for each in record["changes"]),
            int(record["changes_count"]),
            str(record["digest"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
