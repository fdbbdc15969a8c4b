"""Makes clean installations of Debian, boots them in namespaces, and runs commands in them."""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BOOT_S, _END_S = 120.0, 30.0
# What changes whenever packages are installed and removed, or while a system runs.
_OTHERS = (
    *("var/lib/dpkg/", "var/lib/apt/", "var/lib/systemd/", "var/cache/apt/", "var/cache/man/"),
    *("var/cache/debconf/", "var/cache/ldconfig/", "var/log/", "root/", "etc/machine-id"),
    *("etc/.pwd.lock", "var/lib/dbus/", "var/lib/private"),
)


def make_archive(folder: Path, depends: Sequence[str]) -> Path:
    """Return an archive of a minimal system of the host's distribution, with systemd, and with what
    these dependencies, in the notation of a package's Depends, take from the distribution.
    """
    host = platform.freedesktop_os_release()
    mirrors = Path(f"/etc/apt/sources.list.d/{host['ID']}.sources")
    made = folder / "root.tar"
    satisfy = f"chroot \"$1\" apt-get satisfy -q -y --no-install-recommends '{', '.join(depends)}'"
    sources = [str(mirrors)] if mirrors.exists() else []
    _run(
        *("mmdebstrap", "--mode=unshare", "--variant=apt", "--format=tar"),
        "--include=systemd-sysv,man-db,curl",
        *(f"--customize-hook={satisfy}", host["VERSION_CODENAME"], str(made), *sources),
        env=os.environ | {"TMPDIR": str(folder)},
    )
    return made


class Machine:
    """A system that was booted from an archive."""

    def __init__(self, root: Path, init: int) -> None:
        self.root = root
        self._init = init

    def command(self, *words: str) -> list[str]:
        """Return the command that runs these words in the system."""
        enter = ["nsenter", "-t", str(self._init), "-m", "-n", "-p", "-i", "-u", "-C", "-r", "-w"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, "env", "-i", path, "DEBIAN_FRONTEND=noninteractive", "HOME=/root", *words]

    def run(self, *words: str) -> str:
        """Run a command, which must succeed; return what it has written to both of its outputs."""
        return _run(*self.command(*words))

    def fails(self, *words: str) -> str:
        """Run a command that must fail; return what it has written."""
        done = _call(self.command(*words))
        assert done.returncode != 0, done.stdout
        return done.stdout

    def put(self, source: Path, target: str) -> None:
        """Copy a file into the system."""
        path = self.root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())

    def files(self) -> dict[str, str]:
        """Return all that is on the system's disk: paths, with the kind, mode and content of each.

        What package management itself keeps, logs, and the home of root are left out.
        """
        found = {}
        for folder, folders, names in os.walk(self.root):
            for name in (*folders, *names):
                path = Path(folder, name)
                shown = str(path.relative_to(self.root))
                if not shown.startswith(_OTHERS):
                    found[shown] = _described(path)
        return found


def _described(path: Path) -> str:
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode):
        return f"link to {path.readlink()}"
    size = about.st_size if stat.S_ISREG(about.st_mode) else 0
    return f"{stat.filemode(about.st_mode)} {size}"


@contextmanager
def booted(archive: Path, folder: Path) -> Iterator[Machine]:
    """Unpack the archive into the folder, boot it, and remove it afterwards."""
    root = folder / "root"
    root.mkdir()
    _run("tar", "-C", str(root), "--numeric-owner", "-xf", str(archive))
    with _cgroup() as group:
        boot = [str(Path(__file__).with_name("boot")), str(root), str(group)]
        process = subprocess.Popen(boot, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            init = _init_of(process)
            machine = Machine(root, init)
            _call(machine.command("systemctl", "is-system-running", "--wait"))
            yield machine
        finally:
            process.kill()  # the system ends with it (--kill-child)
            process.wait()
    _run("rm", "-rf", str(root))


def _init_of(process: subprocess.Popen[bytes]) -> int:
    """Wait until the system answers; return the pid of its first process."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + _BOOT_S
    while time.monotonic() < end and process.poll() is None:
        for pid in map(int, children.read_text().split()):
            asked = Machine(Path(), pid).command("systemctl", "is-system-running")
            if _call(asked).stdout.strip() in ("initializing", "starting", "running", "degraded"):
                return pid
        time.sleep(0.2)
    raise AssertionError("the system does not boot")


@contextmanager
def _cgroup() -> Iterator[Path]:
    """Make a group for the system's processes, which it takes for the root of all groups."""
    mounts = map(str.split, Path("/proc/self/mounts").read_text().splitlines())
    top = Path(next(fields[1] for fields in mounts if fields[2] == "cgroup2"))
    group = top / f"steelyard-deb-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        end = time.monotonic() + _END_S
        while group.exists() and time.monotonic() < end:  # its processes are just ending
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            time.sleep(0.1)


def _call(
    command: Sequence[str], env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=900,
    )


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    done = _call(command, env)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout


def build(folder: Path, *arguments: str) -> Path:
    """Build the package into a folder, and return its path."""
    before = set(folder.glob("*.deb"))
    _run("deploy/deb/build", *arguments, env=os.environ | {"DIST": str(folder)})
    (made,) = set(folder.glob("*.deb")) - before
    return made


def field(package: Path, name: str) -> str:
    """Return a field of a package's control file."""
    return _run("dpkg-deb", "-f", str(package), name).strip()


def install(machine: Machine, package: Path) -> None:
    """Install a package. There is no network, so all that it depends on must be there already."""
    machine.put(package, f"/root/{package.name}")
    begin = time.monotonic()
    machine.run("apt-get", "install", "-q", "-y", f"/root/{package.name}")
    print(f"{package.name}: installed in {time.monotonic() - begin:.1f} s")


def difference(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Return what is not the same in both, each with how it was and how it is."""
    paths = sorted(before.keys() | after.keys())
    both = {path: (before.get(path, "missing"), after.get(path, "missing")) for path in paths}
    return {path: (was, is_) for path, (was, is_) in both.items() if was != is_}
