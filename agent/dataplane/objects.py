"""Keeps compiled programs as objects, so that a program that was compiled once is loaded without
the compiler.

An object contains neither secrets nor names of an instance: the keys of the flow hash and the
folder of the pinned tables are filled in when it is loaded. All instances and all boots therefore
share it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agent.dataplane import abi, btf, libbpf, sources
from agent.dataplane.compile import INSTRUCTION, LOAD_64, MAP, Compiled, Origin, compile_program
from agent.dataplane.libbpf import ProgramType
from agent.logs import get_logger
from agent.model import KernelHeaders

log = get_logger()

CACHE = Path("/var/cache/steelyard")  # the unit's CacheDirectory
PATIENCE_S = 60.0  # how long to wait for another process that compiles the same program
MOST = 256  # objects that are kept; the least recently used are removed
PIN_FOLDER = "LB_PIN"
SECRETS = ("LB_FLOW_KEY", "LB_FLOW_MUL0", "LB_FLOW_MUL1")
_OWN = {PIN_FOLDER, *SECRETS}  # definitions that differ between instances

_NUMBER = 0  # the src_reg of LOAD_64 if a plain number is loaded
_FITS_32 = range(-(2**31), 2**31)


@dataclass(frozen=True, slots=True)
class Table:
    """A map that a program uses. The id in ``info`` means nothing and is 0."""

    info: libbpf.MapInfo
    pinned: bool


@dataclass(frozen=True, slots=True)
class Object:
    """A compiled program.

    ``instructions``: the machine code, with zeros in the places of descriptors and secrets.
    ``uses``: (instruction, table) for each descriptor; ``numbers``: (instruction, name of the
    definition) for each secret. ``btf``: the types of the program, as the kernel has them.
    """

    function: str
    tables: tuple[Table, ...]
    instructions: bytes
    uses: tuple[tuple[int, int], ...]
    numbers: tuple[tuple[int, str], ...]
    btf: bytes

    def with_own(self, descriptors: list[int], secrets: Mapping[str, int]) -> bytes:
        """Return the machine code of one instance.

        ``descriptors``: those of its tables, in the order of ``tables``.
        """
        code = bytearray(self.instructions)
        for at, table in self.uses:
            struct.pack_into("=i", code, 8 * at + 4, descriptors[table])
        for at, name in self.numbers:
            struct.pack_into("=I", code, 8 * at + 4, secrets[name] & 0xFFFFFFFF)
            struct.pack_into("=I", code, 8 * at + 12, secrets[name] >> 32)
        return bytes(code)


def take_apart(
    function: str,
    code: bytes,
    tables: Mapping[int, Table],
    secrets: Mapping[str, int],
    types: bytes,
) -> Object | None:
    """Return the object that one instance's machine code was made of; ``tables`` by descriptor.

    None if the instance's own numbers cannot be located. A number of 32 bits would not be loaded by
    BPF_LD_IMM64, and one that the compiler has changed would not be found.
    """
    if any(value in _FITS_32 for value in secrets.values()):
        return None
    names = {value: name for name, value in secrets.items()}
    order = {fd: number for number, fd in enumerate(tables)}
    blank = bytearray(code)
    uses, numbers = [], []
    at = 0
    while 8 * at < len(code):
        op, registers, _, low = INSTRUCTION.unpack_from(code, 8 * at)
        if op != LOAD_64:
            at += 1
            continue
        (high,) = struct.unpack_from("=I", code, 8 * at + 12)
        name = names.get(high << 32 | low & 0xFFFFFFFF)
        if registers >> 4 == MAP:
            uses.append((at, order[low]))
            struct.pack_into("=i", blank, 8 * at + 4, 0)
        elif registers >> 4 == _NUMBER and name is not None:
            numbers.append((at, name))
            struct.pack_into("=I", blank, 8 * at + 4, 0)
            struct.pack_into("=I", blank, 8 * at + 12, 0)
        at += 2
    if {name for _, name in numbers} != set(secrets):
        return None
    return Object(
        function, tuple(tables.values()), bytes(blank), tuple(uses), tuple(numbers), types
    )


def packed(one: Object) -> bytes:
    """Return an object as it is stored: compressed JSON.

    zlib's checksum reveals a file that is truncated or corrupt.
    """
    fields = asdict(one)
    for name in ("instructions", "btf"):
        fields[name] = base64.b64encode(fields[name]).decode()
    return zlib.compress(json.dumps(fields).encode())


def unpacked(data: bytes) -> Object:
    """Return the object that ``packed`` was given; ValueError: the data is something else."""
    try:
        fields = json.loads(zlib.decompress(data))
        tables = tuple(
            Table(libbpf.MapInfo(**table["info"]), table["pinned"]) for table in fields["tables"]
        )
        return Object(
            fields["function"],
            tables,
            base64.b64decode(fields["instructions"], validate=True),
            tuple((at, table) for at, table in fields["uses"]),
            tuple((at, name) for at, name in fields["numbers"]),
            base64.b64decode(fields["btf"], validate=True),
        )
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"no object: {error}") from error


def key_of(text: str, function: str, definitions: Mapping[str, str], kind: ProgramType) -> str:
    """Return a name for everything that a program is compiled from, and for the kernel that
    accepted it.
    """
    kernel = os.uname()
    parts = [
        abi.ABI_VERSION,
        re.sub(r"^#line .*$", "", text, flags=re.MULTILINE),  # without the paths of the sources
        function,
        sorted((name, value) for name, value in definitions.items() if name not in _OWN),
        int(kind),
        _compiler(),
        (kernel.release, kernel.version, kernel.machine),
        [path.read_text() for path in sorted(sources.header_tree().rglob("*.h"))],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _compiler() -> str:
    """Return the version of BCC, without importing it; empty if it is not installed."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        return ""
    with contextlib.suppress(OSError):
        return Path(found.origin).with_name("version.py").read_text()
    return ""


class Kept:
    """The folder of kept objects.

    It belongs to the user who runs this process, and nobody else can write to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Object | None:
        """Return the object of that name; None: there is none that can be used."""
        try:
            folder = self._open()
        except OSError:
            return None
        try:
            fd = os.open(key, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
            with os.fdopen(fd, "rb") as file:
                found = unpacked(file.read())
                with contextlib.suppress(OSError):  # a read-only file system
                    os.utime(file.fileno())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("a kept program cannot be read; compiling it", problem=str(error))
            return None
        else:
            return found
        finally:
            os.close(folder)

    def put(self, key: str, one: Object) -> None:
        """Keep an object, and no more than ``MOST`` in all.

        A full or read-only file system is no error: the next start compiles.
        """
        try:
            self._folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            folder = self._open()
        except OSError as error:
            log.warning("compiled programs cannot be kept", problem=str(error))
            return
        temporary = f".{key}.{os.getpid()}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(packed(one))
            os.rename(temporary, key, src_dir_fd=folder, dst_dir_fd=folder)
            self._forget(folder)
        except OSError as error:
            log.warning("compiled programs cannot be kept", problem=str(error))
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def compiling(self, key: str) -> Iterator[bool]:
        """Hold a lock while this program is compiled and kept, so that agents that start together
        compile it once.

        Yields whether another process has held the lock until now. It is waited for at most
        ``PATIENCE_S``, because that process may be stopped.
        """
        name, was_waiting = f".{key}.lock", False
        with contextlib.ExitStack() as held:
            try:
                self._folder.mkdir(parents=True, mode=0o700, exist_ok=True)
                folder = self._open()
                held.callback(os.close, folder)
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
                lock = os.open(name, flags, 0o600, dir_fd=folder)
                held.callback(os.close, lock)
            except OSError:  # nothing can be kept there; `put` logs it
                yield False
                return
            until_s = time.monotonic() + PATIENCE_S
            while not (is_ours := _locked(lock)) and time.monotonic() < until_s:
                was_waiting = True
                time.sleep(0.05)
            try:
                yield was_waiting
            finally:
                if is_ours:
                    with contextlib.suppress(FileNotFoundError):  # waiting processes have it open
                        os.unlink(name, dir_fd=folder)

    def _open(self) -> int:
        """Return a descriptor of the folder; PermissionError unless it is ours alone.

        Its contents run in the kernel.
        """
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        owned = os.fstat(fd)
        if owned.st_uid == os.geteuid() and not owned.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return fd
        os.close(fd)
        raise PermissionError(f"{self._folder} is not ours alone: chown root and chmod 0700")

    def _forget(self, folder: int) -> None:
        """Remove the least recently used objects beyond ``MOST``."""
        ages = []
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # another process removes some too
                ages.append((os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns, name))
        for _, name in sorted(ages)[:-MOST]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: do not wait
    return True


def kept() -> Kept:
    """Return the objects of this host; systemd names the folder in CACHE_DIRECTORY."""
    return Kept(Path(os.environ.get("CACHE_DIRECTORY", CACHE)) / "programs")


def load_program(
    text: str,
    function: str,
    definitions: Mapping[str, str],
    headers: KernelHeaders = KernelHeaders.SHIPPED,
    kind: ProgramType = ProgramType.XDP,
    running: Callable[[str], Compiled | None] = lambda _: None,
) -> Compiled:
    """Load a program as ``compile_program`` does, but from what is kept if it was compiled before.

    Nothing is loaded if ``running`` returns a program for the key, which is then made of the same.
    With the host's own headers it is always compiled, because they may have changed.
    """
    if headers is not KernelHeaders.SHIPPED:
        return compile_program(text, function, definitions, headers, kind)
    started = time.monotonic()
    key, objects = key_of(text, function, definitions, kind), kept()
    adopted = running(key)
    if adopted is not None:
        return adopted
    secrets = {name: _number(definitions[name]) for name in SECRETS if name in definitions}
    folder = Path(definitions[PIN_FOLDER].strip('"')) if PIN_FOLDER in definitions else None

    def load_kept() -> Compiled | None:
        one = objects.get(key)
        if one is None:
            return None
        try:
            return replace(_load(one, folder, secrets, kind, started), key=key)
        except OSError as error:
            log.warning("a kept program does not load; compiling it", problem=str(error))
            return None

    loaded = load_kept()
    if loaded is not None:
        return loaded
    with objects.compiling(key) as was_waiting:
        loaded = load_kept() if was_waiting else None
        if loaded is not None:
            return loaded
        compiled = compile_program(text, function, definitions, headers, kind)
        made = _of(compiled, function, folder, secrets)
        if made is not None:
            objects.put(key, made)
    return replace(compiled, key=key)


def _number(text: str) -> int:
    """Return the value of a constant in C."""
    return int(text.rstrip("UL"), 0)


def _of(
    compiled: Compiled, function: str, folder: Path | None, secrets: Mapping[str, int]
) -> Object | None:
    """Return the object of a program that was just compiled."""
    tables = {
        fd: Table(
            replace(libbpf.map_info(fd), id=0), folder is not None and (folder / name).exists()
        )
        for name, fd in compiled.tables.items()
    }
    if function not in compiled.layout.functions:
        return None
    types = libbpf.btf_data(compiled.info.btf_id)
    return take_apart(function, compiled.code, tables, secrets, types)


def _load(
    one: Object, folder: Path | None, secrets: Mapping[str, int], kind: ProgramType, started: float
) -> Compiled:
    """Load an object. OSError: the kernel refuses it, or a pinned table is not the one it needs."""
    tables: dict[str, int] = {}
    try:
        for table in one.tables:
            path = folder / table.info.name if folder is not None and table.pinned else None
            tables[table.info.name] = _table(table.info, path)
        code = one.with_own(list(tables.values()), secrets)
        layout = btf.parse(one.btf)
        types = libbpf.Types(one.btf, layout.functions[one.function])
        fd = libbpf.program_load(one.function, code, kind, types)
    except BaseException:
        _close(tables)
        raise

    def release() -> None:
        os.close(fd)
        _close(tables)

    info = libbpf.program_info(fd)
    seconds = time.monotonic() - started
    return Compiled(fd, tables, info, layout, seconds, kind, release, Origin.KEPT)


def _table(wanted: libbpf.MapInfo, path: Path | None) -> int:
    """Return a descriptor of the table that is pinned at ``path``, or of a new one."""
    if path is None or not path.exists():
        fd = libbpf.map_create(wanted)
        if path is not None:
            try:
                libbpf.object_pin(fd, path)
            except OSError:
                os.close(fd)
                raise
        return fd
    fd = libbpf.object_get(path)
    if replace(libbpf.map_info(fd), id=0) != wanted:
        os.close(fd)
        raise OSError(errno.EINVAL, "the pinned table is a different one", str(path))
    return fd


def _close(tables: Mapping[str, int]) -> None:
    for fd in tables.values():
        os.close(fd)
