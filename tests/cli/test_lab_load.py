"""What the load generators of the lab make of their options and answers: no network."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from lbctl.lab import client, http, load, prompts


def test_load_targets_are_addresses_of_both_families() -> None:
    assert client.parse_target("10.99.0.100:80") == client.Target("10.99.0.100", 80)
    assert str(client.parse_target("[fd99::100]:80")) == "[fd99::100]:80"
    for text in ("1", "10.99.0.100", "example.org:80", "10.99.0.100:http", "10.99.0.100:65536"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not ADDRESS:PORT"):
            client.parse_target(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("prompts --rate 0", "argument --rate: '0' is not a number above 0"),
        ("prompts --prompt-tokens 0", "argument --prompt-tokens: '0' is not a whole number"),
        ("prompts --answer-tokens 1.5", "argument --answer-tokens: '1.5' is not a whole number"),
        ("prompts --timeout nan", "argument --timeout: 'nan' is not a number above 0"),
        ("prompts --target 1", "argument --target: '1' is not ADDRESS:PORT"),
        ("load --target 1", "argument --target: '1' is not ADDRESS:PORT"),
        ("load --rate inf", "argument --rate: 'inf' is not a number of 0 or more"),
        ("load --workers 0", "argument --workers: '0' is not a whole number above 0"),
        ("load --streams -1", "argument --streams: '-1' is not a whole number of 0 or more"),
        ("load --duration 0", "argument --duration: '0' is not a number above 0"),
    ],
)
def test_load_generators_say_what_is_wrong_with_an_option(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *options = words.split()
    monkeypatch.setattr("sys.argv", [module, "--target", "127.0.0.1:1", *options])
    with pytest.raises(SystemExit) as caught:
        {"load": load, "prompts": prompts}[module].main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_load_may_be_of_held_connections_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[load.Plan] = []
    words = "load --target 127.0.0.1:1 --rate 0 --stream-seconds 0 --keep-alive 1"
    monkeypatch.setattr("sys.argv", words.split())
    monkeypatch.setattr(load, "generate", lambda plan, *_: made.append(plan))
    monkeypatch.setattr(load, "run", lambda _coroutine: None)
    load.main()
    assert [(plan.rate_per_s, plan.stream_s, plan.keep_alive) for plan in made] == [(0, 0, 1)]


def test_load_understands_what_the_server_sends() -> None:
    whole = http.answer("be7", 200, b"be7\n", keep_alive=True)
    head = client.parse_head(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert dataclasses.astuple(head) == (200, "be7", 4)
    with pytest.raises(client.ProtocolError):
        client.parse_head(b"SSH-2.0-OpenSSH\r\n\r\n")
