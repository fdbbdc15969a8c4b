"""``lbctl context``, and which agent a command means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from agent.api.client import Server
from lbctl import contexts
from lbctl.contexts import Context, ContextError, Contexts
from lbctl.environment import Environment, Remote
from lbctl.main import cli


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder; the files of a certificate are in it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("me.pem", "me.key", "ca.pem"):
        (tmp_path / name).touch()
    return tmp_path


def files(home: Path, *, ca: bool = True) -> list[str]:
    words = ["--cert", f"{home}/me.pem", "--key", f"{home}/me.key"]
    return [*words, "--ca", f"{home}/ca.pem"] if ca else words


def server(home: Path, host: str = "lb1", port: int = 9443) -> Server:
    return Server(host, port, home / "me.pem", home / "me.key", home / "ca.pem")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lb1", ("lb1", 9443)),
        ("lb1.example.org:444", ("lb1.example.org", 444)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]:9000", ("2001:db8::1", 9000)),
        ("[::1]", ("::1", 9443)),
    ],
)
def test_a_server_is_a_host_and_perhaps_a_port(text: str, found: tuple[str, int]) -> None:
    assert contexts.parse_server(text) == found


@pytest.mark.parametrize("text", ["", "lb1:", "lb1:0", "lb1:65536", "a b", "https://lb1", "::1"])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(ContextError, match="is not a server") as caught:
        contexts.parse_server(text)
    assert "lb1.example.org:9443" in caught.value.remedy


def test_contexts_are_added_used_and_removed(run: Any, home: Path) -> None:
    assert run("context", "add", "lb1", "--server", "lb1", *files(home)).code == 0
    assert run("context", "add", "lb2", "--server", "lb2:1", *files(home), "--use").code == 0
    listed = run("context", "list", "-o", "json").json["contexts"]
    assert [(each["name"], each["current"]) for each in listed] == [
        ("local", False), ("lb1", False), ("lb2", True),
    ]  # fmt: skip
    assert contexts.read().target() == server(home, "lb2", 1)
    lines = run("context", "list").out.splitlines()
    assert lines[3].split() == ["lb2", "yes", "lb2:1", f"{home}/me.pem"]
    assert run("context", "use", "lb1").code == 0
    assert contexts.read().target() == server(home)
    assert run("context", "remove", "lb1").code == 0
    assert contexts.read().target() is None, "the one that was used is gone"
    assert run("context", "use", "local").code == 0
    mode = contexts.path().parent.stat().st_mode & 0o777
    assert mode == 0o700


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["use", "lb9"], "there is no context lb9"),
        (["remove", "lb9"], "there is no context lb9"),
        (["remove", "local"], "there is no context local"),
        (["add", "local", "--server", "lb1"], "cannot be the name of a context"),
        (["add", "a/b", "--server", "lb1"], "cannot be the name of a context"),
        (["add", "lb1", "--server", "lb1:x"], "is not a server"),
    ],
)
def test_mistakes_are_named(run: Any, home: Path, words: list[str], says: str) -> None:
    result = run("context", *words, *(files(home) if words[0] == "add" else ()))
    assert result.code == 1
    assert says in result.err
    assert contexts.read() == Contexts()


def test_a_file_that_does_not_exist_is_named_at_once(run: Any, home: Path) -> None:
    result = run("context", "add", "lb1", "--server", "lb1", "--cert", f"{home}/none", "--key", "x")
    assert result.code == 2
    assert "none" in result.err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"current": "a"}', '{"current": "a", "contexts": {"a": {"b": 1}}}']
)
def test_a_broken_file_is_named_with_its_remedy(run: Any, home: Path, text: str) -> None:
    contexts.path().parent.mkdir()
    contexts.path().write_text(text)
    result = run("context", "list")
    assert result.code == 1
    assert str(contexts.path()) in result.err
    assert "lbctl context add" in result.err


# -- which agent is meant


def target(**given: Any) -> Server | None:
    return Environment(remote=Remote(**given)).server()


def test_without_anything_the_agent_of_this_host_is_meant(home: Path) -> None:
    assert target() is None
    contexts.write(Contexts("lb1", {"lb1": Context("lb1", f"{home}/me.pem", f"{home}/me.key")}))
    found = target()
    assert found is not None
    assert (found.host, found.authority) == ("lb1", None)
    assert target(context="local") is None
    assert Environment(socket_given=True).server() is None
    assert Environment(socket=home / "agent.sock").server() is None
    with pytest.raises(ContextError, match="there is no context lb2"):
        target(context="lb2")


def test_a_server_needs_a_certificate_and_a_certificate_a_server(home: Path) -> None:
    given = {"server": "lb1", "cert": home / "me.pem", "key": home / "me.key"}
    assert target(**given, ca=home / "ca.pem") == server(home)
    for missing in ("cert", "key"):
        with pytest.raises(ContextError, match="needs your certificate and its key"):
            target(**(given | {missing: None}))
    with pytest.raises(ContextError, match="are for a --server"):
        target(cert=home / "me.pem")


def seen(*words: str) -> Any:
    """Where a command goes with these words."""
    found: list[Any] = []

    class Stop(Exception):  # noqa: N818 (it is none)
        pass

    def connect(at: Any, _timeout_s: float) -> Any:
        found.append(at)
        raise Stop

    with pytest.raises(Stop):
        cli(list(words), standalone_mode=False, obj=Environment(connect=connect))
    return found[0]


def test_options_and_variables_say_which_agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen("--server", "lb1", *files(home), "status") == server(home)
    run_words = ["add", "lb1", "--server", "lb1", *files(home)]
    cli(["context", *run_words], standalone_mode=False, obj=Environment())
    assert seen("--context", "lb1", "status") == server(home)
    assert seen("status", "--context", "lb1") == server(home)
    for name, value in (
        ("SERVER", "lb2:7"),
        ("CERT", "me.pem"),
        ("KEY", "me.key"),
        ("CA", "ca.pem"),
    ):
        monkeypatch.setenv(f"STEELYARD_{name}", value if name == "SERVER" else f"{home}/{value}")
    assert seen("status") == server(home, "lb2", 7)


@pytest.mark.parametrize("words", [["doctor"], ["audit"], ["audit", "verify"], ["support-bundle"]])
def test_what_looks_at_this_host_refuses_another_one(
    run: Any, home: Path, words: list[str]
) -> None:
    with pytest.raises(click.UsageError, match="looks at the host on which it runs"):
        cli(
            ["--server", "lb1", *files(home), *words],
            standalone_mode=False,
            obj=Environment(connect=lambda *_: pytest.fail("it asked")),
        )


def test_the_file_is_json_that_others_can_write(home: Path) -> None:
    contexts.write(Contexts("lb1", {"lb1": Context("lb1", "/c", "/k")}))
    document = json.loads(contexts.path().read_text())
    assert document["contexts"]["lb1"] == {"server": "lb1", "cert": "/c", "key": "/k", "ca": None}
