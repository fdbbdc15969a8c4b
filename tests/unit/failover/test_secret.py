"""Which files hold a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.failover.secret import read_secret

SECRET = b"0123456789abcdef0123456789abcdef"


def key_file(folder: Path, content: bytes = SECRET + b"\n", mode: int = 0o600) -> Path:
    path = folder / "sync.key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_lines_end_is_not_of_the_secret(tmp_path: Path) -> None:
    assert read_secret(key_file(tmp_path)) == SECRET
    assert read_secret(key_file(tmp_path, SECRET + b"\r\n")) == SECRET
    assert read_secret(key_file(tmp_path, SECRET)) == SECRET


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o660, 0o620, 0o777])
def test_what_others_can_read_or_change_is_no_secret(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=f"mode {mode:04o}") as caught:
        read_secret(key_file(tmp_path, mode=mode))
    assert "chmod 0600" in caught.value.remedy


def test_the_group_may_read_it(tmp_path: Path) -> None:
    assert read_secret(key_file(tmp_path, mode=0o640)) == SECRET


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"\n\n", "has 0 bytes"),
        (b"fifteen bytes..\n", "has 15 bytes, and needs at least 16"),
        (b"x" * 5000, "longer than 4096"),
    ],
)
def test_a_secret_has_a_length(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_secret(key_file(tmp_path, content))
    assert "openssl rand" in caught.value.remedy


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        read_secret(tmp_path / "none")
    assert "openssl rand" in caught.value.remedy


def test_a_folder_holds_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_secret(tmp_path)
