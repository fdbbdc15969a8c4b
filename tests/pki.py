"""Certificates for tests, made by openssl: an authority, what it signs, and what it revokes."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_CA = """\
[ca]
default_ca = this
[this]
database = {folder}/index.txt
default_md = sha256
default_crl_days = 2
rand_serial = yes
new_certs_dir = {folder}
policy = any
{numbers}
[any]
organizationName = optional
commonName = optional
"""


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: Path
    key: Path


def openssl(*words: object) -> None:
    """Run openssl; it says nothing if all is well."""
    done = subprocess.run(
        ["openssl", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def self_signed(folder: Path, stem: str, name: str, subject: str | None = None) -> Pair:
    """Make a self-signed certificate for the host ``name``, valid for two days."""
    made = Pair(folder / f"{stem}.pem", folder / f"{stem}.key")
    openssl("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", subject or f"/CN={name}",
            "-addext", f"subjectAltName=DNS:{name}", "-keyout", made.key,
            "-out", made.certificate)  # fmt: skip
    return made


def server_context(pair: Pair) -> ssl.SSLContext:
    """Return what a server needs that has this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def client_context(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    """Return what a client needs that trusts an authority and has a certificate, or none."""
    context = ssl.create_default_context(cafile=authority.certificate)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, *, numbered: bool = False) -> None:
        """``numbered``: its lists of revoked certificates have numbers."""
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        self._config = folder / "ca.cnf"
        numbers = f"crlnumber = {folder}/number" if numbered else ""
        self._config.write_text(_CA.format(folder=folder, numbers=numbers))
        (folder / "number").write_text("01\n")
        (folder / "index.txt").touch()
        openssl("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", f"/CN={folder.name}",
                "-keyout", self._key, "-out", self.certificate)  # fmt: skip

    def issue(self, name: str, subject: str, *extensions: str, expired: bool = False) -> Pair:
        """Sign a certificate with this subject, such as ``/CN=alice``."""
        made = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extra = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extra.write_text("\n".join(extensions))
        openssl("req", *_NEW_KEY, "-utf8", "-subj", subject, "-keyout", made.key, "-out", request)
        if expired:
            openssl("ca", "-config", self._config, "-cert", self.certificate, "-keyfile",
                    self._key, "-batch", "-notext", "-in", request, "-out", made.certificate,
                    "-startdate", "20200101000000Z", "-enddate", "20200102000000Z")  # fmt: skip
            return made
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
                "-CAcreateserial", "-days", "2", "-extfile", extra,
                "-out", made.certificate)  # fmt: skip
        return made

    def revoked(self, *pairs: Pair) -> Path:
        """Return the list of revoked certificates, with these on it from now on."""
        common = ("ca", "-config", self._config, "-cert", self.certificate, "-keyfile", self._key)
        for pair in pairs:
            openssl(*common, "-revoke", pair.certificate)
        path = self.folder / "revoked.pem"
        openssl(*common, "-gencrl", "-out", path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        return path
