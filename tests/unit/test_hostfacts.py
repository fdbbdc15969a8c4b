"""What this host has, as far as no other test asks."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from agent import hostfacts
from agent.config.load import parse
from agent.errors import ConfigError


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


FILE = """\
interface: eth0
socket_roles:
  viewer: [root, no-such-group-1]
  operator:
    - root
    - no-such-group-2
"""


def test_a_group_that_does_not_exist_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        hostfacts.check_accounts(parse(FILE, "f"), FILE, "agent.yaml")
    assert [(each.where, each.message) for each in caught.value.problems] == [
        ("agent.yaml:3", "socket_roles.viewer: this host has no group 'no-such-group-1'"),
        ("agent.yaml:6", "socket_roles.operator: this host has no group 'no-such-group-2'"),
    ]
    assert all("groupadd" in each.remedy for each in caught.value.problems)


API = """\
interface: eth0
api:
  listen: 192.0.2.1:9443
  certificate: /c
  key_file: /k
  client_ca: /ca
  user: no-such-user
  roles: {admin: [alice]}
"""


def test_a_user_that_does_not_exist_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        hostfacts.check_accounts(parse(API, "f"), API, "agent.yaml")
    assert caught.value.where == "agent.yaml:7"
    assert caught.value.message == "api.user: this host has no user 'no-such-user'"
    assert "useradd --system --no-create-home" in caught.value.remedy
    good = API.replace("no-such-user", "root")
    hostfacts.check_accounts(parse(good, "f"), good, "agent.yaml")


def test_groups_that_exist_are_fine_and_a_broken_file_names_no_line() -> None:
    good = FILE.replace("no-such-group-1", "root").replace("no-such-group-2", "root")
    hostfacts.check_accounts(parse(good, "f"), good, "agent.yaml")
    with pytest.raises(ConfigError) as caught:
        hostfacts.check_accounts(parse(FILE, "f"), "a: [", "agent.yaml")
    assert caught.value.where == "agent.yaml"
