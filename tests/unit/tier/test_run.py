"""What a tier takes over, and when, with a real HAProxy."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import yaml

from agent.tier import keys, run
from agent.tier.run import MOST_WAITS, Supervisor
from tests.netns.tier.rig import free_port
from tests.pki import Authority


@pytest.fixture
def tier(tmp_path: Path) -> Supervisor:
    """A tier with one key, in the file ``keys``."""
    certificate, of_keys = tmp_path / "certificates" / "site.pem", tmp_path / "keys"
    certificate.parent.mkdir()
    pair = Authority(tmp_path / "authority").issue("site", "/CN=site")
    certificate.touch(mode=0o600)
    certificate.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    keys.add(of_keys, "mine", keys.Limits())
    file = tmp_path / "tier.yaml"
    settings = {
        "listen": [f"127.0.0.1:{free_port()}"], "engines": "127.0.0.1:9", "metrics": "off",
        "certificates": str(certificate.parent), "keys": str(of_keys), "max_connections": 100,
        "folder": str(tmp_path / "run"),
    }  # fmt: skip
    file.write_text(yaml.safe_dump(settings))
    made = Supervisor(file, starts=True)
    made.files.make()
    return made


def known(tier: Supervisor) -> list[str]:
    """The names of the keys that HAProxy knows."""
    assert tier.current is not None
    return list(tier.current.maps["keys"].values())


def test_a_file_that_is_just_written_is_waited_for(
    tier: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`cp` and many editors empty a file first. A look between that and the rest took a file of
    keys for an empty one, and each client was refused until the next look.
    """
    monkeypatch.setattr(run, "WRITTEN_S", 3600.0)
    of_keys = tmp_path / "keys"
    text = of_keys.read_text()

    def write(text: str) -> None:
        of_keys.write_text(text)

    async def scene() -> None:
        await tier.look()
        write("")
        for _ in range(MOST_WAITS):
            await tier.look()
            assert known(tier) == ["mine"]
        await tier.look()
        assert known(tier) == [], "it is not waited for for ever"
        write(text)
        await tier.reload()
        assert known(tier) == ["mine"], "who asks does not wait"
        write("")
        os.utime(of_keys, (0, 0))
        await tier.look()
        assert known(tier) == []

    async def whole() -> None:
        try:
            await scene()
        finally:
            await tier.proxy.stop(1)

    asyncio.run(whole())
