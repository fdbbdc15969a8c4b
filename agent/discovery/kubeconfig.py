"""Decides which API server of Kubernetes to ask, and as whom: a kubeconfig, or the pod's account.

Paths in a kubeconfig are relative to its folder. What kubectl accepts but this module does not
support is a DiscoveryError, because ignoring it would mean other rights or another path.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from yarl import URL

from agent.discovery.answer import shown
from agent.discovery.reading import is_token, read_file
from agent.errors import DiscoveryError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# The beta version is the same in all that is used here, and many commands of clouds still use it.
EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_MOST_BYTES = 1 << 20
_MAX_PORT = 65_535
# Some wrong tags, such as !!timestamp, make PyYAML raise errors that are not its own.
_YAML_ERRORS = (
    yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError
)  # fmt: skip
_NOUNS: dict[type, str] = {
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    str: "a string",
}
_UNSUPPORTED = {
    "auth-provider": "use 'exec', which has replaced it",
    "username": "use a token, a client certificate or 'exec'; Kubernetes 1.19 removed passwords",
    "password": "use a token, a client certificate or 'exec'; Kubernetes 1.19 removed passwords",
    "as": "give the account itself the rights of deploy/kubernetes/rbac.yaml",
    "as-uid": "give the account itself the rights of deploy/kubernetes/rbac.yaml",
    "as-groups": "give the account itself the rights of deploy/kubernetes/rbac.yaml",
    "as-user-extra": "give the account itself the rights of deploy/kubernetes/rbac.yaml",
}

type Pem = bytes | Path  # a path is read each time, because certificates are renewed


@dataclass(frozen=True, slots=True)
class Command:
    """A command that prints credentials (``exec``); ``cluster`` is passed to it if not None."""

    version: str
    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = field(repr=False, default=())
    cluster: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, how its certificate is checked, and what proves who we are."""

    server: URL
    ca: Pem | None = None  # None: the system's
    server_name: str | None = None  # in the certificate; None: the server's host
    is_verified: bool = True
    token: str | None = field(repr=False, default=None)
    token_file: Path | None = None  # read for each request; wins over the token
    certificate: Pem | None = field(repr=False, default=None)
    key: Pem | None = field(repr=False, default=None)
    command: Command | None = None


def load(path: Path, where: str) -> Access:
    """Read a kubeconfig. Raises DiscoveryError if it cannot be used."""
    body = read_file(path, _MOST_BYTES, "the kubeconfig", where)
    if len(body) > _MOST_BYTES:
        message = f"the kubeconfig {path} is longer than {_MOST_BYTES >> 20} MiB"
        raise DiscoveryError(message, where=where, remedy="write a file with one context")
    return parse(body, path, where)


def parse(body: bytes, path: Path, where: str) -> Access:
    """Return what the content of a kubeconfig says. ``path`` is where it was read."""
    return _Reader(path, where).access(body)


def in_cluster(environment: Mapping[str, str], where: str) -> Access:
    """Return how a pod asks the API server of its own cluster."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise DiscoveryError(
            "the agent does not run in a pod of Kubernetes: KUBERNETES_SERVICE_HOST or "
            "KUBERNETES_SERVICE_PORT is not set",
            where=where,
            remedy="set 'kubeconfig' to a file with the API server (docs/kubernetes.md)",
        )
    try:
        server = URL.build(scheme="https", host=host, port=int(port))
        if not 1 <= int(port) <= _MAX_PORT:
            raise ValueError
    except ValueError as error:
        raise DiscoveryError(
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT do not form an address: "
            f"{shown(host)} and {shown(port)}",
            where=where,
            remedy="remove them from the agent's environment, or set 'kubeconfig'",
        ) from error
    return Access(server, SERVICE_ACCOUNT / "ca.crt", token_file=SERVICE_ACCOUNT / "token")


class _Reader:
    """Reads one kubeconfig; every error says in which file and which part of it."""

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where

    def access(self, body: bytes) -> Access:
        """Return what the current context says."""
        config = self._loaded(body)
        name = self._text(config, "current-context", "it")
        if name is None:
            raise self._wrong("it has no current-context", "kubectl config use-context NAME")
        context = self._entry(config, "context", name)
        place = f"context {shown(name)}"
        cluster_name, user_name = (self._text(context, key, place) for key in ("cluster", "user"))
        if cluster_name is None:
            raise self._wrong(f"{place} names no cluster", "kubectl config set-context --help")
        cluster = self._entry(config, "cluster", cluster_name)
        place = f"cluster {shown(cluster_name)}"
        access = self._cluster(cluster, place)
        if user_name is None:
            return access
        user, owner = self._entry(config, "user", user_name), f"user {shown(user_name)}"
        access = self._with_user(access, user, owner)
        command = self._command(user, cluster, owner)
        is_proven = access.token or access.token_file or access.certificate or command
        if access.server.scheme == "http" and is_proven:
            raise self._wrong(
                f"{place} has an http URL, over which the credentials of {owner} would be readable",
                "use https, or a context without a user for `kubectl proxy`",
            )
        return replace(access, command=command)

    def _loaded(self, body: bytes) -> Mapping[str, object]:
        try:
            config = yaml.safe_load(body)
        except _YAML_ERRORS:
            # The parser's message would quote the text around the mistake, which may be a token.
            raise self._wrong(
                "it is not valid YAML", "kubectl config view --kubeconfig FILE"
            ) from None
        if not isinstance(config, dict):
            raise self._wrong("it is not a mapping", "kubectl config view --kubeconfig FILE")
        return config

    def _entry(self, config: Mapping[str, object], kind: str, name: str) -> Mapping[str, object]:
        """Return the context, cluster or user with this name."""
        for entry in self._list(config, f"{kind}s", "it"):
            if isinstance(entry, dict) and entry.get("name") == name:
                return self._mapping(entry, kind, f"{kind} {shown(name)}")
        raise self._wrong(
            f"it has no {kind} {shown(name)}", "kubectl config view --kubeconfig FILE"
        )

    def _cluster(self, cluster: Mapping[str, object], place: str) -> Access:
        ca = self._pem(cluster, "certificate-authority", place)
        is_insecure = self._truth(cluster, "insecure-skip-tls-verify", place)
        if is_insecure and ca is not None:
            raise self._wrong(
                f"{place} has both insecure-skip-tls-verify and a certificate-authority",
                "remove insecure-skip-tls-verify",
            )
        server_name = self._text(cluster, "tls-server-name", place)
        return Access(self._server(cluster, place), ca, server_name, not is_insecure)

    def _with_user(self, access: Access, user: Mapping[str, object], owner: str) -> Access:
        for key, remedy in _UNSUPPORTED.items():
            if user.get(key):
                raise self._wrong(f"{key} of {owner} is not supported", remedy)
        token = self._text(user, "token", owner)
        if token is not None and not is_token(token):
            raise self._wrong(
                f"the token of {owner} is not a token", "write it without spaces and line breaks"
            )
        certificate = self._pem(user, "client-certificate", owner)
        key_pem = self._pem(user, "client-key", owner)
        if (certificate is None) != (key_pem is None):
            raise self._wrong(
                f"{owner} has a client-certificate or a client-key, but not both", "give both"
            )
        return replace(
            access,
            token=token,
            token_file=self._file(user, "tokenFile", owner),
            certificate=certificate,
            key=key_pem,
        )

    def _server(self, cluster: Mapping[str, object], place: str) -> URL:
        if cluster.get("proxy-url"):
            raise self._wrong(
                f"proxy-url of {place} is not supported", "give a server that is reached directly"
            )
        text = self._text(cluster, "server", place) or ""
        with contextlib.suppress(ValueError):
            server = URL(text)
            if server.scheme in ("http", "https") and server.host and not server.user:
                return server.with_query(None).with_fragment(None)
        raise self._wrong(
            f"the server of {place} is not an https URL", "such as https://10.0.0.1:6443"
        )

    def _command(
        self, user: Mapping[str, object], cluster: Mapping[str, object], owner: str
    ) -> Command | None:
        if user.get("exec") is None:
            return None
        settings, place = self._mapping(user, "exec", owner), f"exec of {owner}"
        version = self._text(settings, "apiVersion", place) or ""
        if version not in EXEC_VERSIONS:
            raise self._wrong(
                f"the apiVersion of {place} is not {EXEC_VERSIONS[0]}", "update the command"
            )
        if self._text(settings, "interactiveMode", place) == "Always":
            raise self._wrong(
                f"{place} needs a terminal (interactiveMode: Always)",
                "use a command that works without one, or a token",
            )
        program = self._text(settings, "command", place)
        if program is None:
            raise self._wrong(f"{place} has no command", "name a program")
        if "/" in program:
            program = str(self._path.parent / program)
        words = self._list(settings, "args", place)
        pairs = [
            (each.get("name"), each.get("value")) if isinstance(each, dict) else (None, None)
            for each in self._list(settings, "env", place)
        ]
        texts = [program, *words, *(text for pair in pairs for text in pair)]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise self._wrong(
                f"args or env of {place} are not lists of strings and of names with values",
                "kubectl config set-credentials --help",
            )
        wants_cluster = self._truth(settings, "provideClusterInfo", place)
        return Command(
            version,
            (program, *(str(word) for word in words)),
            tuple((str(name), str(value)) for name, value in pairs),
            _cluster_info(cluster) if wants_cluster else None,
        )

    def _pem(self, data: Mapping[str, object], key: str, place: str) -> Pem | None:
        """Return what KEY-data holds or KEY names; the data wins, as in kubectl."""
        text = self._text(data, f"{key}-data", place)
        if text is None:
            return self._file(data, key, place)
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise self._wrong(
                f"{key}-data of {place} is not base64", f"base64 -w0 FILE, or use {key}"
            ) from None

    def _file(self, data: Mapping[str, object], key: str, place: str) -> Path | None:
        text = self._text(data, key, place)
        return None if text is None else self._path.parent / text

    def _text(self, data: Mapping[str, object], key: str, place: str) -> str | None:
        return self._field(data, key, place, str) or None

    def _truth(self, data: Mapping[str, object], key: str, place: str) -> bool:
        return self._field(data, key, place, bool) or False

    def _list(self, data: Mapping[str, object], key: str, place: str) -> list[object]:
        return self._field(data, key, place, list) or []

    def _mapping(self, data: Mapping[str, object], key: str, place: str) -> Mapping[str, object]:
        return self._field(data, key, place, dict) or {}

    def _field[T](
        self, data: Mapping[str, object], key: str, place: str, kind: type[T]
    ) -> T | None:
        value = data.get(key)
        if value is not None and not isinstance(value, kind):
            raise self._wrong(f"{key} of {place} is not {_NOUNS[kind]}", "correct it")
        return value

    def _wrong(self, problem: str, remedy: str) -> DiscoveryError:
        message = f"the kubeconfig {self._path} cannot be used: {problem}"
        return DiscoveryError(message, where=self._where, remedy=remedy)


def _cluster_info(cluster: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of the cluster that are passed to a command."""
    keys = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data")
    return {key: cluster[key] for key in keys if cluster.get(key)}
