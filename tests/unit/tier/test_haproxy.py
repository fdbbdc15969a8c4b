"""The HAProxy of a tier, a real one: how many of it run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from agent.config.load import parse_document
from agent.tier.haproxy import Files, Proxy, ProxyError
from agent.tier.render import rendered
from agent.tier.settings import Tier
from tests.netns.tier.rig import free_port
from tests.pki import Authority


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A folder with a configuration that serves."""
    made = Files(tmp_path / "run")
    made.make()
    pair = Authority(tmp_path / "authority").issue("site", "/CN=site")
    made.of_certificate("site").write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    made.config.write_text(rendered(tier_of(str(made.certificates)), made.folder))
    return made


def tier_of(certificates: str) -> Tier:
    settings = {
        "listen": [f"127.0.0.1:{free_port()}"], "engines": "127.0.0.1:9",
        "certificates": certificates, "max_connections": 100,
    }  # fmt: skip
    return parse_document(Tier, yaml.safe_dump(settings), "tier.yaml", lambda _: ())


def test_one_whose_master_is_silent_is_not_taken_for_absent(files: Files):
    """A master refuses connections for some 50 ms at its start and in each reload. Who asked just
    then started a second one at the same ports, and half of the connections went on being answered
    by the first, which nobody asked or told anything any more: a tier with affinity had it in 14
    of 100 starts on a busy host.
    """

    async def scene() -> None:
        proxy, away = Proxy(files), files.folder / "away"
        await proxy.start()
        try:
            assert await proxy.runs()
            await proxy.reload()
            assert await proxy.runs()
            files.master.rename(away)
            with pytest.raises(ProxyError, match="HAProxy runs, but its master does not answer"):
                await proxy.runs()
        finally:
            await proxy.stop(1)  # it ends, too
        away.rename(files.master)
        assert not await proxy.runs()

    asyncio.run(scene())


def test_a_usual_haproxy_cannot_share_the_ports(files: Files, tmp_path: Path):
    """Such as Debian's own service: it sets SO_REUSEPORT."""

    async def scene() -> None:
        proxy, usual = Proxy(files), Files(tmp_path / "usual")
        usual.make()
        text = files.config.read_text().replace(f"{files.folder}/haproxy.sock", f"{usual.worker}")
        usual.config.write_text(text.replace("  noreuseport\n", ""))
        for first, second in ((proxy, Proxy(usual)), (Proxy(usual), proxy)):
            await first.start()
            try:
                with pytest.raises(ProxyError, match="does not come up"):
                    await second.start()
                assert await first.runs()
            finally:
                await first.stop(1)

    asyncio.run(scene())
