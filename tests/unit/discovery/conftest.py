"""A certificate for tests with TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.pki import Pair, self_signed, server_context


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return self_signed(tmp_path_factory.mktemp("tls"), "server", "localhost")


@pytest.fixture(scope="session")
def certificate(pair: Pair) -> Path:
    """Self-signed for localhost, with its key beside it."""
    return pair.certificate


@pytest.fixture(scope="session")
def tls(pair: Pair) -> ssl.SSLContext:
    """A server's context with this certificate."""
    return server_context(pair)
