"""The configuration, read by a child process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.failover.process import reading
from agent.failover.process.reading import orders_in, read_orders

GOOD = """
name: lb
interface: eth0
backend_interfaces: [eth1]
socket: /run/x/agent.sock
state_dir: {folder}
failover:
  key_file: {folder}/key
  instances:
    - {{name: web, vips: [10.0.0.10, fd00::10], vrid: 51, authentication: hmac}}
"""


def test_the_child_says_what_is_to_be_done(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(GOOD.format(folder=tmp_path))
    (tmp_path / "key").write_text("a secret of the balancers\n")
    (tmp_path / "key").chmod(0o600)
    orders = asyncio.run(read_orders(path, at_once=True))
    assert [router.name for router in orders.plan.routers] == ["web/ipv4", "web/ipv6"]
    assert (orders.name, orders.interfaces) == ("lb", ("eth0", "eth1"))
    assert orders.socket == Path("/run/x/agent-failover.sock")
    assert orders.key == b"a secret of the balancers"
    assert orders.problem == ""


def test_a_secret_that_cannot_be_read_is_a_matter_of_those_who_need_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(GOOD.format(folder=tmp_path))
    with pytest.raises(ConfigError, match="secret cannot be read"):
        orders_in(path)
    path.write_text(GOOD.format(folder=tmp_path).replace("hmac", "none"))
    assert orders_in(path).key is None, "for flow sync it is the agent's to say"


def test_all_that_is_wrong_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("interfac: eth0\nfailover: {instances: [{name: web, vrid: 0}]}\n")
    with pytest.raises(ConfigError) as raised:
        asyncio.run(read_orders(path))
    said = [str(problem) for problem in raised.value.problems]
    assert len(said) > 1
    assert any("vrid" in text for text in said)
    assert all(str(path) in text for text in said)


def test_a_child_of_another_version_is_not_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("interface: eth0\n")
    monkeypatch.setattr(reading, "_SHAPE", "an older one")
    with pytest.raises(ConfigError, match="restart lb-agent-failover"):
        asyncio.run(read_orders(path, at_once=True))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        orders_in(tmp_path / "none.yaml")
