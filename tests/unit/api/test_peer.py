"""Who is let in."""

import os
import socket

import pytest

from agent.api import peer as peer_module
from agent.api.peer import Access, Peer, access, group_id, name_of, peer_of
from agent.errors import ListenError


def test_root_and_the_agents_user_are_always_let_in():
    allowed = access(None)
    assert allowed.allows(Peer(1, 0, frozenset()))
    assert allowed.allows(Peer(1, os.geteuid(), frozenset()))


def test_others_are_not():
    assert not Access(frozenset({0})).allows(Peer(1, 1000, frozenset({0, 1000})))


def test_members_of_the_group_are_let_in():
    allowed = Access(frozenset({0}), gid=50)
    assert allowed.allows(Peer(1, 1000, frozenset({1000, 50})))
    assert not allowed.allows(Peer(1, 1000, frozenset({1000, 51})))


def test_group_zero_is_a_group_like_others():
    assert Access(frozenset({0}), gid=0).allows(Peer(1, 1000, frozenset({0})))


def test_the_kernel_says_who_connected():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_of(one) == Peer(
            os.getpid(), os.getuid(), frozenset({os.getgid(), *os.getgroups()})
        )


def test_more_groups_than_fit_leave_the_primary_one():
    class Crowded:
        def __init__(self, sock):
            self.sock = sock

        def getsockopt(self, level, name, length, /):
            if name != socket.SO_PEERCRED:
                raise OSError(34, "Numerical result out of range")
            return self.sock.getsockopt(level, name, length)

    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_of(Crowded(one)).groups == {os.getgid()}


def test_group_is_named_by_the_configuration():
    assert group_id("root") == 0
    with pytest.raises(ListenError) as caught:
        group_id("no-such-group-here")
    assert "groupadd" in caught.value.remedy


@pytest.mark.parametrize(
    ("uid", "login", "name"),
    [
        (0, None, "root"),
        (0, "4294967295", "root"),
        (0, "0", "root"),
        (0, "12345", "user 12345 as root"),
        (12345, "12345", "user 12345"),
        (12345, "no number", "user 12345"),
    ],
)
def test_whoever_logged_in_is_named_also_behind_sudo(tmp_path, monkeypatch, uid, login, name):
    if login is not None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "loginuid").write_text(login)
    monkeypatch.setattr(peer_module, "PROC", tmp_path)
    assert name_of(Peer(7, uid, frozenset())) == name


def test_of_a_connection_that_is_gone_nobody_is_known():
    assert name_of(None) == "unknown"
