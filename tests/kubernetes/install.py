"""Downloads what the real API server is built from, and builds it.

    make test-kubernetes, or (root)
    .venv/bin/python -m tests.kubernetes.install

Everything lies in ``build/kubernetes``, or in the folder that KUBERNETES_CACHE names. Debian's
packages are unpacked there, so nothing on the host changes. They come from sid, because only sid
has versions of the Kubernetes libraries that fit together; the mirror is the host's own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
BUILD = Path(os.environ.get("KUBERNETES_CACHE") or HERE.parents[1] / "build" / "kubernetes")
PACKAGES = (
    "etcd-server",
    "golang-go",
    "golang-k8s-api-dev",
    "golang-k8s-apiextensions-apiserver-dev",
    "golang-k8s-apimachinery-dev",
    "golang-k8s-apiserver-dev",
    "kubernetes-client",
)
_ROOT = BUILD / "root"
_APT = BUILD / "apt"  # removed after use
_WORK = BUILD / "go"
SERVER = BUILD / "server"
ETCD = _ROOT / "usr/bin/etcd"
KUBECTL = _ROOT / "usr/bin/kubectl"


def install() -> None:
    """Make SERVER, ETCD and KUBECTL exist. Takes 6 to 15 minutes and 4 GB the first time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    _unpack()
    _build()


def _unpack() -> None:
    done = BUILD / "unpacked"
    if done.exists() and done.read_text() == " ".join(PACKAGES):
        return
    print("kubernetes: downloading Debian's packages", flush=True)
    archives = _download()
    print(f"kubernetes: unpacking {len(archives)} packages", flush=True)
    for archive in archives:
        subprocess.run(["dpkg-deb", "-x", archive, _ROOT], check=True)
    shutil.rmtree(_APT)
    done.write_text(" ".join(PACKAGES))


def _download() -> list[Path]:
    """Download the packages and all that they depend on, with lists and a cache of our own."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (_APT / folder).mkdir(parents=True, exist_ok=True)
    (_APT / "status").touch()
    source = _APT / "sid.sources"
    source.write_text(_source())
    options = {
        "Dir::State": _APT / "state",
        "Dir::State::status": _APT / "status",  # empty: nothing counts as installed
        "Dir::Cache": _APT / "cache",
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root",  # the cache may lie where no other user may go
        "APT::Install-Recommends": "false",
    }
    command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*command, "update"], check=True)
    subprocess.run([*command, "-y", "--download-only", "install", *PACKAGES], check=True)
    return sorted((_APT / "cache/archives").glob("*.deb"))


def _source() -> str:
    """Return a source for sid at the mirror that this host has in its own sources."""
    fields = ("REPO_URI", "ORIGIN", "LABEL", "SIGNED_BY")
    form = "\t".join(f"$({field})" for field in fields)
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        mirror, origin, label, key = line.split("\t")
        if (origin, label) == ("Debian", "Debian"):
            return f"Types: deb\nURIs: {mirror}\nSuites: sid\nComponents: main\nSigned-By: {key}\n"
    raise SystemExit("kubernetes: this host has no mirror of Debian in its apt sources")


def _build() -> None:
    """Build the server, if its source is not the one of the last time."""
    source = (HERE / "server/main.go").read_bytes()
    digest, done = hashlib.sha256(source).hexdigest(), BUILD / "built"
    if SERVER.exists() and done.exists() and done.read_text() == digest:
        return
    print("kubernetes: building the API server", flush=True)
    package = _WORK / "src/apiserver"
    package.mkdir(parents=True, exist_ok=True)
    (package / "main.go").write_bytes(source)
    (goroot,) = (path for path in (_ROOT / "usr/lib").glob("go-1.*") if (path / "bin/go").exists())
    environment = {
        "CGO_ENABLED": "0",
        "GO111MODULE": "off",
        "GOCACHE": str(BUILD / "gocache"),
        "GOPATH": f"{_WORK}:{_ROOT / 'usr/share/gocode'}",
        "GOPROXY": "off",
        "GOROOT": str(goroot),
        "GOTOOLCHAIN": "local",
        "HOME": str(BUILD),
        "PATH": os.environ["PATH"],
    }
    subprocess.run(
        [goroot / "bin/go", "build", "-o", SERVER, "."], check=True, cwd=package, env=environment
    )
    done.write_text(digest)


if __name__ == "__main__":
    install()
