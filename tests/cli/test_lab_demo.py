"""What the demo does when its lab does not do as it should: no root, no network but loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable

import pytest

from lbctl.lab import build, demo, netns, story
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Lab
from lbctl.lab.traffic import PromptTraffic, Traffic

LAB = Lab(backends=3, engines=("h100",))


@pytest.mark.parametrize("reply", [None, b"", b"SSH-2.0-OpenSSH\r\n\r\n"])
def test_a_throttle_that_fails_is_an_error_of_the_lab(
    reply: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(reply or b"")

        monkeypatch.setattr(netns, "inside", lambda _namespace: contextlib.nullcontext())
        monkeypatch.setattr(Lab, "server_port", property(lambda _lab: port))
        if reply is None:
            listener.close()  # it is refused
        else:
            threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(LabError, match="be1 cannot be throttled: "):
            story._throttle(LAB, story.SLOW)


def test_a_lab_that_is_gone_cannot_be_throttled() -> None:
    with pytest.raises(LabError, match="be1 cannot be throttled: "):
        story._throttle(Lab(name="gone", backends=3), story.SLOW)


@pytest.mark.parametrize("failing", ["prompts", "load", None])
def test_the_demo_cleans_up_whatever_fails(
    failing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def step(name: str) -> Callable[..., None]:
        def act(*_: object) -> None:
            done.append(name)
            if name == failing:
                raise subprocess.TimeoutExpired(name, 5)

        return act

    monkeypatch.setattr(PromptTraffic, "stop", step("prompts"))
    monkeypatch.setattr(Traffic, "stop", step("load"))
    monkeypatch.setattr(build, "down", step("down"))
    raised = pytest.raises(subprocess.TimeoutExpired) if failing else contextlib.nullcontext()
    with raised:
        demo._clean_up(LAB, Traffic(LAB), PromptTraffic(LAB, LAB.services[-1]))
    assert done == ["prompts", "load", "down"]
