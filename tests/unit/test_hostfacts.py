"""What this host has, as far as no other test asks."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from agent import hostfacts


class Socket:
    """Connects, or fails with an error of the kernel's."""

    error = 0

    def __init__(self, *_: int) -> None:
        pass

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connect(self, _: object) -> None:
        if self.error:
            raise OSError(self.error, "refused")


@pytest.mark.parametrize(
    ("error", "found"),
    [(0, True), (errno.ENETUNREACH, False), (errno.EHOSTUNREACH, False),
     (errno.EADDRNOTAVAIL, False), (errno.EMFILE, True)],
)  # fmt: skip
def test_there_is_no_way_to_where_the_kernel_would_not_send(
    error: int, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EADDRNOTAVAIL: a host without an IPv6 address of its own."""
    monkeypatch.setattr(Socket, "error", error)
    monkeypatch.setattr(hostfacts.socket, "socket", Socket)
    assert hostfacts._has_route(ip_address("2001:db8::1")) is found
