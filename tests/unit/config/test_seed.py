"""From what backends are chosen where the operator says nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import seed
from agent.config.load import parse
from agent.model import Config

SERVICE = "services: [{{name: web, vip: {}, port: 80}}]"
INSTANCE = "instances: [{name: a, vrid: 51}]"
SECRET = b"0123456789abcdef"


def config(*lines: str, vip: str = "203.0.113.10") -> Config:
    text = "\n".join(("interface: lo", SERVICE.format(vip), *lines, ""))
    return parse(text, "agent.yaml")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    return path


def test_what_is_configured_holds(key_file: Path):
    found = config("hash_seed: 7", f"failover: {{key_file: {key_file}, {INSTANCE}}}")
    assert seed.pick_seed(found) == 7
    assert not seed.is_public(found)
    assert seed.pick_seed(config("hash_seed: 0")) == 0


def test_balancers_with_the_same_secret_choose_alike(key_file: Path):
    first = config("name: lb1", f"failover: {{key_file: {key_file}, {INSTANCE}}}")
    second = config("name: lb2", f"failover: {{key_file: {key_file}, {INSTANCE}}}")
    assert seed.pick_seed(first) == seed.pick_seed(second) == seed.made_of(SECRET)
    assert not seed.is_public(first)
    key_file.write_bytes(SECRET + b"x")
    assert seed.pick_seed(first) != seed.made_of(SECRET)


def test_the_secret_is_not_in_the_seed():
    assert seed.made_of(SECRET) != int.from_bytes(SECRET[:8], "little")
    assert seed.made_of(SECRET) < 2**64


def test_a_secret_that_cannot_be_read_leaves_what_all_know(key_file: Path):
    found = config(f"failover: {{key_file: {key_file}, {INSTANCE}}}")
    key_file.chmod(0o644)
    assert seed.pick_seed(found) == seed.PUBLIC


def test_a_balancer_alone_has_a_seed_of_its_host(monkeypatch, tmp_path: Path):
    image, machine = tmp_path / "image", tmp_path / "machine-id"
    monkeypatch.setattr(seed, "_OF_HOST", (tmp_path / "none", image, machine))
    image.write_text("uninitialized\n")
    machine.write_text("49ab\n")
    assert seed.pick_seed(config()) == seed.made_of(b"49ab")
    assert not seed.is_public(config())


def test_this_host_has_something_of_its_own():
    assert seed.pick_seed(config()) not in (seed.PUBLIC, seed.made_of(b""))


@pytest.mark.parametrize(
    "line",
    [
        f"failover: {{{INSTANCE}}}",
        "failover: {instances: [{name: a, method: announce}]}",
        "manage_vips: false",
    ],
)
def test_without_a_secret_all_who_may_have_the_same_clients_choose_alike(line: str):
    found = config(line)
    assert seed.pick_seed(found) == seed.PUBLIC
    assert seed.is_public(found) is line.startswith("failover")
    assert not seed.is_public(replace(found, hash_seed=0)), "so it is wanted"


def test_a_prefix_may_be_routed_to_several():
    assert seed.pick_seed(config(vip="203.0.113.0/24")) == seed.PUBLIC
