"""Who is let in."""

import os
import socket

import pytest

from agent.api.peer import Access, Peer, access, group_id, peer_of
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
