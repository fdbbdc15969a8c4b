"""What is secret in a configuration is hidden, wherever it is."""

from __future__ import annotations

from agent.config.redact import HIDDEN, hides, redacted
from agent.config.render import document
from tests.unit.config.documents import load


def test_secrets_are_hidden_at_any_depth_and_files_are_named() -> None:
    told = {
        "hash_seed": 7,
        "failover": {"instances": [{"password": "secret", "vips": ["10.0.0.1"]}]},
        "key_file": "/etc/key",
        "password": None,
    }
    assert redacted(told) == {
        "hash_seed": HIDDEN,
        "failover": {"instances": [{"password": HIDDEN, "vips": ["10.0.0.1"]}]},
        "key_file": "/etc/key",
        "password": None,
    }


def test_what_hides_something_can_be_told() -> None:
    config = document(load(hash_seed=7))
    assert not hides(config)
    assert hides(redacted(config))
    assert [key for key, value in redacted(config).items() if hides(value)] == ["hash_seed"]
    assert hides([{"a": [HIDDEN]}])
