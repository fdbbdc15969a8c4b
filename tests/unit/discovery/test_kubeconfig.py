"""Kubeconfigs: which API server they name and as whom it is asked, and what they may not say."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agent.discovery.kubeconfig import SERVICE_ACCOUNT, Access, Command, in_cluster, load, parse
from agent.errors import DiscoveryError

WHERE = "kubernetes default/vllm"
PATH = Path("/etc/steelyard/kube/config")
SECRET = "s3cret-t0ken"  # noqa: S105
EXEC = {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws", "args": ["token"]}

type Json = dict[str, Any]


def config(cluster: Json | None = None, user: Json | None = None, **others: object) -> Json:
    settings = {"server": "https://10.0.0.1:6443"} | (cluster or {})
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "elsewhere", "context": {"cluster": "other", "user": "nobody"}},
            {"name": "here", "context": {"cluster": "gpu", "user": "steelyard"}},
        ],
        "clusters": [
            {"name": "other", "cluster": {"server": "https://other"}},
            {"name": "gpu", "cluster": settings},
        ],
        "users": [{"name": "steelyard", "user": user or {}}],
    } | others


def read(data: object) -> Access:
    return parse(yaml.safe_dump(data).encode(), PATH, WHERE)


def problem(data: object) -> str:
    """What is wrong with it."""
    body = data if isinstance(data, bytes) else yaml.safe_dump(data).encode()
    with pytest.raises(DiscoveryError) as caught:
        parse(body, PATH, WHERE)
    error, start = caught.value, f"the kubeconfig {PATH} cannot be used: "
    assert error.where == WHERE
    assert error.remedy
    assert error.message.startswith(start)
    assert SECRET not in str(error)
    return error.message.removeprefix(start)


# -- what is understood


def test_the_current_context_names_the_cluster_and_the_user():
    found = read(config({"tls-server-name": "kubernetes"}, {"token": SECRET}))
    server = URL("https://10.0.0.1:6443")
    assert found == Access(server, server_name="kubernetes", token=SECRET)


def test_paths_are_relative_to_the_file():
    found = read(
        config(
            {"certificate-authority": "ca.crt"},
            {
                "tokenFile": "../token",
                "client-certificate": "/etc/ssl/client.pem",
                "client-key": "client.key",
            },
        )
    )
    assert found.ca == PATH.parent / "ca.crt"
    assert found.token_file == PATH.parent / "../token"
    assert (found.certificate, found.key) == (
        Path("/etc/ssl/client.pem"),
        PATH.parent / "client.key",
    )


def test_data_in_the_file_wins_over_paths():
    data = base64.b64encode(b"PEM").decode()
    found = read(
        config(
            {
                "certificate-authority": "ca.crt",
                "certificate-authority-data": f"{data[:2]}\n{data[2:]}",
            },
            {"client-certificate-data": data, "client-key-data": data, "client-key": "x"},
        )
    )
    assert (found.ca, found.certificate, found.key) == (b"PEM", b"PEM", b"PEM")


def test_insecure_is_kept():
    assert not read(config({"insecure-skip-tls-verify": True})).is_verified
    assert read(config({"insecure-skip-tls-verify": False})).is_verified


def test_a_context_without_a_user_has_no_credentials():
    data = config({"server": "http://127.0.0.1:8001"})
    data["contexts"] = [{"name": "here", "context": {"cluster": "gpu"}}]
    assert read(data) == Access(URL("http://127.0.0.1:8001"))


def test_the_server_may_have_a_path():
    assert (
        str(read(config({"server": "https://proxy/k8s/c-1/"})).server) == "https://proxy/k8s/c-1/"
    )


def test_a_command_has_its_arguments_and_environment():
    settings = EXEC | {"env": [{"name": "AWS_PROFILE", "value": "gpu"}], "installHint": "…"}
    assert read(config(user={"exec": settings})).command == Command(
        EXEC["apiVersion"], ("aws", "token"), (("AWS_PROFILE", "gpu"),)
    )


def test_a_command_with_a_slash_is_relative_to_the_file():
    command = read(config(user={"exec": EXEC | {"command": "bin/login"}})).command
    assert command is not None
    assert command.words[0] == str(PATH.parent / "bin/login")


def test_a_command_is_told_of_the_cluster_if_it_asks_for_it():
    cluster = {"server": "https://10.0.0.1:6443", "insecure-skip-tls-verify": True}
    command = read(config(cluster, {"exec": EXEC | {"provideClusterInfo": True}})).command
    assert command is not None
    assert command.cluster == cluster


def test_secrets_do_not_appear_in_its_representation():
    data = base64.b64encode(SECRET.encode()).decode()
    user = {"token": SECRET, "client-certificate-data": data, "client-key-data": data}
    settings = EXEC | {"env": [{"name": "A", "value": SECRET}]}
    assert SECRET not in repr(read(config(user=user | {"exec": settings})))


# -- what is not


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a: [", "it is not valid YAML"),
        (b"token: " + SECRET.encode() + b": :", "it is not valid YAML"),
        (b"\xff", "it is not valid YAML"),
        (b"!!timestamp x", "it is not valid YAML"),
        (b"!!int ''", "it is not valid YAML"),
        (b"[" * 5000, "it is not valid YAML"),
        (b"", "it is not a mapping"),
        (b"[]", "it is not a mapping"),
        (config(**{"current-context": ""}), "it has no current-context"),
        (config(**{"current-context": 5}), "current-context of it is not a string"),
        (config(**{"current-context": "gone"}), "it has no context gone"),
        (config(contexts=None), "it has no context here"),
        (config(contexts={}), "contexts of it is not a list"),
        (config(contexts=[{"name": "here"}]), "context here names no cluster"),
        (config(clusters=["gpu"]), "it has no cluster gpu"),
        (config(users=[]), "it has no user steelyard"),
    ],
)
def test_a_file_without_a_whole_context_is_refused(data: object, words: str):
    assert problem(data) == words


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"server": None}, "the server of cluster gpu is not an https URL"),
        ({"server": "10.0.0.1:6443"}, "the server of cluster gpu is not an https URL"),
        ({"server": "https://[::1"}, "the server of cluster gpu is not an https URL"),
        ({"server": f"https://u:{SECRET}@a"}, "the server of cluster gpu is not an https URL"),
        ({"proxy-url": "http://proxy"}, "proxy-url of cluster gpu is not supported"),
        (
            {"certificate-authority-data": "&"},
            "certificate-authority-data of cluster gpu is not base64",
        ),
        (
            {"insecure-skip-tls-verify": "yes"},
            "insecure-skip-tls-verify of cluster gpu is not true or false",
        ),
        (
            {"insecure-skip-tls-verify": True, "certificate-authority": "ca"},
            "cluster gpu has both insecure-skip-tls-verify and a certificate-authority",
        ),
    ],
)
def test_a_cluster_that_cannot_be_asked_is_refused(cluster: Json, words: str):
    assert problem(config(cluster)) == words


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"auth-provider": {"name": "gcp"}}, "auth-provider of user steelyard is not supported"),
        ({"username": "u", "password": SECRET}, "username of user steelyard is not supported"),
        ({"as": "admin", "token": SECRET}, "as of user steelyard is not supported"),
        ({"token": f"{SECRET}\nX: y"}, "the token of user steelyard is not a token"),
        ({"token": 5}, "token of user steelyard is not a string"),
        ({"client-key": "k"},
         "user steelyard has a client-certificate or a client-key, but not both"),
        ({"client-certificate": "c"},
         "user steelyard has a client-certificate or a client-key, but not both"),
        ({"client-key-data": f"{SECRET}!"}, "client-key-data of user steelyard is not base64"),
        ({"exec": [SECRET]}, "exec of user steelyard is not a mapping"),
        ({"exec": EXEC | {"apiVersion": "v1alpha1"}},
         "the apiVersion of exec of user steelyard is not client.authentication.k8s.io/v1"),
        ({"exec": EXEC | {"interactiveMode": "Always"}},
         "exec of user steelyard needs a terminal (interactiveMode: Always)"),
        ({"exec": EXEC | {"command": ""}}, "exec of user steelyard has no command"),
        ({"exec": EXEC | {"args": [5]}},
         "args or env of exec of user steelyard are not lists of strings and of names with values"),
        ({"exec": EXEC | {"env": [SECRET]}},
         "args or env of exec of user steelyard are not lists of strings and of names with values"),
        ({"exec": EXEC | {"args": ["a\0b"]}},
         "args or env of exec of user steelyard are not lists of strings and of names with values"),
    ],
)  # fmt: skip
def test_a_user_whose_credentials_cannot_be_used_is_refused(user: Json, words: str):
    assert problem(config(user=user)) == words


@pytest.mark.parametrize("user", [{"token": SECRET}, {"tokenFile": "t"}, {"exec": EXEC}])
def test_credentials_are_not_sent_over_http(user: Json):
    assert problem(config({"server": "http://10.0.0.1:8001"}, user)) == (
        "cluster gpu has an http URL, over which the credentials of user steelyard would be "
        "readable"
    )


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(DiscoveryError, match=r"the kubeconfig .* cannot be read: No such file"):
        load(tmp_path / "config", WHERE)
    (tmp_path / "config").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(DiscoveryError, match="is longer than 1 MiB"):
        load(tmp_path / "config", WHERE)
    (tmp_path / "config").write_text(yaml.safe_dump(config()))
    assert load(tmp_path / "config", WHERE).server == URL("https://10.0.0.1:6443")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.data())
def test_one_wrong_part_is_an_access_or_an_error(data: st.DataObject):
    user = {"token": SECRET, "tokenFile": "t", "client-key": "k", "client-certificate": "c"}
    exec_ = EXEC | {"env": [{"name": "a", "value": "b"}], "provideClusterInfo": True}
    whole: Any = config({"certificate-authority": "ca"}, user | {"exec": exec_})
    place, path = whole, data.draw(st.sampled_from(list(_paths(whole))))
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = data.draw(ANYTHING)
    message = ""
    try:
        read(whole)
    except DiscoveryError as error:
        message = str(error)
    assert SECRET not in message


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_an_error(body: bytes):
    with pytest.raises(DiscoveryError):
        parse(body, PATH, WHERE)


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for step, inner in list(items):
        yield (*before, step)
        if isinstance(inner, dict | list):
            yield from _paths(inner, (*before, step))


# -- in a pod


@pytest.mark.parametrize(
    ("host", "server"),
    [("10.96.0.1", "https://10.96.0.1:6443"), ("fd00::1", "https://[fd00::1]:6443")],
)
def test_a_pod_asks_the_api_server_of_its_cluster(host: str, server: str):
    environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "6443"}
    assert in_cluster(environment, WHERE) == Access(
        URL(server), SERVICE_ACCOUNT / "ca.crt", token_file=SERVICE_ACCOUNT / "token"
    )


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "the agent does not run in a pod of Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "the agent does not run in a pod"),
        ({"KUBERNETES_SERVICE_HOST": "a/b", "KUBERNETES_SERVICE_PORT": "x"}, "do not form"),
        ({"KUBERNETES_SERVICE_HOST": "a/b", "KUBERNETES_SERVICE_PORT": "443"}, "do not form"),
    ],
)
def test_elsewhere_a_kubeconfig_is_needed(environment: dict[str, str], words: str):
    with pytest.raises(DiscoveryError, match=words) as caught:
        in_cluster(environment, WHERE)
    assert caught.value.where == WHERE
    assert "kubeconfig" in caught.value.remedy
