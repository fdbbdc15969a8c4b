"""A tier with a real HAProxy: who may ask, how much, and where a request goes."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.site import wait_until
from tests.netns.tier.rig import Engine, TierUnderTest, tier
from tests.pki import client_context


@pytest.fixture(scope="module")
def keyed(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, other: Engine
) -> Iterator[TierUnderTest]:
    """A tier with keys, limits and routes."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys"
    keys.touch(mode=0o600)
    to_other = other.at
    with tier(
        folder, engine.at, keys=str(keys),
        limits={"requests_per_minute": 1000, "body": "1MiB", "head_timeout": "10s"},
        routes=[
            {"path": "/v1/embeddings", "engines": to_other},
            {"model": "llama-*", "engines": to_other},
            {"model": "exact", "engines": to_other},
        ],
    ) as made:  # fmt: skip
        yield made


# -- who may ask


def test_a_request_without_a_known_key_is_refused_as_openai_refuses_it(keyed: TierUnderTest):
    for sent in ({}, {"Authorization": "Bearer sk-no"}, {"Authorization": "Basic YTpi"}):
        status, headers, body = keyed.ask("/v1/models", **sent)
        assert status == 401
        assert headers["content-type"] == "application/json"
        assert body["error"]["code"] == "invalid_api_key"
        assert set(body["error"]) == {"message", "type", "param", "code"}


def test_engines_see_the_name_of_the_key_and_nothing_that_a_client_made_up(keyed: TierUnderTest):
    key = keyed.add_key("alice")
    status, _, body = keyed.ask(
        "/", {"a": 1}, key=key, X_Key_Name="root", X_Forwarded_For="192.0.2.1", X_Client_Name="me"
    )
    assert status == 200
    seen = {name.lower(): value for name, value in body["headers"].items()}
    assert (seen["x-key-name"], seen["x-forwarded-for"]) == ("alice", "127.0.0.1")
    assert "authorization" not in seen
    assert "x-client-name" not in seen


def test_a_key_is_gone_without_a_reload(keyed: TierUnderTest):
    key = keyed.add_key("bob")
    workers = keyed.status()["reloads_total"]
    assert keyed.lbctl("keys", "remove", "bob").returncode == 0
    wait_until("the key is not known any more", lambda: keyed.ask("/", key=key)[0] == 401)
    assert keyed.status()["reloads_total"] == workers


def test_a_file_of_keys_that_is_wrong_changes_nothing_and_is_named(keyed: TierUnderTest):
    key = keyed.add_key("carol")
    path = Path(keyed.document["keys"])
    good = path.read_text()
    # At once, as an editor does it: a file that is empty for a moment has no keys, which is right.
    fresh = path.with_name("fresh")
    fresh.touch(mode=0o600)
    fresh.write_text(f"{good}dave no-hash\n")
    try:
        fresh.rename(path)
        wait_until("the problem is shown", lambda: keyed.status()["problems"])
        (problem,) = keyed.status()["problems"]
        assert f"{path}:{len(good.splitlines()) + 1}" in problem
        assert "lbctl tier keys add dave" in problem
        assert keyed.ask("/", key=key)[0] == 200
        shown = keyed.lbctl("status")
        assert shown.returncode == 1
        assert "problem: " in shown.stdout
    finally:
        path.write_text(good)
    wait_until("all is well again", keyed.serves)


# -- how much


def test_a_key_gets_its_requests_a_minute_and_then_429(keyed: TierUnderTest):
    key = keyed.add_key("few", "--requests-per-minute", "6")
    while (answer := keyed.ask("/", key=key))[0] == 200:
        pass
    assert answer[0] == 429
    assert answer[1]["retry-after"] == "60"
    assert answer[2]["error"]["code"] == "rate_limit_exceeded"
    assert keyed.lbctl("limits").stdout.count("few") == 1


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_tokens_that_are_asked_for_count(keyed: TierUnderTest, field: str):
    key = keyed.add_key(f"tokens-{field}", "--tokens-per-minute", "10000")
    assert keyed.ask("/", {field: 8000}, key=key)[0] == 200
    status, headers, body = keyed.ask("/", {field: 8000}, key=key)
    assert (status, headers["retry-after"], body["error"]["type"]) == (429, "60", "tokens")
    assert keyed.ask("/", {field: -8000}, key=key)[0] == 200, "counts as one that says nothing"
    assert keyed.ask("/", {field: 8000}, key=key)[0] == 429, "and gives nothing back"


def test_tokens_behind_a_long_prompt_are_assumed(keyed: TierUnderTest):
    key = keyed.add_key("long", "--tokens-per-minute", "3000")
    body = {"prompt": "x" * 100_000, "max_tokens": 1}
    assert [keyed.ask("/", body, key=key)[0] for _ in range(3)] == [200, 200, 429]


def test_so_many_requests_are_answered_at_once(keyed: TierUnderTest, engine: Engine):
    key = keyed.add_key("two", "--concurrent", "2")
    engine.release.clear()
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(keyed.ask("/wait", key=key)[0]))
        for _ in range(2)
    ]
    for each in threads:
        each.start()
    try:
        wait_until("both are at the engine", lambda: engine.busy == 2)
        status, headers, _ = keyed.ask("/", key=key)
        assert (status, headers["retry-after"]) == (429, "1")
    finally:
        engine.release.set()
        for each in threads:
            each.join()
    assert found == [200, 200]
    # HAProxy gives a place back after the last byte of the answer.
    wait_until("there is room again", lambda: keyed.ask("/", key=key)[0] == 200)


@pytest.mark.parametrize(
    ("concurrent", "affinity", "seen"),
    [(1, None, (1, 1)), (2, {"sources": ["127.9.0.0/28"]}, (2, 0))],
    ids=["some wait", "with sessions none waits"],
)
def test_so_many_requests_wait_and_the_rest_is_told_to_come_back(
    tmp_path: Path, engine: Engine, concurrent: int, affinity: Any, seen: tuple[int, int]
):
    queue = {"concurrent": concurrent, "waiting": 1, "timeout": "60s"}
    with tier(tmp_path, engine.at, queue=queue, affinity=affinity) as made:
        engine.release.clear()
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(made.ask("/wait")[0])) for _ in range(2)
        ]
        try:
            for each in threads:
                each.start()
            wait_until("both are where they should be",
                       lambda: [(each["current"], each["queued"])
                                for each in made.status()["engines"]] == [seen])  # fmt: skip
            status, headers, body = made.ask("/")
            assert (status, headers["retry-after"]) == (429, "5")
            assert body["error"]["code"] == "engine_overloaded"
        finally:
            engine.release.set()
            for each in threads:
                each.join()
        assert found == [200, 200]


def test_bodies_without_end_and_beyond_the_limit_are_refused(keyed: TierUnderTest):
    key = keyed.add_key("large")
    assert keyed.ask("/", "x" * 1_000_000, key=key)[0] == 200
    assert keyed.ask("/", "x" * 1_100_000, key=key)[0] == 413
    done = keyed.curl("--http1.1", "-H", f"Authorization: Bearer {key}",
                      "-H", "Transfer-Encoding: chunked", "-d", "{}")  # fmt: skip
    assert done == "411"


def test_a_client_that_sends_its_request_slowly_is_let_go(keyed: TierUnderTest):
    connection = keyed.connect()
    connection.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
    assert b"408" in connection.sock.recv(1000)
    connection.close()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
def test_who_connects_and_does_not_shake_hands_is_let_go(keyed: TierUnderTest, sent: bytes):
    """Once, such a connection stayed for the half hour of `idle_timeout`: 20,000 of a stranger's
    would have kept everybody out.
    """
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=90) as sock:
        sock.sendall(sent)
        assert sock.recv(1) == b""


def test_a_client_of_http2_that_asks_nothing_is_let_go(keyed: TierUnderTest):
    context = client_context(keyed.authority)
    context.set_alpn_protocols(["h2"])
    connection = keyed.connect(context)
    connection.sock.settimeout(90)
    assert connection.sock.selected_alpn_protocol() == "h2"
    while connection.sock.recv(4096):
        pass  # its settings, and a goodbye
    connection.close()


# -- where to


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/embeddings", {"model": "e5"}, "other"),
        ("/v1/chat/completions", {"model": "llama-3-8b"}, "other"),
        ("/v1/chat/completions", {"model": "exact"}, "other"),
        ("/v1/chat/completions", {"model": "exactly"}, "chat"),
        ("/v1/chat/completions", {"messages": [{"model": "llama-3"}], "model": "qwen"}, "chat"),
        ("/v1/chat/completions", None, "chat"),
    ],
)
def test_requests_go_where_their_path_and_model_say(
    keyed: TierUnderTest, path: str, body: Any, expected: str
):
    key = keyed.add_key(f"route-{os.urandom(4).hex()}")
    assert keyed.ask(path, body, key=key)[2]["engine"] == expected


def test_all_of_it_is_in_the_metrics(keyed: TierUnderTest):
    keyed.ask("/")

    def page() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{keyed.document['metrics']}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
        }

    refused = 'steelyard_tier_refused_total{why="key"}'
    wait_until("a refusal is counted", lambda: page().get(refused))
    found = page()
    assert found["steelyard_tier_up"] == 1
    assert found['steelyard_tier_answers_total{status="4xx"}'] >= 1
    assert found['steelyard_tier_certificate_expires_timestamp_seconds{certificate="chat"}'] > 1e9
