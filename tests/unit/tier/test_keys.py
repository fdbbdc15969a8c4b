"""The file of a tier's keys."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError, NotFoundError
from agent.tier.keys import Key, Limits, add, parse, read, remove, written

HASH, OTHER = "a" * 64, "b" * 64

limits = st.none() | st.integers(0, 10**9)
keys = st.lists(
    st.builds(
        Key,
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True),
        st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
        st.builds(Limits, limits, limits, limits),
    ),
    unique_by=(lambda key: key.name, lambda key: key.sha256),
)


@given(keys)
def test_what_is_written_is_read_again(some: list[Key]):
    assert parse(written(some), "keys") == tuple(some)


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("alice", "keys:1", "not a SHA-256"),
        (f"alice {HASH[1:]}", "keys:1", "lbctl tier keys add alice"),
        (f"al/ice {HASH}", "keys:1", "is not a name"),
        (f"# ours\n\nalice {HASH} rpm=5", "keys:3", "requests_per_minute=N"),
        (f"alice {HASH} concurrent=0", "keys:1", "out of range"),
        (f"alice {HASH} concurrent=1000000001", "keys:1", "out of range"),
        (f"alice {HASH}\nalice {OTHER}", "keys:2", "name of line 1"),
        (f"alice {HASH}\nbob {HASH}", "keys:2", "key of line 1"),
    ],
)
def test_a_wrong_line_is_named(text: str, where: str, words: str):
    with pytest.raises(ConfigError) as caught:
        parse(text, "keys")
    assert caught.value.where == where
    assert words in str(caught.value)


def test_a_key_is_added_once_and_only_its_hash_is_kept(tmp_path: Path):
    path = tmp_path / "keys"
    text = add(path, "alice", Limits(concurrent=0))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text not in path.read_text()
    (key,) = read(path)
    assert key == Key("alice", hashlib.sha256(text.encode()).hexdigest(), Limits(concurrent=0))
    with pytest.raises(ConfigError, match="there is a key of alice already"):
        add(path, "alice", Limits())
    with pytest.raises(ConfigError, match="is not a name"):
        add(path, "../x", Limits())
    assert len(read(path)) == 1


def test_comments_outlive_what_is_added_and_removed(tmp_path: Path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\nalice {HASH} # since May\n#bob {OTHER}")
    path.chmod(0o600)
    add(path, "carol", Limits())
    remove(path, "alice")
    assert path.read_text().startswith(f"# ours\n#bob {OTHER}\ncarol ")
    with pytest.raises(NotFoundError):
        remove(path, "bob")


def test_a_file_that_others_may_read_is_refused(tmp_path: Path):
    path = tmp_path / "keys"
    path.write_text(f"alice {HASH}\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 0600"):
        read(path)
