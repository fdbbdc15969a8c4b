"""The keys of SYN cookies: how they are read, and what a table holds of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from agent.companion.keys import Keys, packed, read_keys, wall_ahead_ns
from agent.dataplane.abi import COOKIE_SECRET
from agent.errors import ConfigError

ONE, OTHER = "00" * 15 + "01", "ff" * 16


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_holds_one_key_or_two(tmp_path: Path):
    path = tmp_path / "key"
    assert read_keys(write(path, ONE)).keys == (bytes.fromhex(ONE),)
    both = read_keys(write(path, f"# of this week\n{OTHER.upper()}\n\n {ONE} \n"))
    assert both.keys == (bytes.fromhex(OTHER), bytes.fromhex(ONE))
    assert both.names[1] == hashlib.sha256(bytes.fromhex(ONE)).hexdigest()[:16]


@pytest.mark.parametrize(
    "text", ["", "#\n", ONE[:-1], ONE + "0", "x" * 32, f"{ONE}\n{OTHER}\n{ONE}", "\xff" * 32]
)
def test_anything_else_is_no_key_and_the_remedy_is_told(tmp_path: Path, text: str):
    with pytest.raises(ConfigError, match="32 hexadecimal digits") as caught:
        read_keys(write(tmp_path / "key", text))
    assert "openssl rand -hex 16" in caught.value.remedy


def test_a_file_that_strangers_can_read_holds_no_key(tmp_path: Path):
    with pytest.raises(ConfigError, match="everybody on this host"):
        read_keys(write(tmp_path / "key", ONE, 0o644))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "missing")
    with pytest.raises(ConfigError, match="regular file"):
        read_keys(Path("/dev/null"))


def test_a_row_is_what_the_program_reads():
    keys = Keys((bytes(range(16)), bytes(range(16, 32))))
    row = np.frombuffer(packed(keys, -5, 1400), dtype=COOKIE_SECRET)[0]
    assert row["key"].tobytes() == keys.keys[0]
    assert row["other"].tobytes() == keys.keys[1]
    assert (row["keys"], row["wall_ns"], row["mtu"]) == (2, -5, 1400)
    none = np.frombuffer(packed(None, 7), dtype=COOKIE_SECRET)[0]
    assert none["keys"] == 0
    assert not none["key"].any()


def test_the_wall_clock_is_far_ahead_of_the_other():
    assert wall_ahead_ns() > 10**18
